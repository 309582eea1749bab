"""Successive halving as Optuna does it, of one trial or of several that report together.

The algorithm is asynchronous successive halving (Li et al., "A System for Massively Parallel
Hyperparameter Tuning", MLSys 2020, algorithm 2), as Optuna's SuccessiveHalvingPruner has it: a
trial that comes to a rung goes on when it is among the best 1 in `factor` of all that have come
there so far, and the first ones always do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from optuna.trial import FrozenTrial

from tuner.search.rung_rankings import RUNG, Standings, rungs


class Halving:
    """Judges trials at rungs: step `first_rung` times a power of `factor`.

    The first rung of bracket b is b powers later.
    """

    def __init__(self, standings: Standings, *, first_rung: int, factor: int) -> None:
        self._standings = standings
        self._first_rung = first_rung
        self._factor = factor

    def stopped(self, group: Sequence[FrozenTrial]) -> set[int]:
        """Give the numbers of the trials that are stopped, each at its last report.

        Writes the rungs that they complete into their attributes, where Optuna's samplers and
        its users expect them. All that come to a rung together are counted there before any is
        judged, and the rungs come from the lowest up, so the order of the group changes nothing.
        """
        stopped = set()
        waiting: defaultdict[int, list[FrozenTrial]] = defaultdict(list)  # by their next rung
        for trial in group:
            completed = rungs(trial)
            waiting[next(rung for rung in range(len(completed) + 1) if rung not in completed)] += [
                trial
            ]
        while waiting:
            rung = min(waiting)
            here = [trial for trial in waiting.pop(rung) if self._has_come_to(rung, trial)]
            for trial in here:
                trial.system_attrs[f"{RUNG}{rung}"] = _last(trial)
                self._standings.take(trial)
            for trial in here:
                ahead, others = self._standings.at_rung(trial, rung, _last(trial))
                if ahead < max((others + 1) // self._factor, 1):
                    waiting[rung + 1].append(trial)
                else:
                    stopped.add(trial.number)
        return stopped

    def _has_come_to(self, rung: int, trial: FrozenTrial) -> bool:
        bracket = self._standings.bracket(trial) or 0
        step = trial.last_step
        return step is not None and step >= self._first_rung * self._factor ** (bracket + rung)


def _last(trial: FrozenTrial) -> float:
    return float(trial.intermediate_values[max(trial.intermediate_values)])
