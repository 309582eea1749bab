"""Schedules, optimisers and their parameters: the space that a study searches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from tuner.spec.values import (
    Entry,
    Flag,
    ParameterValue,
    Range,
    Real,
    Scale,
    Table,
    Whole,
    Within,
    allows,
    as_choices,
    mistake,
    mistakes,
    options,
)


class Choice(Table):
    """A named alternative with parameters of its own, which exist only when it is chosen."""

    name: str

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Yield each parameter as (`"cosine.final"`, its entry)."""
        for key in type(self).model_fields:
            if key != "name":
                yield f"{self.name}.{key}", getattr(self, key)


class Schedule(Choice):
    """A schedule of the learning rate; `warmup` is the fraction of the horizon that it rises."""

    warmup: Annotated[Real, Within(ge=0, lt=1)] = 0.0


class Constant(Schedule):
    """The same rate at every step."""

    name: Literal["constant"]


class Step(Schedule):
    """The rate is multiplied by `gamma` at `drops` evenly spaced steps."""

    name: Literal["step"]
    gamma: Annotated[Real, Within(gt=0, le=1, log=True)] = 0.1
    drops: Annotated[Whole, Within(ge=1)] = 3


class Cosine(Schedule):
    """Half a cosine from the rate down to `final` times the rate."""

    name: Literal["cosine"]
    final: Annotated[Real, Within(ge=0, le=1)] = 0.0


class OneCycle(Schedule):
    """Up from rate/`div_factor` for `pct_start` of the horizon, then down (torch's OneCycleLR)."""

    name: Literal["one_cycle"]
    pct_start: Annotated[Real, Within(gt=0, lt=1)] = 0.3
    div_factor: Annotated[Real, Within(ge=1, log=True)] = 25.0
    final_div_factor: Annotated[Real, Within(ge=1, log=True)] = 1e4


class SGD(Choice):
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum."""

    name: Literal["sgd"]
    momentum: Annotated[Real, Within(ge=0, lt=1)] = 0.0
    nesterov: Flag = False
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.0

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGD:
        momentum = self.momentum
        lowest = momentum.low if isinstance(momentum, Range) else min(map(float, options(momentum)))
        if True in options(self.nesterov) and lowest == 0:
            error = mistake("a number above 0, since nesterov may be true", lowest)
            mistakes("SGD", {("momentum",): error})
        return self


class AdamW(Choice):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]
    beta1: Annotated[Real, Within(ge=0, lt=1)] = 0.9
    beta2: Annotated[Real, Within(ge=0, lt=1)] = 0.999
    eps: Annotated[Real, Within(gt=0, log=True)] = 1e-8
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.01


ScheduleChoice: TypeAlias = Annotated[
    Constant | Step | Cosine | OneCycle, Field(discriminator="name")
]
OptimizerChoice: TypeAlias = Annotated[SGD | AdamW, Field(discriminator="name")]
ScheduleName: TypeAlias = Literal["constant", "step", "cosine", "one_cycle"]
OptimizerName: TypeAlias = Literal["sgd", "adamw"]


class Space(Table):
    """What the search may choose: the learning rate, and a schedule and optimiser with theirs."""

    lr: Annotated[
        Scale,
        Within(gt=0, log=True),
        Field(description="a number above 0, a list of them, or a range"),
    ]
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
    ]
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
    ]

    @field_validator("schedule", "optimizer")
    @classmethod
    def _names_are_unique(cls, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        names = [choice.name for choice in choices]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise mistake("each name once", f"{', '.join(twice)} more than once")
        return choices

    def entries(self, schedule: str, optimizer: str) -> dict[str, Entry]:
        """Give the parameters that exist once a schedule and an optimiser are chosen."""
        chosen = [choice for choice in self.schedule if choice.name == schedule]
        chosen_too = [choice for choice in self.optimizer if choice.name == optimizer]
        return {key: entry for choice in chosen + chosen_too for key, entry in choice.entries()}

    def shared_ranges(self) -> list[str]:
        """Name the ranges that every trial has, whatever schedule and optimiser it gets."""
        found: dict[str, Entry] = {"lr": self.lr}
        for choices in (self.schedule, self.optimizer):
            if len(choices) == 1:
                found |= dict(choices[0].entries())
        return [key for key, entry in found.items() if isinstance(entry, Range)]

    def contains(self, params: Mapping[str, ParameterValue]) -> bool:
        """Tell whether these are the complete parameters of a trial that this space allows."""
        found: dict[str, Entry] = {
            "lr": self.lr,
            "schedule": tuple(choice.name for choice in self.schedule),
            "optimizer": tuple(choice.name for choice in self.optimizer),
        }
        found |= self.entries(str(params["schedule"]), str(params["optimizer"]))
        return found.keys() == params.keys() and all(
            allows(entry, params[key]) for key, entry in found.items()
        )
