"""Where a value stands among those of its rivals, at a step or at a rung of successive halving."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from optuna.trial import FrozenTrial

RUNG = "completed_rung_"
"""How Optuna's successive halving names the value at which a trial completed a rung."""


class Values:
    """Numbers of which it is asked how many lie below or above one; sorted when first asked."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._sorted = False

    def __len__(self) -> int:
        """Count them."""
        return len(self._values)

    def add(self, value: float) -> None:
        """Add a number."""
        if self._sorted:
            insort(self._values, value)
        else:
            self._values.append(value)

    def remove(self, value: float) -> None:
        """Take out a number that was added."""
        self._sort()
        place = bisect_left(self._values, value)
        assert self._values[place] == value, "only what was added is taken out"
        del self._values[place]

    def below(self, value: float) -> int:
        """Count the lower ones."""
        self._sort()
        return bisect_left(self._values, value)

    def above(self, value: float) -> int:
        """Count the higher ones."""
        self._sort()
        return len(self._values) - bisect_right(self._values, value)

    def _sort(self) -> None:
        if not self._sorted:
            self._values.sort()
            self._sorted = True


class _Taken(NamedTuple):
    bracket: int | None
    reports: Mapping[int, float]  # by step
    rungs: Mapping[int, float]  # value at which each rung was completed


Places = defaultdict[tuple[int | None, int], Values]


class Standings:
    """The reports of all rivals in a study, and their values at rungs, each bracket by itself."""

    def __init__(self, *, maximize: bool, bracket: Callable[[FrozenTrial], int | None]) -> None:
        self._maximize = maximize
        self._bracket = bracket
        self._at_steps: Places = defaultdict(Values)
        self._at_rungs: Places = defaultdict(Values)
        self._taken: dict[int, _Taken] = {}

    def bracket(self, trial: FrozenTrial) -> int | None:
        """Give the bracket in which a trial competes; None where there are no brackets."""
        taken = self._taken.get(trial.number)
        return self._bracket(trial) if taken is None else taken.bracket

    def take(self, trial: FrozenTrial) -> None:
        """Take in a rival that is new or has changed."""
        self._put(
            trial.number, _Taken(self.bracket(trial), trial.intermediate_values, rungs(trial))
        )

    def drop(self, number: int) -> None:
        """Leave a trial out from now on: it is no rival any more."""
        known = self._taken.get(number)
        if known is not None:
            self._put(number, _Taken(known.bracket, {}, {}))
            del self._taken[number]

    @contextmanager
    def supposing(self, trials: Sequence[FrozenTrial]) -> Iterator[None]:
        """Let trials be as given while the body runs, which may `take` them again."""
        before = [self._taken.get(trial.number) for trial in trials]
        for trial in trials:
            self.take(trial)
        try:
            yield
        finally:
            for trial, known in zip(trials, before, strict=True):
                if known is None:
                    self.drop(trial.number)
                else:
                    self._put(trial.number, known)

    def at_step(self, trial: FrozenTrial, step: int) -> tuple[int, int]:
        """Count the rivals that reported better than a trial at a step, and all others there."""
        value = trial.intermediate_values[step]
        return self._stands(self._at_steps[self.bracket(trial), step], value)

    def at_rung(self, trial: FrozenTrial, rung: int, value: float) -> tuple[int, int]:
        """Count the rivals that completed a rung better than a trial, and all others there."""
        return self._stands(self._at_rungs[self.bracket(trial), rung], value)

    def _stands(self, values: Values, value: float) -> tuple[int, int]:
        ahead = values.above(value) if self._maximize else values.below(value)
        return ahead, len(values) - 1

    def _put(self, number: int, now: _Taken) -> None:
        was = self._taken.get(number, _Taken(now.bracket, {}, {}))
        self._taken[number] = now
        _change(self._at_steps, now.bracket, was.reports, now.reports)
        _change(self._at_rungs, now.bracket, was.rungs, now.rungs)


def rungs(trial: FrozenTrial) -> dict[int, float]:
    """Give the values at which a trial completed rungs of successive halving."""
    return {
        int(key.removeprefix(RUNG)): value
        for key, value in trial.system_attrs.items()
        if key.startswith(RUNG)
    }


def _change(
    places: Places, bracket: int | None, was: Mapping[int, float], now: Mapping[int, float]
) -> None:
    for place, value in was.items():
        if now.get(place) != value:
            places[bracket, place].remove(value)
    for place, value in now.items():
        if was.get(place) != value:
            places[bracket, place].add(value)
