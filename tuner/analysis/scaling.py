"""How the best learning rate moves with a scale: horizon, batch size, width or any other number.

Each rung is a small grid of rates at one size of each scale. Its best rate is the bottom of a
parabola through the best values, in the logarithm of the rate; its uncertainty is by the residuals
of that parabola. The logarithms of the best rates are then a linear function of the logarithms of
all scales together, fitted by Bayes' rule: slopes have a normal prior around 0, and rungs differ
from the line by their own uncertainty and by a scatter that is common to all and is integrated
over. So a slope that two rungs hardly determine has a wide interval, and what is known of the
scatter from one ladder serves the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import logsumexp, ndtr

LEVEL = 0.9
WINDOW = math.log(8.0)
"""Rates up to this far from the lowest value, in logarithms, are in the parabola."""
FEWEST = 4
"""Distinct rates with finite values from which a parabola is fitted."""
SLOPE_SPREAD = 0.7
"""Standard deviation of the prior of slopes; published ones lie between -1 and 1."""
SCATTERS = np.geomspace(0.02, 0.8, 25)
"""Possible scatters of rungs around the line, in logarithms of the rate, all equally likely."""
FAR = 10.0
"""Factor of extrapolation from which a line is not to be trusted."""
WIDE = 4.0
"""Factor from the low to the high end of an interval from which it says little."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """The best rate at one size of each scale."""

    sizes: Mapping[str, float]
    rate: float
    error: float  # standard error of the rate's logarithm
    loss: float  # at the best rate
    curvature: float  # of the loss in the logarithm of the rate
    edge: str  # "stability" if the next higher rate diverged, "low" or "high" if none was tried


@dataclass(frozen=True, kw_only=True)
class Slope:
    """The power of a scale by which the best rate moves, and its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The best rate at a target, what a wrong one costs, and reasons not to trust it."""

    target: Mapping[str, float]
    rate: float
    low: float
    high: float
    slopes: Mapping[str, Slope]
    rungs: Sequence[Rung]
    unscaled: float  # the best rate at the largest sizes that were tried
    at_stake: (
        float  # loss above the best at the ends of the interval, by the curvature of the rungs
    )
    warnings: Sequence[str]


def rung(
    sizes: Mapping[str, float],
    rates: Sequence[float],  # [trial]
    losses: Sequence[float],  # [trial]; not finite: diverged
) -> Rung:
    """Return the best rate of a grid. Raise `ValueError` if fewer than four rates have a loss."""
    x, y = np.log(np.asarray(rates, dtype=float)), np.asarray(losses, dtype=float)
    known = np.isfinite(y)
    distinct = np.unique(x[known])
    if len(distinct) < FEWEST:
        raise ValueError(
            f"expected losses at {FEWEST} rates or more, got {len(distinct)} of "
            f"{len(np.unique(x))}; the others diverged or failed"
        )
    means = np.array([y[known & (x == one)].mean() for one in distinct])
    place = int(means.argmin())
    edge = ""
    if place == len(distinct) - 1:
        edge = "stability" if (x > distinct[-1]).any() else "high"
    elif place == 0:
        edge = "low"
    # the nearest rates on each side, the better ones first
    near = np.abs(distinct - distinct[place])
    order = np.argsort(near, kind="stable")
    chosen = [row for row in order if near[row] <= WINDOW][: FEWEST + 1]
    if len(chosen) < FEWEST:
        chosen = list(order[:FEWEST])
    used = known & np.isin(x, distinct[chosen])
    middle = float(distinct[place])
    (curvature, slope, _), errors = _parabola(x[used] - middle, y[used])
    spacing = float(np.diff(np.sort(distinct[chosen])).mean())
    shift = -slope / (2 * curvature) if curvature > 0 else 0.0
    within = float(np.ptp(distinct[chosen]))
    if not curvature > 0 or abs(shift) > within or edge in ("low", "high"):
        # no bottom: the lowest value, known to about the distance of its neighbours
        shift = float(np.clip(shift, -spacing / 2, spacing / 2))
        error = spacing
    else:
        gradient = np.array([slope / (2 * curvature**2), -1 / (2 * curvature), 0.0])
        error = math.hypot(math.sqrt(max(float(gradient @ errors @ gradient), 0.0)), spacing / 10)
    return Rung(
        sizes=dict(sizes),
        rate=math.exp(middle + shift),
        error=min(error, within),
        loss=float(means[place]),
        curvature=max(2 * float(curvature), 0.0),
        edge=edge,
    )


def _parabola(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients of the least squares, highest power first, and their covariance."""
    columns = np.vander(x, 3)
    found, *_ = np.linalg.lstsq(columns, y, rcond=None)
    left = y - columns @ found
    variance = float(left @ left) / max(len(x) - 3, 1)
    return found, variance * np.linalg.pinv(columns.T @ columns)


