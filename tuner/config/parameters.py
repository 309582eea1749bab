"""Parameters of a search space: names, entries and the conditions under which they exist."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from tuner.config.values import Entry, ParameterValue, Range, WholeRange, options, written

Condition: TypeAlias = Mapping[str, tuple[ParameterValue, ...]]
"""The values that other parameters must have, by name; all of them."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a search space."""

    name: str
    entry: Entry
    when: Condition = field(default_factory=lambda: MappingProxyType({}))
    place: tuple[str, ...] = ()  # in the study file

    def exists(self, params: Mapping[str, ParameterValue]) -> bool:
        """Return whether a trial with these parameters has this one too."""
        return all(
            name in params and any(equal(params[name], value) for value in values)
            for name, values in self.when.items()
        )

    @property
    def varies(self) -> bool:
        """Whether there is more than one value."""
        return isinstance(self.entry, Range) or len(options(self.entry)) > 1

    @property
    def lowest(self) -> ParameterValue:
        """The lowest number of a range or a list; the first of other values."""
        if isinstance(self.entry, WholeRange):
            return int(self.entry.low)
        if isinstance(self.entry, Range):
            return self.entry.low
        return self.ordered[0] if self.ordered else options(self.entry)[0]

    @property
    def middle(self) -> ParameterValue:
        """The middle of a range or an ordered list; the first of other values."""
        if isinstance(self.entry, Range):
            low, high = self.entry.low, self.entry.high
            middle = math.sqrt(low * high) if self.entry.log else (low + high) / 2
            return round(middle) if isinstance(self.entry, WholeRange) else middle
        values = self.ordered
        return values[len(values) // 2] if values else options(self.entry)[0]

    @property
    def ordered(self) -> tuple[float, ...] | None:
        """The values of a list of numbers, ascending; None for ranges and labels."""
        if isinstance(self.entry, Range):
            return None
        values = options(self.entry)
        numbers = [one for one in values if isinstance(one, int | float)]
        if len(numbers) < len(values) or any(isinstance(one, bool) for one in values):
            return None
        return tuple(sorted(numbers))


def equal(one: ParameterValue, other: ParameterValue) -> bool:
    """Return whether two values are the same; true differs from 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def has(entry: Entry, value: ParameterValue) -> bool:
    """Return whether an entry has a value; true differs from 1, and in a list 1 from 1.0."""
    if isinstance(entry, Range):
        kinds = (int,) if isinstance(entry, WholeRange) else (int, float)
        return type(value) in kinds and entry.low <= float(value) <= entry.high
    return any(type(value) is type(option) and value == option for option in options(entry))


def in_words(entry: Entry) -> str:
    """Return what an entry allows."""
    if isinstance(entry, Range):
        kind = "a whole number" if isinstance(entry, WholeRange) else "a number"
        return f"{kind} from {entry.low:.15g} to {entry.high:.15g}"
    return f"one of {', '.join(map(written, options(entry)))}"


def sorted_by_condition(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Return parameters such that each follows those that its condition names.

    The order is otherwise kept. A cycle is left at the end, for `mistakes_of_conditions` to find.
    """
    waiting, done = list(parameters), dict[str, Parameter]()
    while waiting:
        later = []
        for one in waiting:
            if one.when.keys() <= done.keys():
                done[one.name] = one
            else:
                later.append(one)
        if len(later) == len(waiting):
            return [*done.values(), *waiting]
        waiting = later
    return list(done.values())


def mistakes_of_conditions(parameters: Sequence[Parameter]) -> Iterator[tuple[Parameter, str, str]]:
    """Yield a parameter, what its condition should be, and what it is, for each wrong condition."""
    known = {one.name: one for one in parameters}
    fine = True
    for one in parameters:
        for name, values in one.when.items():
            wrong = _mistake(one, name, values, known)
            if wrong:
                fine = False
                yield one, *wrong
    if not fine:
        return
    for one in parameters:
        cycle = _cycle(one, known)
        if cycle:
            yield one, "a condition that does not depend on this parameter", " -> ".join(cycle)
            fine = False
    if not fine:
        return
    for one in parameters:
        for name, left in _needed(one, known).items():
            if not left:
                expected = f"a condition that can hold, with one value of {name}"
                yield one, expected, f"conditions that need different values of {name}"


def _mistake(
    one: Parameter, name: str, values: Sequence[ParameterValue], known: Mapping[str, Parameter]
) -> tuple[str, str] | None:
    if name not in known:
        return f"a condition on one of {', '.join(k for k in known if k != one.name)}", name
    entry = known[name].entry
    if isinstance(entry, Range):
        return f"a condition on a parameter with a list of values, and {name} is a range", name
    for value in values:
        if not any(equal(value, option) for option in options(entry)):
            return f"a condition on {name} = {in_words(entry)}", written(value)
    return None


def _cycle(one: Parameter, known: Mapping[str, Parameter]) -> list[str]:
    """Return the names from a parameter back to itself, or an empty list."""
    paths = [[one.name]]
    seen: set[str] = set()
    while paths:
        path = paths.pop()
        for name in known[path[-1]].when:
            if name == one.name:
                return [*path, name]
            if name not in seen:
                seen.add(name)
                paths.append([*path, name])
    return []


def _needed(one: Parameter, known: Mapping[str, Parameter]) -> dict[str, list[ParameterValue]]:
    """Return the values that a parameter's condition, and theirs in turn, leave by name."""
    needed: dict[str, list[ParameterValue]] = {}
    waiting = [one]
    while waiting:
        for name, values in waiting.pop().when.items():
            every = list(options(known[name].entry))
            needed[name] = [
                option
                for option in needed.get(name, every)
                if any(equal(option, value) for value in values)
            ]
            waiting.append(known[name])
    return needed
