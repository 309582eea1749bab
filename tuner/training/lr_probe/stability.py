"""What curves at many rates say: which rates break, which learn nothing, and which is the fastest.

The curves of one optimiser begin at the same weights and go through the same batches, and one of
them is at rate 0: it shows what each batch's loss is when nothing is learnt. All that is looked at
is differences from that curve, measured in the best rate's progress, so neither adding a number to
the loss nor multiplying it changes an answer, and the noise of batches cancels.

- *progress* of a rate: how far the loss of the last quarter of the steps is below rate 0's.
- It **breaks** where the loss or the gradient is not finite or the guard stopped it; where it makes
  less than `LITTLE` of the best progress although a lower rate makes more (it jumped away, or its
  units died); or, where nothing is random, where it stays above the level of a lower rate without
  coming nearer, although the gradient is there: the last quarter's mean is hardly lower than that
  of the quarter before, or higher. So a step that jumps across the minimum for ever breaks, also
  where no loss can explode.
- It learns **nothing** where it makes less than `LITTLE` of the best progress, as do lower ones.
- The **fastest** of the stable ones: with random batches, where the logarithm of what is left to
  the lowest loss of all falls by most a step, until that is lost in noise; without, of those that
  have come as low as any, where the logarithm of the distance that is left has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

LITTLE = 0.05
"""A rate that makes less than this share of the best progress has learnt nothing."""

MOST = 0.9
"""Rates that make this share of the best progress, and are stable, are suggested."""

OFF = 0.01
"""Within this share of the best progress a loss has arrived, and may stay where it is."""

STALLED = 0.02
"""A loss stays where it falls by less than this share of what is left in a quarter of the steps."""

ALIKE = 0.05
"""Rates whose paces differ by this share are as fast as each other."""

RETURNING = 0.3
"""A loss that was thrown up comes back where this share of it, or less, is left after a quarter."""

NOISY, EXACT = 0.02, 1e-10
"""What is left when a run has arrived: of the loss with random batches, of the gradient without."""


class Behavior(IntEnum):
    """What a rate did in the steps of the probe."""

    NOTHING = 0  # learnt nothing
    LEARNS = 1
    RETURNS = 2  # thrown above where it began, and coming back
    BREAKS = 3


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Losses at several rates, from the same weights on the same batches, rising in rate."""

    rates: np.ndarray  # float64 [rate], above 0
    losses: np.ndarray  # float64 [rate, step]; nan from where the guard stopped it
    norms: np.ndarray  # float64 [rate, step], of gradients
    still: np.ndarray  # float64 [step], losses at rate 0

    def joined(self, other: Curves) -> Curves:
        """Add curves at other rates."""
        rates, places = np.unique(np.append(self.rates, other.rates), return_index=True)
        return Curves(
            rates=rates,
            losses=np.concatenate([self.losses, other.losses])[places],
            norms=np.concatenate([self.norms, other.norms])[places],
            still=self.still,
        )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the curves of one optimiser say."""

    rates: np.ndarray  # float64 [rate]
    verdicts: np.ndarray  # int64 [rate]
    progress: np.ndarray  # float64 [rate], in the best one's; nan where it broke at once
    fastest: int | None  # its place among the rates; None: nothing learns

    @property
    def breaks(self) -> int | None:
        """Give the place of the lowest rate that breaks."""
        broken = np.flatnonzero(self.verdicts == Behavior.BREAKS)
        return int(broken[0]) if len(broken) else None


@np.errstate(all="ignore")  # losses may be anything at all
def assess(curves: Curves) -> Reading:
    """Judge every rate."""
    below = curves.losses - curves.still  # [rate, step]
    finite = np.isfinite(below).all(axis=1) & np.isfinite(curves.norms).all(axis=1)
    third, last = _quarters(below)
    progress = np.where(finite, -last, np.nan)
    most = float(np.nanmax(progress, initial=0.0))
    share = progress / most if most > 0 else np.where(finite, 0.0, np.nan)
    learns = finite & (share >= LITTLE)
    returns = np.zeros_like(learns)
    if np.ptp(curves.still) == 0:  # nothing is random
        quarter = max(1, below.shape[1] // 4)
        moving = curves.norms[:, -quarter:].max(axis=1) > 1e-3 * curves.norms.max(axis=1)
        lower = np.fmax.accumulate(np.append(-np.inf, share))[:-1]  # the best of lower rates
        left = last + most  # [rate], to the lowest level
        learns &= ~(moving & (share < lower - OFF) & (last - third > -STALLED * left))
        returns = finite & ~learns & (left < RETURNING * (third + most))
    first = int(np.argmax(learns)) if learns.any() else len(learns)
    above = np.arange(len(learns)) > first
    breaks = ~finite | (~returns & ((above & ~learns) | (share < -LITTLE)))
    verdicts = np.select(
        [breaks, learns, returns & above], [Behavior.BREAKS, Behavior.LEARNS, Behavior.RETURNS]
    )
    return Reading(
        rates=curves.rates,
        verdicts=verdicts,
        progress=share,
        fastest=_fastest(curves, share, verdicts),
    )


def _fastest(curves: Curves, share: np.ndarray, verdicts: np.ndarray) -> int | None:
    """Find the fastest of the rates that learn, below the lowest that breaks."""
    broken = np.flatnonzero(verdicts == Behavior.BREAKS)
    stable = np.arange(len(verdicts)) < (broken[0] if len(broken) else len(verdicts))
    able = np.flatnonzero(stable & (verdicts == Behavior.LEARNS))
    if not len(able):
        return None
    if np.ptp(curves.still) > 0:
        paces = _paces(_means((curves.losses - curves.still)[able]))
    else:
        able = able[share[able] >= share[able].max() - OFF]
        paces = _exact_paces(curves.losses[able], curves.norms[able])
    return int(able[_middle(curves.rates[able], paces)])


def _middle(rates: np.ndarray, paces: np.ndarray) -> int:
    """Find the place in the middle of the rates, side by side, that are as fast as any."""
    best = int(np.argmin(paces))
    slower = np.flatnonzero(paces > (1 - ALIKE) * paces[best])
    low = int(slower[slower < best].max(initial=-1)) + 1
    high = int(slower[slower > best].min(initial=len(paces))) - 1
    return int(np.argmin(np.abs(np.log(rates) - np.log(rates[[low, high]]).mean())))


def _paces(below: np.ndarray) -> np.ndarray:
    """Give the mean fall a step of the logarithm of what is left, until it is lost in noise."""
    lowest, start = below.min(), below[:, 0].max()
    least = NOISY * (start - lowest)
    arrived = (below - lowest > least).argmin(axis=1)
    arrived[(below - lowest > least).all(axis=1)] = below.shape[1] - 1
    left = np.maximum(below[np.arange(len(below)), arrived] - lowest, least)
    paces: np.ndarray = np.log(left / (start - lowest)) / np.maximum(arrived, 1)
    return paces


def _exact_paces(losses: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Give the mean change a step of the logarithm of the distance that is left, [rate].

    The distance is told by the gradient's norm, which shows what is steep, and by the root of what
    is left of the loss, which shows what is flat: the slower of the two counts. Momentum makes them
    swing, so the highest of the last quarter is what is left. A run whose gradient arrives at
    `EXACT` of its highest has the mean over the steps until then.
    """
    steps, quarter = norms.shape[1], max(1, norms.shape[1] // 4)
    steep = norms[:, -quarter:].max(axis=1) / norms.max(axis=1)
    start, lowest = losses[:, 0].max(), losses.min()
    flat = np.sqrt((losses[:, -quarter:].max(axis=1) - lowest) / (start - lowest))
    paces: np.ndarray = np.log(np.maximum(np.maximum(steep, flat), EXACT)) / steps
    gone = norms > EXACT * norms.max(axis=1, keepdims=True)
    until = steps - gone[:, ::-1].argmax(axis=1)  # the first step after which it stays below
    arrived = until < steps
    paces[arrived] = math.log(EXACT) / until[arrived]
    return paces


def _quarters(below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the means of the third and of the last quarter of the steps, [rate] each."""
    quarter = max(1, below.shape[1] // 4)
    return below[:, -2 * quarter : -quarter].mean(axis=1), below[:, -quarter:].mean(axis=1)


def _means(below: np.ndarray) -> np.ndarray:
    """Give running means over a tenth of the steps, [rate, step]."""
    width = max(1, below.shape[1] // 10)
    sums = np.cumsum(np.pad(below, ((0, 0), (1, 0))), axis=1)
    means: np.ndarray = (sums[:, width:] - sums[:, :-width]) / width
    return means
