"""Classify the curves of many rates: which are unstable, which learn nothing, which is the fastest.

The curves of one optimizer start at the same weights and use the same batches. One of them is at
rate 0 and shows each batch's loss without learning. Only differences from that curve are used,
relative to the best rate's progress, so results do not depend on the offset and scale of the loss,
and the noise of batches cancels.

- *progress* of a rate: how far the mean loss of the last quarter of the steps is below rate 0's.
- A rate is **unstable** if its loss or gradient is not finite or the guard stopped it; if its
  progress is less than `LITTLE` of the best although a lower rate makes more (the weights jumped
  away, or units died); or, without random batches, if its loss stays above the level of a lower
  rate without approaching it although the gradient is not small: the last quarter's mean is hardly
  lower, or higher, than the quarter before. So a step that jumps across the minimum for ever is
  unstable, also where no loss can explode.
- A rate shows **no learning** if its progress is less than `LITTLE` of the best, as is that of
  lower ones.
- The **fastest** of the stable rates: with random batches, the one whose log distance to the lowest
  loss of all falls fastest per step, until it is lost in noise; without, among the rates that have
  come as low as any, the one whose log distance to the minimum has fallen fastest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

LITTLE = 0.05
"""Progress below this share of the best counts as no learning."""

NEAR_BEST = 0.9
"""Stable rates with this share of the best progress are suggested."""

CONVERGED = 0.01
"""A loss within this share of the best progress has converged, and may stay constant."""

STALLED = 0.02
"""A loss has stalled if it falls by less than this share of the rest in a quarter of the steps."""

SIMILAR = 0.05
"""Rates whose speeds differ by no more than this share are equally fast."""

RECOVERING = 0.3
"""A raised loss is recovering if at most this share of it is left after a quarter of the steps."""

NOISY, EXACT = 0.02, 1e-10
"""Remaining share at convergence: of the loss with random batches, of the gradient norm without."""


class Behavior(IntEnum):
    """Behavior of a rate within the steps of the probe."""

    NO_LEARNING = 0
    LEARNS = 1
    RECOVERS = 2  # rose above its initial loss, and is falling again
    UNSTABLE = 3


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Losses at several ascending rates, from the same weights on the same batches."""

    rates: np.ndarray  # float64 [rate], above 0
    losses: np.ndarray  # float64 [rate, step]; nan from the step at which the guard stopped
    norms: np.ndarray  # float64 [rate, step], of gradients
    baseline_losses: np.ndarray  # float64 [step], losses at rate 0

    def joined(self, other: Curves) -> Curves:
        """Return these curves together with curves at other rates."""
        rates, places = np.unique(np.append(self.rates, other.rates), return_index=True)
        return Curves(
            rates=rates,
            losses=np.concatenate([self.losses, other.losses])[places],
            norms=np.concatenate([self.norms, other.norms])[places],
            baseline_losses=self.baseline_losses,
        )


@dataclass(frozen=True, kw_only=True)
class RateClassification:
    """Classification of the rates of one optimizer."""

    rates: np.ndarray  # float64 [rate]
    behaviors: np.ndarray  # int64 [rate], a `Behavior` each
    progress: np.ndarray  # float64 [rate], relative to the best; nan where not finite
    fastest: int | None  # index among the rates; None if no rate learns

    @property
    def lowest_unstable(self) -> int | None:
        """The index of the lowest unstable rate."""
        unstable = np.flatnonzero(self.behaviors == Behavior.UNSTABLE)
        return int(unstable[0]) if len(unstable) else None


