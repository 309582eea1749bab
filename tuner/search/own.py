"""Own samplers with Optuna's interface: a Sobol sequence and a Gaussian process.

A new one is created for each draw; its randomness depends only on the study's seed and the trial's
number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tuner.config import ParameterValue
from tuner.ledger.records import FIXED
from tuner.search.encoding import Encoding, Rows
from tuner.search.mirror import violation
from tuner.search.space import IndependentSampler
from tuner.search.transfer import Source, columns

if TYPE_CHECKING:
    from tuner.search import gp

MOST_AWAITED = 16
"""Values that are waited for because of running trials, at most."""


class WholeSampler(IndependentSampler):
    """Draws all parameters of a trial at once, when the first is asked for."""

    def __init__(self) -> None:
        self._params: dict[str, ParameterValue] | None = None

    def whole(
        self, study: Study, trial: FrozenTrial, fixed: dict[str, Any]
    ) -> dict[str, ParameterValue]:
        """Draw the parameters that vary; `fixed` ones are given."""
        raise NotImplementedError

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a parameter of the draw."""
        if self._params is None:
            self._params = self.whole(study, trial, dict(trial.system_attrs.get(FIXED, {})))
        return self._params[param_name]


class SobolSampler(WholeSampler):
    """Draws for trial n the n-th point of a scrambled Sobol sequence over the whole space.

    Parameters of every schedule and optimizer have a coordinate; a trial uses those that it has.
    """

    def __init__(self, space: Encoding, index: int, *, seed: int) -> None:
        super().__init__()
        self._space = space
        self._index = index
        self._seed = seed

    def whole(
        self, study: Study, trial: FrozenTrial, fixed: dict[str, Any]
    ) -> dict[str, ParameterValue]:
        """Return the point of this trial's index."""
        space = self._space
        (row,) = space.snapped(space.fixed(space.sobol(self._index, 1, self._seed), fixed))
        return space.decode(row)


REFUTED = -1.0
"""Log evidence below which a source is left out of a draw."""


class GPSampler(WholeSampler):
    """Draws what `gp.proposed` proposes, from the trials with values and those that run.

    Until `startup_trials` have values, and as many as run, draws come from `start`. With `sources`,
    earlier studies to learn from, every second one does, and none once the trials support a source.
    """

    def __init__(
        self,
        space: Encoding,
        start: SobolSampler,
        *,
        maximize: bool,
        seed: Sequence[int],
        startup_trials: int,
        sources: Sequence[Source] = (),
        allowed: Callable[[Rows], NDArray[np.bool_]] | None = None,
    ) -> None:
        super().__init__()
        self._space = space
        self._start = start
        self._sign = -1.0 if maximize else 1.0
        self._seed = seed
        self._startup_trials = startup_trials
        self._sources = sources
        self._allowed = allowed

    def whole(
        self, study: Study, trial: FrozenTrial, fixed: dict[str, Any]
    ) -> dict[str, ParameterValue]:
        """Return the most promising point."""
        space = self._space
        trials = study.get_trials(deepcopy=False)
        others = [one for one in trials if one.number != trial.number]
        known = [one for one in others if one.state == TrialState.COMPLETE]
        running = [one for one in others if one.state == TrialState.RUNNING and one.params]
        # beside many others, values of a few would decide what all of them try
        enough = max(self._startup_trials, min(len(running), MOST_AWAITED))
        if not len(space) or (len(known) < enough and not self._sources):
            return self._start.whole(study, trial, fixed)
        from tuner.search import gp

        losses = np.array([self._sign * float(one.value or 0.0) for one in known])
        rows = _rows(space, known)
        limits = _Limits(space, known, rows)
        sources = list(self._sources) if limits.reachable else []
        supported = False
        if sources and known:
            evidence = gp.evidence(space, rows, losses, columns(sources, rows))
            sources = [one for one, log in zip(sources, evidence, strict=True) if log > REFUTED]
            supported = bool(evidence.max() > 0)
        # trials where sources predict the best cannot show that others are better
        begins = not sources or (not supported and trial.number % 2)
        if len(known) < enough and begins:
            return self._start.whole(study, trial, fixed)
        row = gp.proposed(
            space,
            rows,
            losses if limits.reachable else limits.losses,
            _rows(space, running),
            rng=np.random.default_rng(self._seed),
            fixed=fixed,
            columns=partial(columns, sources) if sources else None,
            allowed=self._allowed,
            feasible=limits.feasible,
            feasibility=limits.feasibility,
        )
        return space.decode(row)


class _Limits:
    """What is known of the study's constraints.

    Until a trial satisfies them, what is to be minimised is their violation. Trials that were
    stopped have none: they count as a little worse than the worst.
    """

    def __init__(self, space: Encoding, known: Sequence[FrozenTrial], rows: Rows) -> None:
        measured = np.array([bool(one.constraints) for one in known], dtype=bool)  # [trial]
        self.reachable = True  # or there are no constraints
        self.feasible: NDArray[np.bool_] | None = None
        self.feasibility: gp.Feasibility | None = None
        if not measured.any():
            return
        found = np.array([violation(one) for one in known])
        feasible = measured & (found == 0)
        self.reachable = bool(feasible.any())
        if self.reachable:
            own = [one for one in known if one.constraints]
            excesses = np.array([list(one.constraints.values()) for one in own])
            self.feasible = feasible
            from tuner.search import gp

            self.feasibility = gp.Feasibility(space, rows[measured], excesses)
        worst = found.max()
        self.losses = np.where(measured, found, worst + 0.1 * (worst - found[measured].min()))


def _rows(space: Encoding, trials: Sequence[FrozenTrial]) -> Rows:
    rows = np.array([space.encode(trial.params) for trial in trials])
    return rows.reshape(len(trials), len(space))
