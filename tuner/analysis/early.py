"""How well a study's early values ranked its trials, and what stopping some of them may have cost.

Only trials that ran to the end have both an early and a final value. Where a stopped trial would
have ended is estimated by a line through those (of logarithms if all values are positive), with
normal residuals; it is an extrapolation to worse trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

ENOUGH = 8
"""Completed trials with an early value from which anything is said."""
RESAMPLES = 200
DRAWS = 500


@dataclass(frozen=True, kw_only=True)
class EarlyJudging:
    """What a study says of its own early values."""

    trials: int  # completed, with an early value
    correlation: float  # Kendall's tau of early and final values
    low: float  # of its 95 % bootstrap interval
    high: float
    stopped: int
    lost: float  # probability that a stopped trial would have been the best
    whole: int  # trials to the end that the same steps would have paid for
    fewer: float | None  # by how much their expected best is worse than the best; None: not known


def judge(
    completed: np.ndarray,  # [trial, 2]: early and final values, lower is better
    stopped: Sequence[float],  # early values of stopped trials; infinite ones had no chance
    *,
    whole: int,
    rng: np.random.Generator,
) -> EarlyJudging | None:
    """Return what early values were worth, or None if there are too few trials to tell."""
    completed = completed[np.isfinite(completed).all(axis=1)]
    n = len(completed)
    early, final = completed.T if n else (np.empty(0), np.empty(0))
    if n < ENOUGH or np.ptp(early) == 0 or np.ptp(final) == 0:
        return None
    resamples = rng.integers(n, size=(RESAMPLES, n))
    taus = np.array([kendalltau(early[rows], final[rows]).statistic for rows in resamples])
    taus = taus[np.isfinite(taus)]
    pruned = np.array([value for value in stopped if math.isfinite(value)])
    ends = _ends(early, final, pruned, rng)  # [draw, stopped trial]
    lost = float((ends.min(axis=1) < final.min()).mean()) if len(pruned) else 0.0
    return EarlyJudging(
        trials=n,
        correlation=float(kendalltau(early, final).statistic),
        low=float(np.quantile(taus, 0.025)),
        high=float(np.quantile(taus, 0.975)),
        stopped=len(stopped),
        lost=lost,
        whole=whole,
        fewer=_best_of_fewer(final, ends, whole, rng),
    )


def _ends(
    early: np.ndarray, final: np.ndarray, pruned: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw where stopped trials would have ended, [draw, trial]."""
    positive = min(early.min(), final.min(), pruned.min(initial=math.inf)) > 0
    forward, back = (np.log, np.exp) if positive else (np.asarray, np.asarray)
    x, y = forward(early), forward(final)
    slope, intercept = np.polyfit(x, y, 1)
    slope = max(slope, 0.0)
    intercept = float(y.mean() - slope * x.mean())
    spread = math.sqrt(((y - intercept - slope * x) ** 2).sum() / max(len(x) - 2, 1))
    drawn = intercept + slope * forward(pruned) + spread * rng.normal(size=(DRAWS, len(pruned)))
    return np.asarray(back(drawn))


def _best_of_fewer(
    final: np.ndarray, ends: np.ndarray, whole: int, rng: np.random.Generator
) -> float | None:
    """Return the expected loss of a random choice of `whole` of all trials, all trained."""
    total = len(final) + ends.shape[1]
    if not 0 < whole <= total:
        return None
    best = []
    for draw in ends:
        every = np.concatenate([final, draw])
        best.append(rng.choice(every, whole, replace=False).min() - every.min())
    return float(np.mean(best))
