"""A search space as points of the unit cube: mixed kinds, ordered lists and conditions.

A row has a coordinate in [0, 1] for each dimension. A dimension with finitely many values has the
centre of its value's cell; one that does not apply to a point has `ABSENT`. So two rows are equal
exactly where the parameters are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tuner.config import Parameter, Range, Space, WholeRange, options
from tuner.config.parameters import equal

Rows: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["float", "log", "int", "ordered", "choice"]

ABSENT = 0.5
"""The coordinate of a dimension that does not apply: the middle, at most half from any other."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One parameter.

    - "float", "log": a number from `low` to `high`, evenly on its own or on the log scale.
    - "int": a whole number from `low` to `high`, both included; `log` as of a number.
    - "ordered": one of `values`, which lie in this order, evenly.
    - "choice": one of `values`, each as far from any other.

    It applies where each earlier dimension in `when` (by place) has one of the values (by place).
    """

    name: str
    kind: Kind
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    values: tuple[Any, ...] = ()
    when: tuple[tuple[int, frozenset[int]], ...] = ()

    @property
    def cells(self) -> int:
        """Number of equal cells that the coordinate is snapped to; 0 for none."""
        if self.kind in {"ordered", "choice"}:
            return len(self.values)
        return int(self.high - self.low) + 1 if self.kind == "int" and not self.log else 0

    def decode(self, coordinate: float) -> Any:
        """Return the value at a coordinate."""
        if self.kind in {"ordered", "choice"}:
            return self.values[self.cell(coordinate)]
        if self.kind == "int":
            if not self.log:
                return int(self.low) + self.cell(coordinate)
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            whole = round(math.exp(low + coordinate * (high - low)))
            return int(min(max(whole, self.low), self.high))
        if self.kind == "log":
            low, high = math.log(self.low), math.log(self.high)
            value = math.exp(low + coordinate * (high - low))
        else:
            value = self.low + coordinate * (self.high - self.low)
        return min(max(value, self.low), self.high)

    def encode(self, value: Any) -> float:
        """Return the coordinate of a value. Raises `ValueError` for one that it does not have."""
        if self.kind in {"ordered", "choice"}:
            places = [at for at, one in enumerate(self.values) if type(one) is type(value)]
            place = next((at for at in places if self.values[at] == value), None)
            if place is None:
                raise ValueError(f"{self.name}: expected one of {self.values}, got {value!r}")
            return (place + 0.5) / len(self.values)
        number = float(value)
        if not self.low <= number <= self.high:
            raise ValueError(f"{self.name}: expected {self.low:g} to {self.high:g}, got {number:g}")
        if self.kind == "int" and not self.log:
            return (number - self.low + 0.5) / self.cells
        if self.kind == "float":
            return (number - self.low) / (self.high - self.low)
        half = 0.5 if self.kind == "int" else 0.0
        low, high = math.log(self.low - half), math.log(self.high + half)
        return (math.log(number) - low) / (high - low)

    def cell(self, coordinate: float) -> int:
        """Return which cell a coordinate lies in."""
        return min(int(coordinate * self.cells), self.cells - 1)


class Encoding:
    """A space of dimensions."""

    def __init__(self, dimensions: Sequence[Dimension]) -> None:
        self.dimensions = tuple(dimensions)
        self.names = [dimension.name for dimension in self.dimensions]
        cells = np.array([dimension.cells for dimension in self.dimensions], dtype=float)
        self._cells = np.where(cells > 0, cells, np.nan)  # [dimension]
        groups: list[int] = []
        for place, dimension in enumerate(self.dimensions):
            one_hot = dimension.kind == "choice" and dimension.cells > 2
            groups += [place] * (dimension.cells if one_hot else 1)
        self.groups = np.array(groups)  # [feature], the dimension of each

    def __len__(self) -> int:
        return len(self.dimensions)

    @property
    def is_finite(self) -> bool:
        """Whether the space has finitely many points."""
        return all(dimension.cells for dimension in self.dimensions)

    def active(self, rows: Rows) -> NDArray[np.bool_]:
        """Return which dimensions apply to each of the rows, [row, dimension]."""
        active = np.ones(rows.shape, dtype=bool)
        for place, dimension in enumerate(self.dimensions):
            for parent, allowed in dimension.when:
                cells = self.dimensions[parent].cells
                cell = np.minimum((rows[:, parent] * cells).astype(int), cells - 1)
                active[:, place] &= active[:, parent] & np.isin(cell, list(allowed))
        return active

    def snapped(self, points: Rows) -> Rows:
        """Return rows for any points of the unit cube, [point, dimension]."""
        cells = np.minimum(np.floor(points * self._cells), self._cells - 1)
        rows = np.where(np.isnan(self._cells), points, (cells + 0.5) / self._cells)
        return np.where(self.active(rows), rows, ABSENT)

    def features(self, rows: Rows) -> Rows:
        """Return what distances are taken of, [row, feature].

        Squared distances are at most 1 for each dimension: of an ordered list, from its first to
        its last value; of a choice, between any two.
        """
        active = self.active(rows)
        columns = []
        for place, dimension in enumerate(self.dimensions):
            column, cells, here = rows[:, place], dimension.cells, active[:, place]
            if dimension.kind == "choice" and cells > 2:
                cell = np.minimum((column * cells).astype(int), cells - 1)
                columns += [here * (cell == one) * math.sqrt(0.5) for one in range(cells)]
            elif cells > 1:
                stretched = (column - 0.5) * (cells / (cells - 1)) + 0.5
                columns.append(np.where(here, stretched, ABSENT))
            else:
                columns.append(column)
        return np.stack(columns, axis=1)

    def decode(self, row: NDArray[np.float64]) -> dict[str, Any]:
        """Return the parameters of a row, [dimension]."""
        (active,) = self.active(row[None])
        return {
            dimension.name: dimension.decode(float(row[place]))
            for place, dimension in enumerate(self.dimensions)
            if active[place]
        }

    def encode(self, params: dict[str, Any]) -> NDArray[np.float64]:
        """Return the row of parameters. Raises `ValueError` where one is not in the space."""
        row = np.full(len(self), ABSENT)
        for place, dimension in enumerate(self.dimensions):
            if dimension.name in params:
                row[place] = dimension.encode(params[dimension.name])
        return row

    def fixed(self, points: Rows, params: dict[str, Any]) -> Rows:
        """Return points with some parameters given."""
        fixed = points.copy()
        for place, dimension in enumerate(self.dimensions):
            if dimension.name in params:
                fixed[:, place] = dimension.encode(params[dimension.name])
        return fixed

    def sobol(self, index: int, count: int, seed: int) -> Rows:
        """Return `count` points of a scrambled Sobol sequence from `index` on, not yet snapped."""
        from scipy.stats import qmc

        engine = qmc.Sobol(len(self), scramble=True, seed=np.random.default_rng(seed))
        if index:  # scipy cannot go forward by none
            engine.fast_forward(index)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # counts that are no powers of two
            points: Rows = engine.random(count)
        return points

    def neighbours(self, rows: Rows, count: int, step: float, rng: np.random.Generator) -> Rows:
        """Return `count` points that differ from one of the rows in one or two dimensions.

        Numbers move by a normal step of standard deviation `step`, whole and listed ones by at
        least one place; one move in four, and every move of a choice, goes anywhere. What did not
        apply to the row, and does to its neighbour, is drawn at random.
        """
        chosen = rng.integers(len(rows), size=count)
        points = np.where(self.active(rows), rows, np.nan)[chosen]
        points = np.where(np.isnan(points), rng.random(points.shape), points)
        applies = self.active(rows)[chosen]
        anywhere = np.array([dimension.kind == "choice" for dimension in self.dimensions])
        least = np.where(np.isnan(self._cells), 0.0, 1 / self._cells)
        line = np.arange(count)
        for turn in range(2):
            weights = np.where(applies, rng.random(points.shape), -1.0)
            place = weights.argmax(axis=1)  # one of those that apply
            moves = rng.standard_normal(count) * step
            moves = np.copysign(np.maximum(np.abs(moves), least[place]), moves)
            here = points[line, place]
            moved = here + moves
            moved = np.where((moved < 0) | (moved > 1), here - moves, moved)  # reflected
            jump = anywhere[place] | (rng.random(count) < 0.25)
            moved = np.where(jump, rng.random(count), np.clip(moved, 0.0, 1.0))
            kept = (turn == 1) & (rng.random(count) < 0.5)
            points[line, place] = np.where(kept, here, moved)
        return points


def encoding_of(space: Space) -> Encoding:
    """Return the encoding of all that varies in a space, as samplers see it."""
    known = {one.name: one for one in space.parameters()}
    found: dict[str, Dimension] = {}
    for one in known.values():
        if one.varies:
            places = {name: place for place, name in enumerate(found)}
            found[one.name] = _dimension(one, tuple(_conditions(one, known, places)))
    return Encoding(list(found.values()))


def _conditions(
    one: Parameter, known: Mapping[str, Parameter], places: Mapping[str, int]
) -> Iterator[tuple[int, frozenset[int]]]:
    """Yield the place and the cells of each dimension that a parameter depends on.

    A parameter with one value has no dimension, and passes on its own conditions.
    """
    for name, values in one.when.items():
        parent = known[name]
        if not parent.varies:
            yield from _conditions(parent, known, places)
            continue
        cells = parent.ordered or options(parent.entry)
        allowed = {
            cell for cell, own in enumerate(cells) if any(equal(own, value) for value in values)
        }
        yield places[name], frozenset(allowed)


def _dimension(one: Parameter, when: tuple[tuple[int, frozenset[int]], ...]) -> Dimension:
    """Return the dimension of a parameter that varies."""
    entry = one.entry
    if isinstance(entry, Range):
        whole, log = isinstance(entry, WholeRange), bool(entry.log)
        return Dimension(
            name=one.name,
            kind="int" if whole else "log" if log else "float",
            low=entry.low,
            high=entry.high,
            log=log,
            when=when,
        )
    if one.ordered is not None:  # samplers see the indices of its values
        values = tuple(range(len(one.ordered)))
        return Dimension(name=one.name, kind="ordered", values=values, when=when)
    return Dimension(name=one.name, kind="choice", values=options(entry), when=when)
