"""A Gaussian process over an encoded space, and the next point to try.

Matern 5/2 with a length scale for each dimension (Rasmussen and Williams, "Gaussian Processes for
Machine Learning", 2006, chapters 2, 4 and 5), hyperparameters by maximum a posteriori, and the
logarithm of expected improvement (Ament et al., arXiv 2310.20708) over sampled candidates. Losses
are minimised.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import lsq_linear, minimize
from scipy.special import erfcx, log_ndtr, logsumexp, ndtr

from tuner.search.encoding import Encoding, Rows

Vector = NDArray[np.float64]
SQRT5 = 5.0**0.5
JITTER = 1e-8

LENGTH, SIGNAL, NOISE = (1.0, 1.0), (1.0, 1.0), (0.01, 1.5)
"""Log-normal priors: median and standard deviation of the logarithm."""
BOUNDS = (0.05, 20.0), (0.05, 20.0), (1e-6, 1.0)
FITTED = 120
"""Points that hyperparameters are fitted to, at most; the best of them and an even choice."""
CONDITIONED = 256
"""Points that predictions rest on, at most."""
CANDIDATES, NEIGHBOURS, REFINED = 512, 512, 256
STEPS = (0.2, 0.05, 0.02)
"""Standard deviations of neighbours' steps: of the best trials', then of the best candidates'."""
INTERCEPT, TRUST = 1.0, 0.5
"""Prior standard deviations: of the trend's intercept, and of the weight of the sources' sum."""
LEVEL = 10.0
"""The same of the intercept in `evidence`: what is common to all trials speaks for no source."""
FANTASIES = 16
"""Joint draws of the values of running trials, over which expected improvement is averaged."""


def _prior(dimensions: int) -> tuple[Vector, Vector]:
    """Return mean and standard deviation of log hyperparameters, [length scales, signal, noise]."""
    medians = np.r_[np.full(dimensions, LENGTH[0]), SIGNAL[0], NOISE[0]]
    return np.log(medians), np.r_[np.full(dimensions, LENGTH[1]), SIGNAL[1], NOISE[1]]


def squared_distances(features: Rows, groups: NDArray[np.int64], dimensions: int) -> Vector:
    """Return squared distances by dimension, [dimension, point, point]."""
    squares = np.zeros((dimensions, len(features), len(features)))
    for column, group in zip(features.T, groups, strict=True):
        squares[group] += (column[:, None] - column[None, :]) ** 2
    return squares


def objective(theta: Vector, squares: Vector, losses: Vector) -> tuple[float, Vector]:
    """Return the negative log posterior of log hyperparameters, up to a constant, and gradient.

    `squares` are those of `squared_distances`; `theta` is as in `_prior`. (Rasmussen and Williams,
    equations 5.8 and 5.9.)
    """
    dimensions = len(squares)
    signal, noise = np.exp(theta[dimensions:])
    weighted = squares * np.exp(-2 * theta[:dimensions])[:, None, None]
    r = np.sqrt(weighted.sum(0))
    decay = np.exp(-SQRT5 * r)
    shape = (1 + SQRT5 * r + 5 / 3 * r * r) * decay
    k = signal * shape
    k[np.diag_indices(len(losses))] += noise + JITTER
    lower = cholesky(k, lower=True, check_finite=False)
    alpha = cho_solve((lower, True), losses, check_finite=False)
    inverse = cho_solve((lower, True), np.eye(len(losses)), check_finite=False)
    mean, deviation = _prior(dimensions)
    z = (theta - mean) / deviation
    value = 0.5 * losses @ alpha + np.log(np.diag(lower)).sum() + 0.5 * z @ z
    outer = 0.5 * (inverse - np.outer(alpha, alpha))
    slope = outer * (signal * 5 / 3 * (1 + SQRT5 * r) * decay)  # by half of r squared
    gradient = np.r_[
        weighted.reshape(dimensions, -1) @ slope.ravel(),
        signal * (outer * shape).sum(),
        noise * np.trace(outer),
    ]
    return float(value), gradient + z / deviation


def fitted(features: Rows, groups: NDArray[np.int64], dimensions: int, losses: Vector) -> Vector:
    """Return log hyperparameters that maximise the posterior, from the prior's medians on."""
    return _fitted(
        features.tobytes(), features.shape[1], groups.tobytes(), dimensions, losses.tobytes()
    )


