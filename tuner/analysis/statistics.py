"""Intervals and tests for means and paired differences: Student's t, the bootstrap, Holm's method.

Pure functions of samples; the random generator is an argument. A sample is a vector of finite
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its confidence interval, which covers the true mean at `level`."""

    mean: float
    low: float  # -inf, and high inf, if the sample is too small
    high: float
    level: float
    n: int

    @property
    def above(self) -> bool:
        """Whether all of it lies above zero."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """Whether all of it lies below zero."""
        return self.high < 0

    def as_json(self) -> dict[str, Any]:
        """Return the interval for JSON; an infinite end is None."""
        ends = {"low": self.low, "high": self.high}
        finite = {key: end if math.isfinite(end) else None for key, end in ends.items()}
        return {"mean": self.mean, **finite, "level": self.level, "pairs": self.n}


def t_interval(sample: ArrayLike, level: float = 0.95) -> Interval:
    """Return Student's t interval for the mean of a normal sample [n].

    The interval of a single number is the whole line; that of equal numbers has no width.
    """
    values = _checked(sample, level)
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Interval(mean=mean, low=-np.inf, high=np.inf, level=level, n=n)
    if (values == values[0]).all():  # their computed mean may differ by rounding
        mean, half = float(values[0]), 0.0
    else:
        from scipy.special import stdtrit

        half = float(stdtrit(n - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(n))
    return Interval(mean=mean, low=mean - half, high=mean + half, level=level, n=n)


def bootstrap_interval(
    sample: ArrayLike, rng: np.random.Generator, level: float = 0.95, resamples: int = 10_000
) -> Interval:
    """Return the bootstrap percentile interval for the mean of a sample [n].

    It assumes no distribution, and is too narrow for small samples: use `t_interval` below about
    ten. Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    values = _checked(sample, level)
    mean, n = float(values.mean()), len(values)
    if n == 1:
        return Interval(mean=mean, low=-np.inf, high=np.inf, level=level, n=n)
    if (values == values[0]).all():
        mean = low = high = float(values[0])
    else:
        means = values[rng.integers(n, size=(resamples, n))].mean(axis=1)  # [resample]
        low, high = map(float, np.quantile(means, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(mean=mean, low=low, high=high, level=level, n=n)


def p_below(sample: ArrayLike, bound: float) -> float:
    """Return the p-value of Student's test that the mean of a sample [n] lies below a bound.

    It is 1 for a single number, and for equal numbers 0 or 1.
    """
    values = _checked(sample, 0.5)
    if len(values) == 1 or (values == values[0]).all():
        return float(len(values) == 1 or values[0] >= bound)
    from scipy.special import stdtr

    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(stdtr(len(values) - 1, (values.mean() - bound) / error))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for their number.

    Rejecting those that are at most `alpha` rejects any true hypothesis with a probability of at
    most `alpha`, whatever the dependence. Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    adjusted, highest = {}, 0.0
    for index, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - index) * p_values[name]))
        adjusted[name] = highest
    return adjusted


def simultaneous(level: float, comparisons: int) -> float:
    """Return the level of each interval for which all hold together at `level` (Bonferroni)."""
    return 1 - (1 - level) / max(1, comparisons)


def _checked(sample: ArrayLike, level: float) -> np.ndarray:
    values = np.asarray(sample, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"expected finite numbers, at least one, got {sample!r}")
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    return values
