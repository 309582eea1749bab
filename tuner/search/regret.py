"""A bound of the regret: how much better than the best trial the optimum may be."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.terminator import RegretBoundEvaluator
from optuna.trial import FrozenTrial, TrialState

MIN_TRIALS_FOR_REGRET = 20
"""Number of completed trials below which no bound is computed."""


def regret_bound(trials: Sequence[FrozenTrial], direction: StudyDirection, seed: int) -> float:
    """Return a bound of the best completed trial's regret, in the metric's unit; inf if too early.

    Optuna's `RegretBoundEvaluator`: upper and lower confidence bounds of a Gaussian process on the
    better half of the completed trials (Makarova et al., arXiv 2104.08166), over the parameters
    that all trials have.
    """
    completed = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if len(completed) < MIN_TRIALS_FOR_REGRET:
        return float("inf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        evaluator = RegretBoundEvaluator(seed=seed)
    return float(evaluator.evaluate(completed, direction))