def predict(rungs: Sequence[Rung], target: Mapping[str, float]) -> Prediction:
    """Return the best rate at a target size of each scale, by the rungs of all ladders."""
    names = list(target)
    sizes = np.log([[one.sizes[name] for name in names] for one in rungs])
    y = np.log([one.rate for one in rungs])
    errors = np.array([one.error for one in rungs])
    middle = sizes.mean(axis=0)
    columns = np.column_stack([np.ones(len(rungs)), sizes - middle])
    at = np.append(1.0, np.log(list(target.values())) - middle)
    prior = np.append(10.0, np.full(len(names), SLOPE_SPREAD)) ** -2.0
    centre = np.append(y.mean(), np.zeros(len(names)))
    weights, means, covariances = [], [], []
    for scatter in SCATTERS:
        variance = errors**2 + scatter**2
        precision = columns.T @ (columns / variance[:, None]) + np.diag(prior)
        covariance = np.linalg.inv(precision)
        mean = covariance @ (columns.T @ (y / variance) + prior * centre)
        left, moved = y - columns @ mean, mean - centre
        weights.append(
            -(np.log(variance).sum() + (left**2 / variance).sum()) / 2
            - (moved**2 * prior).sum() / 2
            + np.linalg.slogdet(covariance)[1] / 2
        )
        means.append(mean)
        covariances.append(covariance)
    weight = np.exp(np.array(weights) - logsumexp(weights))
    of_means, of_covariances = np.array(means), np.array(covariances)
    spread = np.sqrt(np.einsum("i,kij,j->k", at, of_covariances, at) + SCATTERS**2)
    middle_of = of_means @ at
    low, best, high = _quantiles(weight, middle_of, spread)
    slopes = {}
    for place, name in enumerate(names, 1):
        spreads = np.sqrt(of_covariances[:, place, place])
        left_end, mid, right_end = _quantiles(weight, of_means[:, place], spreads)
        slopes[name] = Slope(mean=mid, low=left_end, high=right_end)
    largest = max(rungs, key=lambda one: sum(math.log(one.sizes[name]) for name in names))
    curvature = float(np.median([one.curvature for one in rungs]))
    half = max(high - best, best - low)
    found = Prediction(
        target=dict(target),
        rate=math.exp(best),
        low=math.exp(low),
        high=math.exp(high),
        slopes=slopes,
        rungs=list(rungs),
        unscaled=largest.rate,
        at_stake=curvature * half**2 / 2,
        warnings=(),
    )
    return Prediction(**{**vars(found), "warnings": tuple(_warnings(found))})


def _quantiles(
    weight: np.ndarray, means: np.ndarray, spreads: np.ndarray
) -> tuple[float, float, float]:
    """Return the ends and the middle of the interval of a mixture of normal distributions."""
    grid = np.linspace((means - 6 * spreads).min(), (means + 6 * spreads).max(), 4001)
    below = weight @ ndtr((grid[None] - means[:, None]) / spreads[:, None])
    tail = (1 - LEVEL) / 2
    low, middle, high = np.interp([tail, 0.5, 1 - tail], below, grid)
    return float(low), float(middle), float(high)


def _warnings(found: Prediction) -> Iterator[str]:
    """Yield the reasons not to trust a prediction."""
    for name, size in found.target.items():
        tried = [one.sizes[name] for one in found.rungs]
        times = max(size / max(tried), min(tried) / size)
        if times > FAR:
            yield (
                f"{name} {size:g} is {times:.3g} times beyond what was tried "
                f"({min(tried):g} to {max(tried):g}); a line may not hold for more than {FAR:g}"
            )
        ladder = ladder_of(found.rungs, name)
        steps = np.diff([math.log(one.rate) for one in ladder])
        errors = [math.hypot(a.error, b.error) for a, b in pairwise(ladder)]
        clear = [step for step, error in zip(steps, errors, strict=True) if abs(step) > 2 * error]
        if clear and min(clear) < 0 < max(clear):
            yield f"the best rate goes up and down with {name}, so a line does not describe it"
    for one in found.rungs:
        if one.edge:
            why = (
                "the next higher rate diverged"
                if one.edge == "stability"
                else f"no {'higher' if one.edge == 'high' else 'lower'} rate was tried"
            )
            yield f"at {in_words(one.sizes)} the best rate is the last of the grid: {why}"
    if found.high / found.low > WIDE:
        yield (
            f"the interval spans a factor of {found.high / found.low:.2g}: try more rates or "
            "another rung"
        )


def ladder_of(rungs: Sequence[Rung], name: str) -> list[Rung]:
    """Return the rungs that differ from the largest one in a scale alone, by its size."""
    largest = max(rungs, key=lambda one: sum(math.log(size) for size in one.sizes.values()))
    own = [
        one
        for one in rungs
        if all(one.sizes[other] == largest.sizes[other] for other in largest.sizes if other != name)
    ]
    return sorted(own, key=lambda one: one.sizes[name])


def in_words(sizes: Mapping[str, float]) -> str:
    """Return sizes as text, such as `steps 500, hidden 64`."""
    return ", ".join(f"{name} {size:g}" for name, size in sizes.items())
