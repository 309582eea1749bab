"""How much better than the best trial the best there is may be."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.terminator import RegretBoundEvaluator
from optuna.trial import FrozenTrial, TrialState

ENOUGH = 20
"""Completed trials without which nothing is said."""


def regret_bound(trials: Sequence[FrozenTrial], direction: StudyDirection, seed: int) -> float:
    """Bound the regret of the best completed trial, in the metric's unit; inf: too early to say.

    Optuna's `RegretBoundEvaluator`: upper and lower confidence bounds of a Gaussian process on the
    better half of the completed trials (Makarova et al., arXiv 2104.08166), over the parameters
    that all trials have.
    """
    completed = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if len(completed) < ENOUGH:
        return float("inf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        evaluator = RegretBoundEvaluator(seed=seed)
    return float(evaluator.evaluate(completed, direction))
