"""Batch sizes: the gradient noise scale, the critical batch size, and settings that follow a batch.

With a batch of B rows the squared norm of the gradient is, on average, |G|² + tr(Σ)/B, where G is
the gradient of all rows and Σ the covariance of the gradients of single ones. Their ratio
tr(Σ)/|G|² is the simple noise scale (McCandlish et al., arXiv 1812.06162, equation 2.9): a batch
that is much smaller is mostly noise, and one that is much larger gains little. The critical batch
size is measured by the steps to a loss, S = S_min (1 + B_crit/B) (equation 2.11).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.9
RESAMPLES = 500
ADJUSTED = ("sgd", "adam", "adamw", "nadam", "rmsprop")
"""Optimizers whose settings follow the batch by a rule with a source."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A number of rows and its interval; infinite where it is not determined."""

    rows: float
    low: float
    high: float


def noise_scale(
    small: Sequence[float],  # squared norm of the gradient of a small batch [step]
    big: Sequence[float],  # and of a big one, at the same parameters [step]
    rows: tuple[int, int],  # of the small and the big batch
) -> Size:
    """Return the simple noise scale by gradients of two batch sizes (Appendix A.1).

    |G|² and tr(Σ) are unbiased and averaged over steps before they are divided. The interval is by
    a bootstrap over blocks of steps, since neighbours are alike.
    """
    few, many = rows
    if not 0 < few < many:
        raise ValueError(f"rows: expected a small and a big batch, got {rows}")
    of_small, of_big = np.asarray(small, dtype=float), np.asarray(big, dtype=float)
    square = (many * of_big - few * of_small) / (many - few)  # |G|² [step]
    trace = (of_small - of_big) / (1 / few - 1 / many)  # tr(Σ) [step]
    block = max(round(math.sqrt(len(square))), 1)
    starts = np.arange(0, len(square), block)
    sums = np.array([np.add.reduceat(one, starts) for one in (square, trace)])  # [2, block]
    drawn = np.random.default_rng(0).integers(len(starts), size=(RESAMPLES, len(starts)))
    of_squares, of_traces = sums[:, drawn].sum(axis=2)  # [resample]
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    # no mean of two draws, as they may be infinite
    low, high = np.quantile(_ratio(of_traces, of_squares), tails, method="inverted_cdf")
    middle = _ratio(trace.sum()[None], square.sum()[None])[0]
    return Size(rows=float(middle), low=float(low), high=float(high))


def _ratio(trace: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Return the quotient, infinite where there is no gradient beside the noise."""
    safe = np.where(square > 0, square, 1.0)
    return np.where(square > 0, np.maximum(trace, 0.0) / safe, math.inf)


def critical_batch_size(batch_sizes: Sequence[float], steps: Sequence[float]) -> Size:
    """Return the critical batch size by the steps to one loss at each batch size.

    The logarithm of S_min (1 + B_crit/B) is fitted by least squares; the interval holds the values
    whose errors are not significantly larger. It takes at least three sizes.
    """
    sizes, counts = np.asarray(batch_sizes, dtype=float), np.log(np.asarray(steps, dtype=float))
    if len(np.unique(sizes)) < 3:
        raise ValueError(f"expected at least three batch sizes, got {len(np.unique(sizes))}")
    tried = np.geomspace(sizes.min() / 100, sizes.max() * 100, 2001)
    shape = np.log1p(tried[:, None] / sizes)  # [tried, size]
    left = counts - shape
    errors = ((left - left.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    freedom = len(sizes) - 2
    # a normal likelihood, its variance integrated over; at least half a percent of the steps
    weight = -(freedom + 1) / 2 * np.log(errors + len(sizes) * 0.005**2)
    below = np.cumsum(np.exp(weight - weight.max()))
    tail = (1 - LEVEL) / 2
    low, high = (float(np.interp(q * below[-1], below, tried)) for q in (tail, 1 - tail))
    if high > sizes.max() * 50:
        high = math.inf
    return Size(rows=float(tried[errors.argmin()]), low=low, high=high)


def steps_to(loss: float, steps: Sequence[float], losses: Sequence[float]) -> float:
    """Return when a curve first reaches a loss, between its points; infinite if it does not."""
    for place, value in enumerate(losses):
        if value <= loss:
            if not place:
                return float(steps[0])
            before, after = losses[place - 1], value
            share = (before - loss) / (before - after)
            return float(steps[place - 1] + share * (steps[place] - steps[place - 1]))
    return math.inf


def adjusted(optimizer: str, settings: Mapping[str, float], times: float) -> dict[str, float]:
    """Return the settings of an optimizer that change for a batch `times` as large.

    - SGD: its momentum is an average over steps, so it keeps its length in rows: momentum^times
      (Busbridge et al., arXiv 2307.13813). The rate over 1 - momentum is proportional to the batch
      (Goyal et al., arXiv 1706.02677).
    - Adam, AdamW, NAdam, RMSprop: 1 - beta (1 - alpha) is proportional to the batch, and eps falls
      with its square root, as the rate grows with it (Malladi et al., arXiv 2205.10287).

    Betas are 0 at least.
    """
    if optimizer == "sgd":
        return {"momentum": settings["momentum"] ** times} if settings["momentum"] else {}
    found = {
        name: max(1 - times * (1 - settings[name]), 0.0)
        for name in ("beta1", "beta2", "alpha")
        if name in settings
    }
    if "eps" in settings:
        found["eps"] = settings["eps"] / math.sqrt(times)
    return found


def rate_factor(optimizer: str, settings: Mapping[str, float], times: float) -> float:
    """Return by how much the rate grows with a batch `times` as large and adjusted settings."""
    if optimizer != "sgd":
        return math.sqrt(times)
    own = adjusted(optimizer, settings, times)
    if not own:
        return times
    return times * (1 - own["momentum"]) / (1 - settings["momentum"])
