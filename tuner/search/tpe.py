"""TPE over columns: the same draws as Optuna's sampler, without a pass over all trials per draw.

Optuna's TPESampler compares the distributions of all trials, sorts them and converts their
parameters again for every parameter that it draws. This sampler does that once for each change of a
trial. The draws are the same: Optuna's estimators and random numbers, on the same observations in
the same order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.sampler import default_gamma
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tuner.config import Range, Space, StudySpec
from tuner.search.mirror import violation
from tuner.search.space import all_distributions

NOTHING, COMPLETE, PRUNED, RUNNING = range(4)
KINDS = {
    TrialState.COMPLETE: COMPLETE,
    TrialState.PRUNED: PRUNED,
    TrialState.RUNNING: RUNNING,
}
BEFORE_ANY_REPORT = 1.0
"""Optuna's rank of a trial pruned without a report; the rank of others is minus their last step."""
Numbers = NDArray[np.int64]


class Observations:
    """What TPE reads of a study's trials, as columns by trial number."""

    def __init__(self, spec: StudySpec) -> None:
        self._sign = 1.0 if spec.study.direction == "minimize" else -1.0
        self._distributions = all_distributions(spec.space)
        self._kinds = np.zeros(0, dtype=np.int8)  # [number]
        self._ranks = np.zeros(0)  # [number], of pruned trials: minus their last step
        self._losses = np.zeros(0)  # [number], lower is better
        self._violations = np.zeros(0)  # [number], of constraints; 0: feasible
        self._params = {  # [number] each; nan where a trial has no such parameter
            name: np.zeros(0) for name in self._distributions
        }
        self._spaces: list[frozenset[str]] = []  # of the finished trials, each once
        # reads the parameters of a running trial, whether or not all of them are drawn
        self._optunas = TPESampler(multivariate=True)

    def update(self, trial: FrozenTrial) -> None:
        """Add a trial or replace it, in the form of `Mirror.for_sampler`."""
        number, kind = trial.number, KINDS.get(trial.state, NOTHING)
        self._make_room(number)
        self._kinds[number] = kind
        if kind == NOTHING:
            return
        if kind == COMPLETE:
            self._losses[number] = self._sign * cast("float", trial.value)
            self._violations[number] = violation(trial)
        elif kind == PRUNED:
            last = trial.last_step
            self._ranks[number] = BEFORE_ANY_REPORT if last is None else -last
            value = 0.0 if last is None else self._sign * trial.intermediate_values[last]
            self._losses[number] = value
        if kind != RUNNING:
            space = frozenset(trial.distributions)
            if space not in self._spaces:
                self._spaces.append(space)
        params = self._optunas._get_params(trial, cast("Study", None))  # the study is not used
        for name, distribution in self._distributions.items():
            known = name in params
            value = distribution.to_internal_repr(params[name]) if known else math.nan
            self._params[name][number] = value

    def _make_room(self, number: int) -> None:
        more = number + 1 - len(self._kinds)
        if more > 0:
            more = max(more, len(self._kinds), 64)
            self._kinds = np.append(self._kinds, np.zeros(more, dtype=np.int8))
            self._ranks = np.append(self._ranks, np.zeros(more))
            self._losses = np.append(self._losses, np.zeros(more))
            self._violations = np.append(self._violations, np.zeros(more))
            for name, column in self._params.items():
                self._params[name] = np.append(column, np.full(more, np.nan))

    def outside(self, space: Space) -> Numbers:
        """Return the numbers of the trials whose rate is outside of a narrower space."""
        lr, rates = space.lr, self._params.get("lr")
        if rates is None or not isinstance(lr, Range):
            return np.zeros(0, dtype=np.int64)
        return np.flatnonzero((rates < lr.low) | (rates > lr.high))  # nan is not outside

    def finished(self, outside: Numbers) -> int:
        """Return the number of completed and pruned trials, without those `outside`."""
        finished = (self._kinds == COMPLETE) | (self._kinds == PRUNED)
        return int(np.count_nonzero(finished) - np.count_nonzero(finished[outside]))

    def shared_space(self) -> frozenset[str]:
        """Return the names of the parameters that all finished trials have."""
        return frozenset.intersection(*self._spaces) if self._spaces else frozenset()

    def split(self, number: int, outside: Numbers) -> tuple[Numbers, Numbers]:
        """Return the numbers of the better and of the other trials, without `number` and `outside`.

        The better ones are the best tenth of the finished trials, at most 25: completed ones by
        value, then pruned ones by their last step and their report there, then infeasible ones by
        their violation, then diverged ones. Of equal trials the earlier one is better. Running
        trials are among the others.
        """
        kinds = self._kinds.copy()
        kinds[number] = NOTHING
        kinds[outside] = NOTHING
        violating = self._violations > 0
        completed = np.flatnonzero((kinds == COMPLETE) & ~violating)
        infeasible = np.flatnonzero((kinds == COMPLETE) & violating)
        pruned = np.flatnonzero(kinds == PRUNED)
        pruned = pruned[np.lexsort((self._losses[pruned], self._ranks[pruned]))]  # a stable sort
        silent = self._ranks[pruned] == BEFORE_ANY_REPORT
        count = default_gamma(len(completed) + len(infeasible) + len(pruned))
        parts = (
            completed[np.argsort(self._losses[completed], kind="stable")],
            pruned[~silent],
            infeasible[np.argsort(self._violations[infeasible], kind="stable")],
            pruned[silent],
        )
        below = np.concatenate(parts)[:count]
        kinds[below] = NOTHING
        return np.sort(below), np.flatnonzero(kinds)

    def parameters(
        self, numbers: Numbers, space: Mapping[str, BaseDistribution]
    ) -> dict[str, NDArray[np.float64]]:
        """Return the parameters, [trial] each, of those trials that have all of `space`.

        The values are in Optuna's internal representation: a choice is its index.
        """
        columns = {name: self._params[name][numbers] for name in space}
        whole = np.ones(len(numbers), dtype=bool)
        for column in columns.values():
            whole &= ~np.isnan(column)
        return {name: column[whole] for name, column in columns.items()}


