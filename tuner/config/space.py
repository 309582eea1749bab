"""The search space of a study: the learning rate, the schedule and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from tuner.config.choice import Choice
from tuner.config.optimizers import SGD, AdamW, OptimizerChoice, OptimizerName
from tuner.config.schedules import Cosine, Linear, ScheduleChoice, ScheduleName
from tuner.config.values import (
    Entry,
    ParameterValue,
    Range,
    Scale,
    ScaleRange,
    Table,
    WholeRange,
    Within,
    as_choices,
    mistake,
    options,
)

# The default search space; its sources are in docs/catalogue.md.
RATES = ScaleRange(low=1e-5, high=10.0)
WARMUPS = (0.02, 0.05, 0.1)
SCHEDULES = (Linear(name="linear", warmup=WARMUPS), Cosine(name="cosine", warmup=WARMUPS))
OPTIMIZERS = (
    SGD(name="sgd", momentum=0.9, nesterov=True),
    AdamW(name="adamw", weight_decay=Range(low=5e-3, high=1.0)),
)


class Space(Table):
    """The search space: the learning rate, and schedules and optimizers with their parameters.

    Omitted entries have the defaults of the catalogue.
    """

    lr: Annotated[
        Scale,
        Within(gt=0, log=True),
        Field(description="a number above 0, a list of them, or a range"),
    ] = RATES
    schedule: Annotated[
        tuple[ScheduleChoice, ...],
        Field(min_length=1, description="the name of a schedule, a table, or a list of them"),
        BeforeValidator(
            as_choices,
            json_schema_input_type=(
                ScheduleName
                | ScheduleChoice
                | Annotated[tuple[ScheduleName | ScheduleChoice, ...], Field(min_length=1)]
            ),
        ),
    ] = SCHEDULES
    optimizer: Annotated[
        tuple[OptimizerChoice, ...],
        Field(min_length=1, description="the name of an optimizer, a table, or a list of them"),
        BeforeValidator(
            as_choices,
            json_schema_input_type=(
                OptimizerName
                | OptimizerChoice
                | Annotated[tuple[OptimizerName | OptimizerChoice, ...], Field(min_length=1)]
            ),
        ),
    ] = OPTIMIZERS

    @field_validator("schedule", "optimizer")
    @classmethod
    def _names_are_unique(cls, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        names = [choice.name for choice in choices]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise mistake("each name once", f"{', '.join(twice)} more than once")
        return choices

    def longest_warmup(self, horizon: int) -> int:
        """Return the most steps until the rate of any trial has its maximum."""
        return max(math.ceil(choice.longest_rise() * horizon) for choice in self.schedule)

    def entries(self, schedule: str, optimizer: str) -> dict[str, Entry]:
        """Return the conditional parameters of a schedule and an optimizer."""
        chosen = [choice for choice in self.schedule if choice.name == schedule]
        chosen_too = [choice for choice in self.optimizer if choice.name == optimizer]
        return {key: entry for choice in chosen + chosen_too for key, entry in choice.entries()}

    def shared_ranges(self) -> list[str]:
        """Return the names of the ranges that every trial has."""
        found: dict[str, Entry] = {"lr": self.lr}
        for choices in (self.schedule, self.optimizer):
            if len(choices) == 1:
                found |= dict(choices[0].entries())
        return [key for key, entry in found.items() if isinstance(entry, Range)]

    def contains(self, params: Mapping[str, ParameterValue]) -> bool:
        """Return whether these are complete parameters of a trial within this space."""
        return not self.missing(params)

    def misfits(self, params: Mapping[str, ParameterValue]) -> dict[str, str]:
        """Return, by parameter, what is expected where a searched one is missing or no option.

        Unlike `missing`, allow numbers outside of a range, and ignore parameters that do not vary:
        another version may have had others.
        """
        wrong = {}
        for key, entry in self._known(params).items():
            if isinstance(entry, Range):
                fits = type(params.get(key)) in (int, float)
            else:
                fits = params.get(key) in options(entry)
                fits = fits or (key not in params and len(options(entry)) == 1)
            if not fits:
                wrong[key] = _in_words(entry)
        return wrong

    def _known(self, params: Mapping[str, ParameterValue]) -> dict[str, Entry]:
        groups: dict[str, Entry] = {
            "lr": self.lr,
            "schedule": tuple(choice.name for choice in self.schedule),
            "optimizer": tuple(choice.name for choice in self.optimizer),
        }
        return groups | self.entries(str(params.get("schedule")), str(params.get("optimizer")))

    def missing(self, params: Mapping[str, ParameterValue]) -> dict[str, str]:
        """Return, by parameter, what is expected where one is missing, unknown or not allowed."""
        known = self._known(params)
        wrong = {key: _in_words(entry) for key, entry in known.items() if key not in params}
        wrong |= {key: "no such parameter" for key in params if key not in known}
        for key in params.keys() & known.keys():
            if not _has(known[key], params[key]):
                wrong[key] = _in_words(known[key])
        return wrong


def _has(entry: Entry, value: ParameterValue) -> bool:
    """Return whether an entry has a value; true differs from 1, and in a list 1 from 1.0."""
    if isinstance(entry, Range):
        kinds = (int,) if isinstance(entry, WholeRange) else (int, float)
        return type(value) in kinds and entry.low <= float(value) <= entry.high
    return any(type(value) is type(option) and value == option for option in options(entry))


def _in_words(entry: Entry) -> str:
    if isinstance(entry, Range):
        return f"a number from {entry.low:.15g} to {entry.high:.15g}"
    return f"one of {', '.join(map(str, options(entry)))}"