@lru_cache(maxsize=64)
def _fitted(features: bytes, width: int, groups: bytes, dimensions: int, losses: bytes) -> Vector:
    """Fit, once for the same data: trials that are drawn together, or again, share it."""
    squares = squared_distances(
        np.frombuffer(features).reshape(-1, width),
        np.frombuffer(groups, dtype=np.int64),
        dimensions,
    )
    limits = np.log([BOUNDS[0]] * dimensions + list(BOUNDS[1:]))
    start, _ = _prior(dimensions)
    found = minimize(
        objective,
        start,
        args=(squares, np.frombuffer(losses)),
        jac=True,
        method="L-BFGS-B",
        bounds=limits,
        options={"maxiter": 50},
    )
    theta: Vector = found.x
    theta.flags.writeable = False
    return theta


def usual(dimensions: int, noise: float) -> Vector:
    """Return log hyperparameters that are fitted to nothing: the prior's medians, and a noise."""
    theta, _ = _prior(dimensions)
    theta[-1] = np.log(noise)
    return theta


class Posterior:
    """What is known of the losses at other points."""

    def __init__(
        self, theta: Vector, groups: NDArray[np.int64], features: Rows, losses: Vector
    ) -> None:
        self._theta = theta
        self._scale = np.exp(-theta[:-2])[groups]  # [feature]
        self._signal, self._noise = np.exp(theta[-2:])
        self.losses = losses  # [point]
        self._points = features * self._scale  # [point, feature]
        k = self._kernel(self._points, self._points)
        k[np.diag_indices(len(losses))] += self._noise + JITTER
        self._lower = cholesky(k, lower=True, check_finite=False)
        self._alpha = cho_solve((self._lower, True), losses, check_finite=False)

    @property
    def noise(self) -> float:
        """The variance of the noise."""
        return float(self._noise)

    def _kernel(self, one: Rows, other: Rows) -> Rows:
        squares = (one * one).sum(1)[:, None] + (other * other).sum(1) - 2 * one @ other.T
        r = np.sqrt(np.maximum(squares, 0.0))
        shape: Rows = (1 + SQRT5 * r + 5 / 3 * r * r) * np.exp(-SQRT5 * r)
        return float(self._signal) * shape

    def predict(self, features: Rows) -> tuple[Vector, Vector]:
        """Return mean and variance, without noise, at other points, each [point]."""
        cross = self._kernel(features * self._scale, self._points)
        whitened = solve_triangular(self._lower, cross.T, lower=True, check_finite=False)
        variance = np.maximum(self._signal - (whitened * whitened).sum(0), 1e-12)
        return cross @ self._alpha, variance

    def whitened(self, columns: Rows) -> Rows:
        """Return columns whose noise is that of independent standard normals, [point, column]."""
        found: Rows = solve_triangular(self._lower, columns, lower=True, check_finite=False)
        return found

    def left_out(self) -> Vector:
        """Return the mean at each point given all others (section 5.4.2, equation 5.12)."""
        inverse = self.whitened(np.eye(len(self.losses)))
        predicted: Vector = self.losses - self._alpha / (inverse * inverse).sum(0)
        return predicted

    def joint(self, features: Rows) -> tuple[Vector, Rows]:
        """Return mean and covariance of noisy losses at other points, [point], [point, point]."""
        points = features * self._scale
        cross = self._kernel(points, self._points)
        whitened = solve_triangular(self._lower, cross.T, lower=True, check_finite=False)
        covariance = self._kernel(points, points) - whitened.T @ whitened
        covariance[np.diag_indices(len(points))] += self._noise + JITTER
        return cross @ self._alpha, covariance

    def extended(self, features: Rows, losses: Rows) -> Posterior:
        """Return the posterior given more points with draws of their losses, [point, draw].

        Its means are [point, draw]. The Cholesky factor grows by the new points' rows.
        """
        more = features * self._scale
        cross = self._kernel(more, self._points)  # [more, point]
        side = solve_triangular(self._lower, cross.T, lower=True, check_finite=False).T
        corner = self._kernel(more, more) - side @ side.T
        corner[np.diag_indices(len(more))] += self._noise + JITTER
        known = len(self.losses)
        grown = copy.copy(self)
        grown._lower = np.zeros((known + len(more),) * 2)
        grown._lower[:known, :known] = self._lower
        grown._lower[known:, :known] = side
        grown._lower[known:, known:] = cholesky(corner, lower=True, check_finite=False)
        grown._points = np.r_[self._points, more]
        before = np.broadcast_to(self.losses.reshape(known, 1), (known, losses.shape[1]))
        grown.losses = np.r_[before, losses]  # [point, draw]
        grown._alpha = cho_solve((grown._lower, True), grown.losses, check_finite=False)
        return grown


