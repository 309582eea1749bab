"""Rungs: how a trial ranks among its competitors, and successive halving by that rank.

The algorithm is asynchronous successive halving (Li et al., "A System for Massively Parallel
Hyperparameter Tuning", MLSys 2020, algorithm 2), as Optuna's SuccessiveHalvingPruner implements it:
a trial that reaches a rung continues if it is among the best share of all trials that have reached
it so far, one in the reduction factor. The first trials of a rung always continue.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import NamedTuple

from optuna.trial import FrozenTrial

RUNG = "completed_rung_"
"""Prefix of Optuna's attribute that holds the value with which a trial completed a rung."""


class SortedValues:
    """Numbers that can be counted below or above a value; sorted on the first query."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._sorted = False

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._values)

    def add(self, value: float) -> None:
        """Add a value."""
        if self._sorted:
            insort(self._values, value)
        else:
            self._values.append(value)

    def remove(self, value: float) -> None:
        """Remove a value that was added."""
        self._sort()
        index = bisect_left(self._values, value)
        assert self._values[index] == value, "only an added value can be removed"
        del self._values[index]

    def below(self, value: float) -> int:
        """Return how many values are lower."""
        self._sort()
        return bisect_left(self._values, value)

    def above(self, value: float) -> int:
        """Return how many values are higher."""
        self._sort()
        return len(self._values) - bisect_right(self._values, value)

    def _sort(self) -> None:
        if not self._sorted:
            self._values.sort()
            self._sorted = True


class _Known(NamedTuple):
    bracket: int | None
    reports: Mapping[int, float]  # by step
    rungs: Mapping[int, float]  # value at which each rung was completed


ByBracket = defaultdict[tuple[int | None, int], SortedValues]
"""Values by bracket, and step or rung."""


class RungRankings:
    """The reports of all competitors in a study and their values at rungs, by bracket."""

    def __init__(self, *, maximize: bool, bracket: Callable[[FrozenTrial], int | None]) -> None:
        self._maximize = maximize
        self._bracket = bracket
        self._at_steps: ByBracket = defaultdict(SortedValues)
        self._at_rungs: ByBracket = defaultdict(SortedValues)
        self._known: dict[int, _Known] = {}

    def bracket(self, trial: FrozenTrial) -> int | None:
        """Return the bracket in which a trial competes; None if there are no brackets."""
        known = self._known.get(trial.number)
        return self._bracket(trial) if known is None else known.bracket

    def update(self, trial: FrozenTrial) -> None:
        """Add a competitor, or replace its earlier reports."""
        bracket = self.bracket(trial)
        self._put(trial.number, _Known(bracket, trial.intermediate_values, rungs(trial)))

    def remove(self, number: int) -> None:
        """Remove a trial that is no longer a competitor; ignore an unknown one."""
        known = self._known.get(number)
        if known is not None:
            self._put(number, _Known(known.bracket, {}, {}))
            del self._known[number]

    @contextmanager
    def with_reports(self, trials: Sequence[FrozenTrial]) -> Iterator[None]:
        """Rank with these trials while the body runs, which may update them; then restore."""
        before = [self._known.get(trial.number) for trial in trials]
        for trial in trials:
            self.update(trial)
        try:
            yield
        finally:
            for trial, known in zip(trials, before, strict=True):
                if known is None:
                    self.remove(trial.number)
                else:
                    self._put(trial.number, known)

    def at_step(self, trial: FrozenTrial, step: int) -> tuple[int, int]:
        """Return how many competitors reported better at a step, and how many others reported."""
        value = trial.intermediate_values[step]
        return self._rank(self._at_steps[self.bracket(trial), step], value)

    def at_rung(self, trial: FrozenTrial, rung: int, value: float) -> tuple[int, int]:
        """Return how many competitors completed a rung better, and how many others completed it."""
        return self._rank(self._at_rungs[self.bracket(trial), rung], value)

    def _rank(self, values: SortedValues, value: float) -> tuple[int, int]:
        ahead = values.above(value) if self._maximize else values.below(value)
        return ahead, len(values) - 1

    def _put(self, number: int, now: _Known) -> None:
        before = self._known.get(number, _Known(now.bracket, {}, {}))
        self._known[number] = now
        _replace(self._at_steps, now.bracket, before.reports, now.reports)
        _replace(self._at_rungs, now.bracket, before.rungs, now.rungs)


def rungs(trial: FrozenTrial) -> dict[int, float]:
    """Return the value at which a trial completed each rung of successive halving."""
    return {
        int(key.removeprefix(RUNG)): value
        for key, value in trial.system_attrs.items()
        if key.startswith(RUNG)
    }


def _replace(
    values: ByBracket, bracket: int | None, before: Mapping[int, float], now: Mapping[int, float]
) -> None:
    for key, value in before.items():
        if now.get(key) != value:
            values[bracket, key].remove(value)
    for key, value in now.items():
        if before.get(key) != value:
            values[bracket, key].add(value)


class SuccessiveHalving:
    """Stops trials at rungs: step `first_rung` times a power of 1 / `continuing`.

    At each the share `continuing` of the trials goes on. The first rung of bracket b is b powers
    later. While fewer than `fewest` trials have reached a rung, all of them go on.
    """

    def __init__(
        self,
        rankings: RungRankings,
        *,
        first_rung: int,
        continuing: Fraction,
        fewest: int = 1,
    ) -> None:
        self._rankings = rankings
        self._fewest = fewest
        self._first_rung = first_rung
        self._continuing = continuing

    def stopped(
        self, group: Sequence[FrozenTrial], judged: Mapping[int, float] | None = None
    ) -> set[int]:
        """Return the numbers of the trials to stop, each at its last report.

        Trials are compared by their last reports, or by the `judged` values of those in it.

        Write the rungs that trials complete into their attributes, where Optuna's samplers and its
        users expect them. All trials that reach a rung together are counted before any is judged,
        and rungs are processed from the lowest up, so the order of the group does not matter.
        """
        values = judged or {}
        stopped = set()
        waiting: defaultdict[int, list[FrozenTrial]] = defaultdict(list)  # by their next rung
        for trial in group:
            completed = rungs(trial)
            following = next(n for n in range(len(completed) + 1) if n not in completed)
            waiting[following].append(trial)
        while waiting:
            rung = min(waiting)
            arrived = [trial for trial in waiting.pop(rung) if self._has_reached(rung, trial)]
            for trial in arrived:
                value = values.get(trial.number, _last_report(trial))
                trial.system_attrs[f"{RUNG}{rung}"] = value
                self._rankings.update(trial)
            for trial in arrived:
                value = trial.system_attrs[f"{RUNG}{rung}"]
                ahead, others = self._rankings.at_rung(trial, rung, value)
                enough = others + 1 >= self._fewest
                if not enough or ahead < max(int((others + 1) * self._continuing), 1):
                    waiting[rung + 1].append(trial)
                else:
                    stopped.add(trial.number)
        return stopped

    def _has_reached(self, rung: int, trial: FrozenTrial) -> bool:
        bracket = self._rankings.bracket(trial) or 0
        step = trial.last_step
        return step is not None and step * self._continuing ** (bracket + rung) >= self._first_rung


def _last_report(trial: FrozenTrial) -> float:
    return float(trial.intermediate_values[max(trial.intermediate_values)])
