"""What the guard's rule 5 remembers of a horizon, and what it makes of it; `guard` has the rule.

A horizon is cut into eighths. Of each, the losses that are far up are counted, and their heights
added up: log(excess / standard / rate²). Losses that are not far up leave no trace, so most steps
of a healthy trial need not be looked at.
"""

from __future__ import annotations

import numpy as np

EIGHTHS = 8
"""Into so many parts the horizon is cut; half of them are looked at."""

FALL = 0.5
"""The mean height of a lost trial falls by less than this from an eighth to the next."""


def remember(
    count: np.ndarray,  # int64 [trial, eighth]
    heights: np.ndarray,  # float64 [trial, eighth], their sums
    at: np.ndarray,  # int64 [trial], the step
    far: np.ndarray,  # bool [trial]
    height: np.ndarray,  # float64 [trial]
    horizon: int,
) -> tuple[np.ndarray, np.ndarray]:  # count and heights anew
    """Take in losses that are far up."""
    count, heights = count.copy(), heights.copy()
    trials = np.flatnonzero(far)
    eighth = np.minimum(at[trials] * EIGHTHS // horizon, EIGHTHS - 1)
    count[trials, eighth] += 1
    heights[trials, eighth] += height[trials]
    return count, heights


def lost(
    count: np.ndarray,  # int64 [trial, eighth]
    heights: np.ndarray,  # float64 [trial, eighth], their sums
    at: np.ndarray,  # int64 [trial], the step
    horizon: int,
    warmup: int | np.ndarray,
    fewest: int,  # losses that an eighth must have to be judged
) -> np.ndarray:  # bool [trial]
    """Tell which trials were far up, and not on their way back, in the last four whole eighths."""
    edges = -(-np.arange(EIGHTHS + 1) * horizon // EIGHTHS)  # the first step of each eighth
    lengths = np.diff(edges)
    if lengths.min() < fewest:
        return np.zeros(len(at), bool)
    half = EIGHTHS // 2
    now = np.minimum(at * EIGHTHS // horizon, EIGHTHS - 1)
    eighths = np.maximum(now, half)[:, None] - half + np.arange(half)  # [trial, 4]
    seen = np.take_along_axis(count, eighths, axis=1)
    means = np.take_along_axis(heights, eighths, axis=1) / seen
    gone: np.ndarray = (now >= half) & (edges[eighths[:, 0]] >= warmup)
    gone &= (2 * seen > lengths[eighths]).all(axis=1)
    gone &= means[:, 0] - means[:, -1] < FALL * (half - 1)
    return gone