def log_expected_improvement(mean: Vector, variance: Vector, best: Vector) -> Vector:
    """Return the logarithm of the expected improvement on `best`, which never underflows."""
    deviation = np.sqrt(variance)
    z = (best - mean) / deviation
    tail = z < -1
    near, far = np.where(tail, 0.0, z), np.where(tail, z, -1.0)
    density = np.exp(-near * near / 2) / np.sqrt(2 * np.pi)
    # density + z * distribution = density * (1 + z * Mills' ratio), about density / z**2 far out
    ratio = 1 + far * np.sqrt(np.pi / 2) * erfcx(-far / np.sqrt(2))
    ratio = np.where(far < -1e4, 1 / (far * far), ratio)
    log_tail = np.log(ratio) - far * far / 2 - 0.5 * np.log(2 * np.pi)
    found: Vector = np.where(tail, log_tail, np.log(density + near * ndtr(near)))
    return found + np.log(deviation)


def standardised(losses: Vector) -> Vector:
    """Return losses on a scale that a Gaussian process can use: mean 0, variance 1.

    Their logarithms where all are positive and span more than a factor of three. What is worse than
    the median is compressed, ever more: what matters is that it is worse, not by how much.
    """
    if not len(losses):
        return losses
    if losses.min() > 0 and losses.max() > 3 * losses.min():
        losses = np.log(losses)
    middle = float(np.median(losses))
    scale = middle - float(losses.min())
    above = np.maximum(losses - middle, 0.0)
    if scale > 1e-300 * above.max() and len(losses) >= 4:  # else their ratio would overflow
        losses = np.minimum(losses, middle) + 0.5 * scale * np.log1p(above / scale)
    deviation = float(losses.std())
    centred: Vector = losses - losses.mean()
    return centred / deviation if deviation > 0 else centred


def restored(scores: Rows, losses: Vector) -> Rows:
    """Return the losses that have these scores on the scale of `standardised(losses)`.

    Beyond the best of the losses the scale goes on as it is there, and ends at the worst.
    """
    logs = bool(losses.min() > 0 and losses.max() > 3 * losses.min())
    known = np.log(losses) if logs else losses
    at, places = np.unique(standardised(losses), return_index=True)
    to = known[places]
    if len(at) == 1:
        return np.full(scores.shape, losses[0])
    slope = (to[1] - to[0]) / (at[1] - at[0])
    found = np.where(scores < at[0], to[0] + (scores - at[0]) * slope, np.interp(scores, at, to))
    return np.exp(found) if logs else found


