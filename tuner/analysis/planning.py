"""What a law of loss curves recommends: how long to decay, and how long to train for a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tuner.analysis.curve_law import CurveLaw

DECAYS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
"""Shares of a horizon over which a decay may take place."""
PRECISE = 1.01
"""Factor within which a horizon is found."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A run that was not trained, and its predicted last loss with an interval."""

    rate: float  # peak
    decay: float  # share of the horizon
    loss: float
    low: float
    high: float


def best_decay(
    law: CurveLaw,
    rates_of: Callable[[float, float], np.ndarray],  # [step], of a peak and a share that decays
    peaks: Iterable[float],
    decays: Sequence[float] = DECAYS,
) -> Planned | None:
    """Return the peak and the length of a decay with the lowest predicted loss; None: no peaks."""
    found = []
    for rate in peaks:
        for decay in decays:
            rates = rates_of(rate, decay)
            band = law.predict(rates, np.array([len(rates)]))
            loss, low, high = (float(one[0]) for one in (band.mean, band.low, band.high))
            found.append(Planned(rate=rate, decay=decay, loss=loss, low=low, high=high))
    return min(found, key=lambda one: one.loss, default=None)


def horizon_for(
    loss_after: Callable[[int], float], target: float, *, least: int, most: int
) -> int | None:
    """Return the shortest horizon, within one percent, after which a loss is at most `target`.

    `loss_after` falls with the horizon. Return None if `most` steps are too few.
    """
    if loss_after(least) <= target:
        return least
    if loss_after(most) > target:
        return None
    while most > least * PRECISE and most - least > 1:
        middle = max(least + 1, min(most - 1, round(math.sqrt(least * most))))
        least, most = (least, middle) if loss_after(middle) <= target else (middle, most)
    return most