@np.errstate(all="ignore")  # losses may be any float
def assess(curves: Curves) -> RateClassification:
    """Classify every rate."""
    below = curves.losses - curves.baseline_losses  # [rate, step]
    finite = np.isfinite(below).all(axis=1) & np.isfinite(curves.norms).all(axis=1)
    third, last = _quarters(below)
    progress = np.where(finite, -last, np.nan)
    most = float(np.nanmax(progress, initial=0.0))
    share = progress / most if most > 0 else np.where(finite, 0.0, np.nan)
    learns = finite & (share >= LITTLE)
    recovers = np.zeros_like(learns)
    if np.ptp(curves.baseline_losses) == 0:  # no random batches
        quarter = max(1, below.shape[1] // 4)
        moving = curves.norms[:, -quarter:].max(axis=1) > 1e-3 * curves.norms.max(axis=1)
        lower = np.fmax.accumulate(np.append(-np.inf, share))[:-1]  # best progress of lower rates
        left = last + most  # [rate], distance to the lowest level
        learns &= ~(moving & (share < lower - CONVERGED) & (last - third > -STALLED * left))
        recovers = finite & ~learns & (left < RECOVERING * (third + most))
    first = int(np.argmax(learns)) if learns.any() else len(learns)
    above = np.arange(len(learns)) > first
    unstable = ~finite | (~recovers & ((above & ~learns) | (share < -LITTLE)))
    behaviors = np.select(
        [unstable, learns, recovers & above],
        [Behavior.UNSTABLE, Behavior.LEARNS, Behavior.RECOVERS],
    )
    return RateClassification(
        rates=curves.rates,
        behaviors=behaviors,
        progress=share,
        fastest=_fastest(curves, share, behaviors),
    )


def _fastest(curves: Curves, share: np.ndarray, behaviors: np.ndarray) -> int | None:
    """Return the index of the fastest learning rate below the lowest unstable one."""
    unstable = np.flatnonzero(behaviors == Behavior.UNSTABLE)
    stable = np.arange(len(behaviors)) < (unstable[0] if len(unstable) else len(behaviors))
    able = np.flatnonzero(stable & (behaviors == Behavior.LEARNS))
    if not len(able):
        return None
    if np.ptp(curves.baseline_losses) > 0:
        speeds = _speeds(_means((curves.losses - curves.baseline_losses)[able]))
    else:
        able = able[share[able] >= share[able].max() - CONVERGED]
        speeds = _exact_speeds(curves.losses[able], curves.norms[able])
    return int(able[_middle(curves.rates[able], speeds)])


def _middle(rates: np.ndarray, speeds: np.ndarray) -> int:
    """Return the index of the middle of the contiguous rates that are about as fast as the best.

    Both arguments are [rate].
    """
    best = int(np.argmin(speeds))
    slower = np.flatnonzero(speeds > (1 - SIMILAR) * speeds[best])
    low = int(slower[slower < best].max(initial=-1)) + 1
    high = int(slower[slower > best].min(initial=len(speeds))) - 1
    return int(np.argmin(np.abs(np.log(rates) - np.log(rates[[low, high]]).mean())))


def _speeds(below: np.ndarray) -> np.ndarray:
    """Return the mean change per step of the log distance to the lowest loss, until lost in noise.

    `below` is [rate, step]; the result is [rate], more negative if faster.
    """
    lowest, start = below.min(), below[:, 0].max()
    least = NOISY * (start - lowest)
    arrived = (below - lowest > least).argmin(axis=1)
    arrived[(below - lowest > least).all(axis=1)] = below.shape[1] - 1
    left = np.maximum(below[np.arange(len(below)), arrived] - lowest, least)
    speeds: np.ndarray = np.log(left / (start - lowest)) / np.maximum(arrived, 1)
    return speeds


def _exact_speeds(losses: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Return the mean change per step of the log distance to the minimum, [rate].

    The distance is estimated by the gradient norm, which is dominated by steep directions, and by
    the square root of the excess loss, dominated by flat ones; the slower of the two counts.
    Momentum makes them oscillate, so the highest value of the last quarter is used. A run whose
    gradient norm falls to `EXACT` of its highest has the mean over the steps until then. Both
    arguments are [rate, step].
    """
    steps, quarter = norms.shape[1], max(1, norms.shape[1] // 4)
    steep = norms[:, -quarter:].max(axis=1) / norms.max(axis=1)
    start, lowest = losses[:, 0].max(), losses.min()
    flat = np.sqrt((losses[:, -quarter:].max(axis=1) - lowest) / (start - lowest))
    speeds: np.ndarray = np.log(np.maximum(np.maximum(steep, flat), EXACT)) / steps
    gone = norms > EXACT * norms.max(axis=1, keepdims=True)
    until = steps - gone[:, ::-1].argmax(axis=1)  # the first step from which it stays below
    arrived = until < steps
    speeds[arrived] = math.log(EXACT) / until[arrived]
    return speeds


def _quarters(below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the means over the third and the last quarter of the steps, [rate] each."""
    quarter = max(1, below.shape[1] // 4)
    return below[:, -2 * quarter : -quarter].mean(axis=1), below[:, -quarter:].mean(axis=1)


def _means(below: np.ndarray) -> np.ndarray:
    """Return running means over a tenth of the steps, [rate, step]."""
    width = max(1, below.shape[1] // 10)
    sums = np.cumsum(np.pad(below, ((0, 0), (1, 0))), axis=1)
    means: np.ndarray = (sums[:, width:] - sums[:, :-width]) / width
    return means