def informative(losses: Vector, most: int) -> NDArray[np.int64]:
    """Return the places of at most `most` points: half the best, half evenly from the others."""
    order = np.argsort(losses, kind="stable")
    if len(order) > most:
        best, others = order[: most // 2], order[most // 2 :]
        even = np.linspace(0, len(others) - 1, most - most // 2).round().astype(int)
        order = np.r_[best, others[even]]
    return np.sort(order)


def settled(count: int) -> int:
    """Return how many of `count` points hyperparameters are fitted to: fits are costly."""
    return count - count % max(1, count // 10)


def trend(posterior: Posterior, columns: Rows) -> Vector:
    """Return the intercept and the weights of the sources that explain the losses best.

    `columns` are what sources predict at the points, [point, source]. Generalised least squares
    (Rasmussen and Williams, section 2.7) with a normal prior around the sources' average; no weight
    is negative, so a source that predicts the losses badly gets none.
    """
    known, sources = columns.shape
    design = np.c_[np.ones(known), columns]
    whitened = posterior.whitened(np.c_[design, posterior.losses])
    deviations = np.r_[INTERCEPT, np.full(sources, TRUST / np.sqrt(sources))]
    prior = np.r_[0.0, np.full(sources, 1 / sources)]
    least = np.r_[-np.inf, np.zeros(sources)]
    found = lsq_linear(
        np.r_[whitened[:, :-1], np.diag(1 / deviations)],
        np.r_[whitened[:, -1], prior / deviations],
        (least, np.inf),
        method="bvls",  # ends at the bounds exactly
    )
    weights: Vector = found.x
    return weights


def evidence(encoding: Encoding, rows: Rows, losses: Vector, columns: Rows) -> Vector:
    """Return how much likelier the losses are if a source predicts them, as a logarithm, [source].

    Each source alone, by the prior of `trend`, is compared with none (a Bayes factor), with
    hyperparameters that are fitted to nothing: above 0 the source helps, and below it misleads.
    """
    theta, _ = _prior(len(encoding))
    kept = informative(losses, CONDITIONED)
    features = encoding.features(rows[kept])
    posterior = Posterior(theta, encoding.groups, features, standardised(losses)[kept])
    known = np.c_[posterior.losses, np.full(len(kept), LEVEL), columns[kept]]
    own, intercept, *predicted = posterior.whitened(known).T
    without, *_ = _explained(own, intercept[:, None])
    found = []
    for one in predicted:
        density, mean, deviation = _explained(own - one, np.c_[TRUST * one, intercept])
        # what the prior and the posterior have of positive weights
        positive = log_ndtr((mean + 1 / TRUST) / deviation) - log_ndtr(1 / TRUST)
        found.append(density - without + positive)
    return np.array(found)


def _explained(residuals: Vector, design: Rows) -> tuple[float, float, float]:
    """Return what coefficients that are standard normal a priori explain of independent noise.

    First the log density, up to a constant; then mean and deviation of the first coefficient.
    """
    inner = np.eye(design.shape[1]) + design.T @ design
    projected = design.T @ residuals
    means, covariance = np.linalg.solve(inner, projected), np.linalg.inv(inner)
    density = -0.5 * (residuals @ residuals - projected @ means + np.linalg.slogdet(inner)[1])
    return float(density), float(means[0]), float(covariance[0, 0] ** 0.5)


class Model:
    """A posterior of losses: a trend that other studies predict, and a Gaussian process."""

    def __init__(
        self,
        encoding: Encoding,
        rows: Rows,
        losses: Vector,
        columns: Callable[[Rows], Rows] | None = None,
    ) -> None:
        """Fit to the losses of rows; `columns` are what each source predicts, [row, source]."""
        self.encoding, self._columns = encoding, columns
        first = settled(len(losses))
        chosen = informative(losses[:first], FITTED)
        kept = informative(losses, CONDITIONED)
        self.losses = standardised(losses)[kept]  # [point]
        features = encoding.features(rows)
        theta, _ = _prior(len(encoding))
        self.weights = np.zeros(1)
        if columns is not None:
            beyond = Posterior(theta, encoding.groups, features[kept], self.losses)
            self.weights = trend(beyond, columns(rows[kept]))
        if first:
            beyond_trend = standardised(losses[:first]) - self.trend(rows[:first])
            theta = fitted(
                features[:first][chosen], encoding.groups, len(encoding), beyond_trend[chosen]
            )
        if columns is not None:
            beyond = Posterior(theta, encoding.groups, features[kept], self.losses)
            self.weights = trend(beyond, columns(rows[kept]))
        self.posterior = Posterior(
            theta, encoding.groups, features[kept], self.losses - self.trend(rows[kept])
        )

    def trend(self, rows: Rows) -> Vector:
        """Return what the sources predict together, [row]."""
        if self._columns is None:
            return np.zeros(len(rows))
        predicted: Vector = self.weights[0] + self._columns(rows) @ self.weights[1:]
        return predicted


class Feasibility:
    """The probability that points satisfy constraints: a Gaussian process for each of these.

    (Gardner et al., "Bayesian Optimization with Inequality Constraints", 2014.)
    """

    def __init__(self, encoding: Encoding, rows: Rows, excesses: Rows) -> None:
        """Fit to what rows exceed constraints by, [row, constraint]; 0 or less is satisfied."""
        self._encoding = encoding
        self._models: list[tuple[Posterior, float]] = []  # and the limit on its scale
        features = encoding.features(rows)
        for column in excesses.T:
            scale = float(np.median(np.abs(column))) or 1.0
            values = np.arcsinh(column / scale)  # far from the limit, only the order matters
            middle, deviation = float(values.mean()), float(values.std()) or 1.0
            kept = informative(np.abs(values), FITTED)  # half of them nearest to the limit
            values = (values - middle) / deviation
            theta = fitted(features[kept], encoding.groups, len(encoding), values[kept])
            posterior = Posterior(theta, encoding.groups, features[kept], values[kept])
            self._models.append((posterior, -middle / deviation))

    def log_probability(self, rows: Rows) -> Vector:
        """Return the logarithm of the probability that all constraints are satisfied, [row]."""
        features, found = self._encoding.features(rows), np.zeros(len(rows))
        for posterior, limit in self._models:
            mean, variance = posterior.predict(features)
            found += log_ndtr((limit - mean) / np.sqrt(variance + posterior.noise))
        return found


def proposed(
    encoding: Encoding,
    rows: Rows,
    losses: Vector,
    running: Rows,
    *,
    rng: np.random.Generator,
    fixed: Mapping[str, Any] | None = None,
    columns: Callable[[Rows], Rows] | None = None,
    allowed: Callable[[Rows], NDArray[np.bool_]] | None = None,
    feasible: NDArray[np.bool_] | None = None,
    feasibility: Feasibility | None = None,
) -> Vector:
    """Return the row to try next, [dimension].

    `rows` have `losses`, in the order of their trials; `running` ones have none yet. `fixed`
    parameters are given. The row is among the `allowed` ones, [row], if any is found. `columns`
    returns what other studies predict for rows, [row, source]. With `feasibility`, what is to be
    improved on is the best of the `feasible` rows, [row], of which there is one at least.
    """
    given = dict(fixed or {})
    model = Model(encoding, rows, losses, columns)
    posterior = model.posterior
    best = model.losses.min(keepdims=True) if len(losses) else np.zeros(1)  # [fantasy]
    if feasibility is not None:
        best = standardised(losses)[feasible].min(keepdims=True)
    if len(running):
        may_be_best = np.ones(len(running), dtype=bool)  # [running]
        if feasibility is not None:
            may_be_best = feasibility.log_probability(running) > np.log(0.5)
        posterior, best = _fantasised(model, running, best, rng, may_be_best)
    tried = {row.tobytes() for row in np.r_[rows, running]}

    def score(points: Rows) -> tuple[Rows, Vector]:
        found = np.unique(encoding.snapped(encoding.fixed(points, given)), axis=0)
        fresh = np.array([row.tobytes() not in tried for row in found])
        found = found[fresh] if fresh.any() else found
        if allowed is not None:
            may = allowed(found)
            found = found[may] if may.any() else found
        mean, variance = posterior.predict(encoding.features(found))
        mean = mean.reshape(len(found), -1) + model.trend(found)[:, None]  # [row, fantasy]
        gains = logsumexp(log_expected_improvement(mean, variance[:, None], best), axis=1)
        if feasibility is not None:
            gains = gains + feasibility.log_probability(found)
        return found, gains

    points = encoding.sobol(0, CANDIDATES, int(rng.integers(2**31)))
    if len(losses):
        ranks = losses if feasible is None else np.where(feasible, losses, np.inf)
        good = rows[np.argsort(ranks, kind="stable")[:5]]
        points = np.r_[points, encoding.neighbours(good, NEIGHBOURS, STEPS[0], rng)]
    candidates, gains = score(points)
    for step in STEPS[1:]:
        top = candidates[np.argsort(-gains, kind="stable")[:10]]
        candidates, gains = score(np.r_[top, encoding.neighbours(top, REFINED, step, rng)])
    row: Vector = candidates[gains.argmax()]
    return row


def _fantasised(
    model: Model,
    running: Rows,
    best: Vector,
    rng: np.random.Generator,
    may_be_best: NDArray[np.bool_],  # [running]
) -> tuple[Posterior, Vector]:
    """Return the posterior given draws of the running trials' values, and the best of each draw."""
    features = model.encoding.features(running)
    mean, covariance = model.posterior.joint(features)  # of their losses, noise included
    factor = cholesky(covariance, lower=True, check_finite=False)
    half = rng.standard_normal((len(running), FANTASIES // 2))
    draws = mean[:, None] + factor @ np.c_[half, -half]  # [running, fantasy]
    values = draws + model.trend(running)[:, None]
    lowest = values[may_be_best].min(axis=0, initial=np.inf)
    if len(model.losses):
        lowest = np.minimum(best, lowest)
    return model.posterior.extended(features, draws), lowest
