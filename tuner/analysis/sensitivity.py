"""Sensitivity to the learning rate: what a rate near the best one costs on average.

For trials of one optimizer and schedule, the cost is the mean of the score over a band of rates,
uniform in their logarithm, less the best score. A score counts as at most the score before
training, as in Wortsman et al. (arXiv 2309.14322), who use three decades; the band here reaches
from the best rate by a factor of the square root of ten to each side, as far as rates were tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

import numpy as np

from tuner.analysis.verdicts import Evidence
from tuner.core.outcome import COMPLETED, DIVERGED

REACH = math.sqrt(10)
"""Factor by which the band reaches to each side of the best rate."""
COVERED = 0.6
"""Least share of the band in which rates were tried."""
ENOUGH = 5
"""Least number of rates."""
APART = 1.25
"""Of trials whose rates are within about this factor only the best counts."""
LEVEL = 0.9
RESAMPLES = 200
HUGE = 1e100
"""Scores beyond it have no mean that could be compared, and would overflow."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The cost of rates near the best one, for one optimizer and schedule."""

    optimizer: str
    schedule: str
    best: float  # rate
    low: float  # rate; the band
    high: float  # rate
    cost: float  # mean score over the band, less the best
    least: float  # of its 90 % bootstrap interval
    most: float
    trials: int


def sensitivities(
    found: Sequence[Evidence], baseline: float | None, rng: np.random.Generator
) -> list[Sensitivity]:
    """Return the sensitivity of each optimizer and schedule, the most robust first.

    Those with fewer than five distinct rates, or too few near the best, are left out. `baseline`
    is the best constant predictor's score, if it is known.
    """
    scored = [one for one in found if len(one.scores)]
    start = median_low([float(one.scores[0]) for one in scored]) if scored else math.nan
    if baseline is not None:
        start = min(start, baseline)
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for one in found:
        if one.outcome == DIVERGED or one.exploded:
            score = start
        elif len(one.scores):
            score = min(float(one.scores[-1]), start)
        else:
            continue
        groups.setdefault((one.optimizer, one.schedule), []).append((math.log(one.rate), score))
    ended = {
        (one.optimizer, one.schedule) for one in found if one.outcome == COMPLETED and one.steps
    }
    results = [
        _of(*name, np.array(points), rng) for name, points in groups.items() if name in ended
    ]
    return sorted((one for one in results if one is not None), key=lambda one: one.cost)


def _of(
    optimizer: str, schedule: str, points: np.ndarray, rng: np.random.Generator
) -> Sensitivity | None:
    """Return the sensitivity of trials [trial, (logarithm of the rate, score)], if it is known."""
    x, y = _best_of_each(points)
    if len(x) < ENOUGH or not np.abs(y).max() < HUGE:
        return None
    best, reach = float(x[y.argmin()]), math.log(REACH)
    low, high = max(best - reach, float(x[0])), min(best + reach, float(x[-1]))
    if high - low < COVERED * 2 * reach:
        return None
    resamples = rng.integers(len(points), size=(RESAMPLES, len(points)))
    draws = [cost(*_best_of_each(points[rows]), low, high) for rows in resamples]
    least, most = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Sensitivity(
        optimizer=optimizer,
        schedule=schedule,
        best=math.exp(best),
        low=math.exp(low),
        high=math.exp(high),
        cost=cost(x, y, low, high),
        least=float(least),
        most=float(most),
        trials=len(points),
    )


def cost(x: np.ndarray, y: np.ndarray, low: float, high: float) -> float:
    """Return the mean of a piecewise linear function [point] over a band, less its minimum."""
    at = np.unique(np.concatenate([[low, high], x[(x > low) & (x < high)]]))
    values = np.interp(at, x, y)
    return float(np.trapezoid(values, at) / (high - low) - values.min())


def _best_of_each(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rates that are `APART`, with the best score near each; [rate], [rate]."""
    kept: dict[int, np.ndarray] = {}
    for one in points:
        bin_ = round(one[0] / math.log(APART))
        if bin_ not in kept or one[1] < kept[bin_][1]:
            kept[bin_] = one
    rows = np.array(sorted(map(tuple, kept.values())))
    return rows[:, 0], rows[:, 1]
