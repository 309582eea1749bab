"""The search space of a study: the rate, schedule and optimizer, and whatever else is searched."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tuner.config.arguments import (
    Argument,
    Count,
    Positive,
    Precision,
    Searched,
    condition_of,
    entry_of,
)
from tuner.config.choice import Choice
from tuner.config.constraints import Constraint
from tuner.config.optimizers import (
    NEED_NO_SCHEDULE,
    SGD,
    AdamW,
    OptimizerChoice,
    OptimizerName,
)
from tuner.config.parameters import (
    Parameter,
    equal,
    has,
    in_words,
    mistakes_of_conditions,
    sorted_by_condition,
)
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
    mistakes,
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

CHOSEN = ("lr", "schedule", "optimizer")
"""The parameters that every trial has."""
SETTINGS = ("batch_size", "clip_norm", "accumulate", "precision")
"""The settings of `[training]` that may be searched, under the same names."""
TAKEN = frozenset({*CHOSEN, *SETTINGS, "log10_lr", "trial", "self"})
"""Names that an argument or a further rate may not have."""
DRAWS = 2000
"""Random draws that look for a combination that satisfies the constraints."""


class Space(Table):
    """The search space: the learning rate, schedules and optimizers, and any other parameter.

    Omitted entries of the rate, the schedule and the optimizer have the defaults of the catalogue.

    - `batch_size`, `clip_norm`, `accumulate`, `precision`: settings of `[training]`, searched.
    - `rates`: further learning rates, or multipliers of parameter groups, for a train function,
      which gets them as arguments. Their ranges are sampled on a log scale.
    - `arguments`: arguments of the factory or train function.
    - `constraints`: expressions that the parameters of every trial satisfy.

    An entry of the last four kinds may have a condition, `when = { optimizer = "sgd" }`. It does
    not exist in a trial where the condition does not hold.
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

    batch_size: Annotated[Count | None, Field(exclude_if=lambda x: x is None)] = None
    clip_norm: Annotated[Positive | None, Field(exclude_if=lambda x: x is None)] = None
    accumulate: Annotated[Count | None, Field(exclude_if=lambda x: x is None)] = None
    precision: Annotated[Precision | None, Field(exclude_if=lambda x: x is None)] = None
    # omitted if empty, so that earlier digests stay valid
    rates: Annotated[dict[str, Positive], Field(exclude_if=lambda x: not x)] = Field(
        default_factory=dict
    )
    arguments: Annotated[dict[str, Argument], Field(exclude_if=lambda x: not x)] = Field(
        default_factory=dict
    )
    constraints: Annotated[tuple[str, ...], Field(strict=False, exclude_if=lambda x: not x)] = ()

    @model_validator(mode="before")
    @classmethod
    def _need_no_schedule(cls, raw: Any) -> Any:
        """Let the schedule be constant, if it is left out, with optimizers made for that."""
        given = raw.get("optimizer") if isinstance(raw, dict) else None
        if given is None or "schedule" in raw:
            return raw
        several = given if isinstance(given, list | tuple) else [given]
        names = [one.get("name") if isinstance(one, dict) else one for one in several]
        names = [one.name if isinstance(one, Choice) else one for one in names]
        none_needs = all(isinstance(one, str) and one in NEED_NO_SCHEDULE for one in names)
        return {**raw, "schedule": "constant"} if names and none_needs else raw

    @field_validator("schedule", "optimizer")
    @classmethod
    def _names_are_unique(cls, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        names = [choice.name for choice in choices]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise mistake("each name once", f"{', '.join(twice)} more than once")
        return choices

    @field_validator("rates", "arguments")
    @classmethod
    def _names_are_free(cls, entries: dict[str, Searched]) -> dict[str, Searched]:
        found: dict[tuple[str | int, ...], PydanticCustomError] = {}
        for name in entries:
            if not name.isidentifier() or len(name) > 100:
                found[name,] = mistake("the name of an argument of the function", "this name")
            elif name in TAKEN and name != "batch_size":
                found[name,] = mistake(f"a name that tuner does not use itself ({TAKEN_IN_WORDS})")
        mistakes("Space", found)
        return entries

    @model_validator(mode="after")
    def _can_be_drawn(self) -> Space:
        found: dict[tuple[str | int, ...], PydanticCustomError] = {}
        both = [name for name in self.arguments if name in self.rates]
        for name in both:
            found["arguments", name] = mistake("a name that [space.rates] does not have", "both")
        if self.batch_size is not None and "batch_size" in self.arguments:
            expected = "nothing, as [space] batch_size is searched"
            found["arguments", "batch_size"] = mistake(expected, "both")
        parameters = self.parameters()
        if not found:
            for one, expected, got in mistakes_of_conditions(parameters):
                found[(*one.place[1:], "when")] = mistake(expected, got)
        known = {one.name for one in parameters}
        for index, text in enumerate(self.constraints):
            try:
                unknown = sorted(Constraint(text).names - known)
            except ValueError as error:
                found["constraints", index] = mistake(str(error), text)
                continue
            if unknown:
                expected = f"parameters of the space ({', '.join(sorted(known))})"
                found["constraints", index] = mistake(expected, ", ".join(unknown))
        if not found and self.constraints:
            found |= self._unsatisfiable()
        mistakes("Space", found)
        return self

    def _unsatisfiable(self) -> dict[tuple[str | int, ...], PydanticCustomError]:
        """Return the mistakes of constraints that cannot be calculated, or that never hold."""
        numbers = random.Random(0)  # noqa: S311 - not for secrets
        constraints = [Constraint(text) for text in self.constraints]
        held, together = [False] * len(constraints), False
        for _ in range(DRAWS):
            params = self._draw(numbers)
            for index, constraint in enumerate(constraints):
                try:
                    holds = constraint.holds(params)
                except TypeError as error:
                    expected = "a calculation with numbers and a comparison of like with like"
                    return {("constraints", index): mistake(expected, str(error))}
                held[index] = held[index] or holds
            together = together or all(one.holds(params) for one in constraints)
            if together:
                return {}
        never = [index for index, one in enumerate(held) if not one]
        index = never[0] if never else 0
        what = "this one" if never else "all constraints together"
        expected = f"constraints that some combination satisfies; none of {DRAWS} satisfies {what}"
        return {("constraints", index): mistake(expected, self.constraints[index])}

    def parameters(self) -> list[Parameter]:
        """Return all parameters; each follows those that its condition names."""
        found = [
            Parameter(name="lr", entry=self.lr, place=("space", "lr")),
            *(
                Parameter(name=group, entry=tuple(c.name for c in of), place=("space", group))
                for group, of in (("schedule", self.schedule), ("optimizer", self.optimizer))
            ),
        ]
        for group, choices in (("schedule", self.schedule), ("optimizer", self.optimizer)):
            for choice in choices:
                found += [
                    Parameter(
                        name=key,
                        entry=entry,
                        when={group: (choice.name,)},
                        place=("space", group, *key.split(".")),
                    )
                    for key, entry in choice.entries()
                ]
        return sorted_by_condition([*found, *self._others()])

    def _others(self) -> Iterator[Parameter]:
        for name in SETTINGS:
            entry = getattr(self, name)
            if entry is not None:
                yield _parameter(name, entry, ("space", name))
        for table, entries in (("rates", self.rates), ("arguments", self.arguments)):
            for name, entry in entries.items():
                yield _parameter(name, entry, ("space", table, name))

    def longest_warmup(self, horizon: int) -> int:
        """Return the longest time, in the horizon's unit, until a trial's rate has its maximum."""
        return max(math.ceil(choice.longest_rise() * horizon) for choice in self.schedule)

    def shared_numbers(self) -> list[str]:
        """Return the names of the ranges and ordered lists that every trial has."""
        certain = {one.name: one for one in self.parameters() if self.always(one)}
        return [
            name
            for name, one in certain.items()
            if isinstance(one.entry, Range) or (one.varies and one.ordered is not None)
        ]

    def always(self, one: Parameter) -> bool:
        """Return whether every trial has a parameter."""
        known = {other.name: other for other in self.parameters()}
        return all(
            self.always(known[name])
            and all(
                any(option == value for value in values) for option in options(known[name].entry)
            )
            for name, values in one.when.items()
        )

    @property
    def function_arguments(self) -> tuple[str, ...]:
        """The names of the arguments that differ between trials."""
        return (*self.rates, *self.arguments)

    @property
    def others(self) -> tuple[str, ...]:
        """The names of the settings, rates and arguments that differ between trials."""
        return tuple(one.name for one in self._others() if one.varies)

    def satisfies(self, params: Mapping[str, ParameterValue]) -> bool:
        """Return whether parameters satisfy the constraints."""
        return not self.violated(params)

    def violated(self, params: Mapping[str, ParameterValue]) -> list[str]:
        """Return the constraints that parameters do not satisfy."""
        return [text for text in self.constraints if not _constraint(text).holds(params)]

    def draw(
        self, numbers: random.Random, fixed: Mapping[str, ParameterValue] = MappingProxyType({})
    ) -> dict[str, ParameterValue]:
        """Return random parameters, beside `fixed` ones, that satisfy the constraints.

        Raise `ValueError` if none do.
        """
        for _ in range(10 * DRAWS):
            params = self._draw(numbers, fixed)
            if self.satisfies(params):
                return params
        raise ValueError(f"none of {10 * DRAWS} combinations satisfies the constraints")

    def example(self) -> dict[str, ParameterValue]:
        """Return parameters of a trial: the lowest or first values, if the constraints allow it."""
        params: dict[str, ParameterValue] = {}
        for one in self.parameters():
            if one.exists(params):
                params[one.name] = one.lowest
        return params if self.satisfies(params) else self.draw(random.Random(0))  # noqa: S311

    def _draw(
        self, numbers: random.Random, fixed: Mapping[str, ParameterValue] = MappingProxyType({})
    ) -> dict[str, ParameterValue]:
        params: dict[str, ParameterValue] = {}
        for one in self.parameters():
            if one.name in fixed:
                params[one.name] = fixed[one.name]
            elif one.exists(params):
                params[one.name] = _random_value(one.entry, numbers)
        return params

    def contains(self, params: Mapping[str, ParameterValue]) -> bool:
        """Return whether these are complete parameters of a trial within this space."""
        return not self.missing(params)

    def missing(self, params: Mapping[str, ParameterValue]) -> dict[str, str]:
        """Return, by parameter, what is expected where one is missing, unknown or not allowed.

        A constraint that is not satisfied is expected of the first parameter that it names.
        """
        known = {one.name: one.entry for one in self.parameters() if one.exists(params)}
        wrong = {key: in_words(entry) for key, entry in known.items() if key not in params}
        wrong |= {key: "no such parameter" for key in params if key not in known}
        for key in params.keys() & known.keys():
            if not has(known[key], params[key]):
                wrong[key] = in_words(known[key])
        if not wrong:
            for text in self.violated(params):
                wrong[min(_constraint(text).names)] = text
        return wrong


def misfits(
    parameters: Iterable[Parameter], params: Mapping[str, ParameterValue]
) -> dict[str, str]:
    """Return, by parameter, what is expected where a searched one is missing or not allowed.

    Unlike `Space.missing`, ignore constraints and other parameters, which an earlier release may
    have stored otherwise.
    """
    return {
        one.name: in_words(one.entry)
        for one in parameters
        if (one.varies or one.name in CHOSEN) and one.exists(params)
        if one.name not in params or not _fits(one.entry, params[one.name])
    }


def unfit(parameters: Iterable[Parameter], fixed: Mapping[str, ParameterValue]) -> dict[str, str]:
    """Return, by parameter, what is expected where a fixed one is unknown or not allowed."""
    known = {one.name: one for one in parameters}
    return {
        name: in_words(known[name].entry) if name in known else "no such parameter"
        for name, value in fixed.items()
        if name not in known or not _fits(known[name].entry, value)
    }


def _fits(entry: Entry, value: ParameterValue) -> bool:
    """Return whether an entry has a value; in a list, 1 is the same as 1.0."""
    if isinstance(entry, Range):
        return has(entry, value)
    return any(equal(value, option) for option in options(entry))


TAKEN_IN_WORDS = ", ".join(sorted(TAKEN))


@functools.lru_cache(maxsize=1000)
def _constraint(text: str) -> Constraint:
    return Constraint(text)


def _parameter(name: str, searched: Searched, place: tuple[str, ...]) -> Parameter:
    return Parameter(name=name, entry=entry_of(searched), when=condition_of(searched), place=place)


def _random_value(entry: Entry, numbers: random.Random) -> ParameterValue:
    if not isinstance(entry, Range):
        return numbers.choice(options(entry))
    if isinstance(entry, WholeRange):
        if not entry.log:
            return numbers.randint(entry.low, entry.high)
        drawn = math.exp(numbers.uniform(math.log(entry.low), math.log(entry.high)))
        return min(max(round(drawn), entry.low), entry.high)
    if entry.log:
        value = math.exp(numbers.uniform(math.log(entry.low), math.log(entry.high)))
    else:
        value = numbers.uniform(entry.low, entry.high)
    return min(max(value, entry.low), entry.high)