class ColumnTPESampler(TPESampler):
    """Draws the same as Optuna's TPESampler, from observations stored as columns."""

    def __init__(
        self, observations: Observations, space: Space, *, seed: int, n_startup_trials: int
    ) -> None:
        """Draw from `space`, whose range of the rate may be narrower than the observations'."""
        super().__init__(seed=seed, n_startup_trials=n_startup_trials)
        self._observations = observations
        self._space = all_distributions(space)
        self._outside = observations.outside(space)
        self._halves: tuple[Numbers, Numbers] | None = None  # the same for the whole draw

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters that all finished trials have, which are drawn together."""
        names = self._observations.shared_space()
        return {name: self._space[name] for name in sorted(names & self._space.keys())}

    def _sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space or self._observations.finished(self._outside) < self._n_startup_trials:
            return {}
        return self._sample(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a draw of a parameter that not all trials have."""
        if self._observations.finished(self._outside) < self._n_startup_trials:
            return self._random_sampler.sample_independent(
                study, trial, param_name, param_distribution
            )
        return self._sample(study, trial, {param_name: param_distribution})[param_name]

    def _sample(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self._halves is None:
            self._halves = self._observations.split(trial.number, self._outside)
        below, above = (
            self._parzen_estimator_cls(
                self._observations.parameters(half, search_space),
                search_space,
                self._parzen_estimator_parameters,
            )
            for half in self._halves
        )
        samples = below.sample(self._rng.rng, self._n_ei_candidates)
        gain = self._compute_acquisition_func(samples, below, above)
        best = self._compare(samples, gain)
        return {
            name: distribution.to_external_repr(best[name])
            for name, distribution in search_space.items()
        }
