"""How the best learning rate moves with a scale: horizon, batch size, width or any other number.

Each rung is a small grid of rates at one size of each scale. Its best rate is the bottom of a
curve through the best values, in the logarithm of the rate; its uncertainty is by the residuals of
that curve. What seeds have in common at all rates is taken out first. The rungs are fitted together
(`together`), since they have much of the shape of their curves in common: how skewed they are, and
about how narrow. So a rung with much noise is known by the others.

The logarithms of the best rates are then a linear function of the logarithms of all scales
together, fitted by Bayes' rule: slopes have a normal prior around 0, and rungs differ from the line
by their own uncertainty and by a scatter that is common to all and is integrated over. So a slope
that two rungs hardly determine has a wide interval, and what is known of the scatter from one
ladder serves the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from scipy.optimize import least_squares
from scipy.special import logsumexp, ndtr, ndtri

LEVEL = 0.9
WINDOW = math.log(8.0)
"""Rates up to this far from the lowest value, in logarithms, are in the parabola."""
NEAR = math.log(4.5)
"""Rates up to this far from the best one are in the curve that is fitted with other rungs."""
SKEW, MOST_SKEW, CURVATURES = 0.2, 0.5, 2.0
"""Prior deviation of the common skew, its bound, and the usual factor between curvatures."""
BORROWED = 3
"""Weight of the other rungs' noise, in trials."""
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """The trials of a rung."""

    sizes: Mapping[str, float]
    rates: Sequence[float]  # [trial]
    losses: Sequence[float]  # [trial]; not finite: diverged
    seeds: Sequence[int]  # [trial]


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


def together(grids: Sequence[Grid]) -> list[Rung]:
    """Return the best rate of each grid, fitted with the others'. Raise as `rung` does.

    The loss of a grid is a bottom, an offset for each seed, and half of its curvature times
    u²(1 + skew·u) at the logarithm u of the rate over the best one. The skew is common to all, and
    curvatures differ by a factor of about `CURVATURES`.
    """
    alone = [rung(one.sizes, one.rates, one.losses) for one in grids]
    # without a bottom of its own a grid says nothing of the others, nor they of it
    bowls = [place for place, one in enumerate(alone) if not one.edge and one.curvature > 0]
    if len(bowls) < 2:
        return alone
    parts = [_part(grids[place], alone[place]) for place in bowls]
    start = math.log(float(np.median([alone[place].curvature for place in bowls])))
    count = len(parts)
    noises = _noises(parts)

    def left(values: np.ndarray) -> np.ndarray:  # [2 + 2·grid] -> [residual]
        skew, usual, shifts, curvatures = (
            values[0],
            values[1],
            values[2 : 2 + count],
            values[-count:],
        )
        found = [np.array([skew / SKEW]), (curvatures - usual) / math.log(CURVATURES)]
        for (x, y, seeds), noise, shift, curvature in zip(
            parts, noises, shifts, curvatures, strict=True
        ):
            u = x - shift
            bowl = math.exp(curvature) / 2 * u**2 * (1 + skew * u)
            found.append(_without_seeds(y - bowl, seeds) / noise)
        return np.concatenate(found)

    begin = np.concatenate([[0.0, start], np.zeros(count), np.full(count, start)])
    bounds = np.concatenate([[MOST_SKEW, np.inf], np.full(count, WINDOW), np.full(count, np.inf)])
    fitted = least_squares(left, begin, bounds=(-bounds, bounds))
    covariance = np.linalg.pinv(fitted.jac.T @ fitted.jac)
    result = list(alone)
    for number, place in enumerate(bowls):
        one, shift = alone[place], float(fitted.x[2 + number])
        error = math.sqrt(max(float(covariance[2 + number, 2 + number]), 0.0))
        spacing = float(np.diff(np.unique(np.log(grids[place].rates))).mean())
        result[place] = replace(
            one,
            rate=one.rate * math.exp(shift),
            error=min(math.hypot(error, spacing / 10), WINDOW),
            curvature=math.exp(float(fitted.x[2 + count + number])),
        )
    return result


Part: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Logarithms of rates over the best one alone, losses and seeds; [trial]."""


def _part(grid: Grid, alone: Rung) -> Part:
    """Return the trials near the best rate."""
    x = np.log(np.asarray(grid.rates, dtype=float) / alone.rate)
    y, seeds = np.asarray(grid.losses, dtype=float), np.asarray(grid.seeds)
    known = np.isfinite(y)
    distances = np.sort(np.abs(np.unique(x[known])))
    reach = max(NEAR, float(distances[FEWEST - 1]) + 1e-9)
    used = known & (np.abs(x) <= reach)
    return x[used], y[used], seeds[used]


def _without_seeds(values: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Return values [trial] less the mean of their seed."""
    found = values.copy()
    for one in np.unique(seeds):
        found[seeds == one] -= found[seeds == one].mean()
    return found


def _noises(parts: Sequence[Part]) -> list[float]:
    """Return the deviation of losses from the curve of each grid; few trials borrow from others."""
    squares, freedoms = [], []
    for x, y, seeds in parts:
        columns = np.column_stack([_without_seeds(x**power, seeds) for power in (3, 2, 1)])
        values = _without_seeds(y, seeds)
        found, *_ = np.linalg.lstsq(columns, values, rcond=None)
        freedom = max(len(x) - len(np.unique(seeds)) - 3, 1)
        squares.append(float(((values - columns @ found) ** 2).sum()))
        freedoms.append(freedom)
    usual = float(
        np.median([square / freedom for square, freedom in zip(squares, freedoms, strict=True)])
    )
    least = max(usual / 100, 1e-24)
    return [
        math.sqrt(max((square + BORROWED * usual) / (freedom + BORROWED), least))
        for square, freedom in zip(squares, freedoms, strict=True)
    ]


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


def less_moved(one: Slope, other: Slope) -> float:
    """Return the probability that the best rate moves less by one slope than by the other.

    Slopes are taken as normally distributed and independent.
    """
    rng = np.random.default_rng(0)
    width = 2 * ndtri((1 + LEVEL) / 2)
    draws = [rng.normal(each.mean, (each.high - each.low) / width, 20_000) for each in (one, other)]
    return float((np.abs(draws[0]) < np.abs(draws[1])).mean())


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
