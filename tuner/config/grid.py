"""The grid of a space of lists: its number of cells, and each cell by its index, by arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from tuner.config.parameters import Parameter
from tuner.config.space import Space
from tuner.config.values import ParameterValue, Range, options

LIMIT = 1_000_000
"""Most cells of a grid."""
CHECKED_LIMIT = 100_000
"""Most cells of a grid with constraints, each of which is checked."""


class Grid:
    """Every combination of a space's values once, in the order of the study file.

    The first parameter, the rate, varies slowest. A parameter that does not exist in a combination
    does not multiply it, unlike in Optuna's GridSampler.
    """

    def __init__(self, space: Space) -> None:
        """Build the grid of a space without ranges."""
        self._space = space
        self._parameters = space.parameters()
        assert not any(isinstance(one.entry, Range) for one in self._parameters)
        self._controlling = {name for one in self._parameters for name in one.when}
        self._counts: dict[tuple[int, tuple[tuple[str, ParameterValue], ...]], int] = {}

    @cached_property
    def cells(self) -> int:
        """The number of combinations, before constraints are checked."""
        return self._count(0, {})

    def __len__(self) -> int:
        """Return the number of combinations that satisfy the constraints."""
        return len(self._allowed) if self._space.constraints else self.cells

    def cell(self, index: int) -> dict[str, ParameterValue]:
        """Return a combination. Raise `IndexError`."""
        if not 0 <= index < len(self):
            raise IndexError(f"the grid has {len(self)} combinations, and no number {index}")
        return self._at(self._allowed[index] if self._space.constraints else index)

    def index(self, params: Mapping[str, ParameterValue]) -> int | None:
        """Return the index of a combination, or None if the grid does not have it."""
        if not self._space.contains(params):
            return None
        chosen: dict[str, ParameterValue] = {}
        index = 0
        for place, one in enumerate(self._parameters):
            if not one.exists(chosen):
                continue
            for value in options(one.entry):
                with_value = {**chosen, one.name: value}
                if type(value) is type(params[one.name]) and value == params[one.name]:
                    chosen = with_value
                    break
                index += self._count(place + 1, with_value)
        if not self._space.constraints:
            return index
        return self._allowed.index(index)

    def untried(self, index: int, tried: list[int]) -> int:
        """Return the index of a combination among those that are not `tried`."""
        for one in sorted(set(tried)):
            if one <= index:
                index += 1
        return index

    @cached_property
    def _allowed(self) -> list[int]:
        """The cells that satisfy the constraints."""
        holds = self._space.satisfies
        return [index for index in range(self.cells) if holds(self._at(index))]

    def _at(self, index: int) -> dict[str, ParameterValue]:
        chosen: dict[str, ParameterValue] = {}
        for place, one in enumerate(self._parameters):
            if not one.exists(chosen):
                continue
            for value in options(one.entry):
                with_value = {**chosen, one.name: value}
                below = self._count(place + 1, with_value)
                if index < below:
                    chosen = with_value
                    break
                index -= below
        return chosen

    def _count(self, place: int, chosen: Mapping[str, ParameterValue]) -> int:
        """Return the number of ways to choose the parameters from `place` on."""
        if place == len(self._parameters):
            return 1
        relevant = tuple(
            (name, value) for name, value in chosen.items() if name in self._controlling
        )
        key = (place, relevant)
        if key not in self._counts:
            one = self._parameters[place]
            self._counts[key] = self._ways(place, one, dict(relevant))
        return self._counts[key]

    def _ways(self, place: int, one: Parameter, chosen: dict[str, ParameterValue]) -> int:
        if not one.exists(chosen):
            return self._count(place + 1, chosen)
        values = options(one.entry)
        if one.name not in self._controlling:
            return len(values) * self._count(place + 1, chosen)
        return sum(self._count(place + 1, {**chosen, one.name: value}) for value in values)
