"""A law of loss curves: the loss as a function of the whole past of the learning rate.

The family is that of the multi-power law (Luo et al., arXiv 2503.12811). With `s` the rate as a
share of the run's peak and `T` the sum of `s ** q` so far,

    loss(t) = floor + A * T(t)^-alpha + B * T(t)^-nu * sum over changes of the rate k <= t of
              (h(s_k) - h(s_(k-1))) * (1 - (1 + C * s_k^-gamma * (T(t) - T(k)))^-beta)

The second term is progress. The third is what the noise of a rate adds: raising the rate raises
the loss and lowering it lowers the loss, slowly. `h` rises from 0 to 1, linearly near zero and
like a power `p` above. The published law is for one peak rate; here `A`, `B`, `C`, `alpha` and
`p` are smooth functions of the logarithm of the peak, which are fitted to all runs together.
Residuals are of logarithms of losses, under a robust loss function and weak priors.

Bands are CV+ intervals (Barber et al., arXiv 1905.02928): the law is also fitted without each fold
of runs, and the errors of those fits on the runs that they did not see become the width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import t as student

FEWEST = 3
"""Curves to which a law is fitted, at least."""
POINTS, ALL = 12, 240
"""Points of a curve that are fitted, at most; more if all curves together have fewer than `ALL`."""
ENDS = 3
"""The last points of a curve, which are fitted too and count twice if they are among the others."""
NODES = 20
"""Nodes of a schedule by steps, and by changes of the rate; those of points are added."""
SKIPPED, SKIPPED_WARM_UP = 0.04, 0.1
"""Shares of the horizon that are not fitted: the first steps, and at most those of a warm-up."""
LEAST = 1e-6
"""Lowest share of the peak rate, where logarithms need one."""
CONFORMAL = 20
"""Held-out curves from which bands use the quantiles of errors; Student's t for fewer."""

SHARED = ("floor", "a", "alpha", "q", "b", "p", "c", "gamma", "beta", "bend", "nu")
"""Parameters at the reference peak; floor, a, alpha, b, c, beta and bend are logarithms."""
SPREADS = (1.0, 3.0, 1.0, 0.5, 3.0, 0.3, 3.0, 0.5, 1.0, 1.0, 0.3)
"""Standard deviations of their priors."""
SLOPES = (("a", 1), ("a", 2), ("alpha", 1), ("b", 1), ("b", 2), ("c", 1), ("c", 2), ("p", 1))
"""Parameters that depend on the logarithm of the peak, and the powers of it."""
SLOPE_SPREADS = (1.0, 0.4)
"""Standard deviations of the priors of slopes, by power."""
SIZE = len(SHARED) + len(SLOPES)


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """The rates of a run's whole schedule, and the losses measured so far."""

    rates: np.ndarray  # float64 [step], those of steps to come included
    steps: np.ndarray  # int64 [point]: steps done before each measurement, ascending
    losses: np.ndarray  # float64 [point], positive
    group: str | None = None  # curves of a group are held out together

    @property
    def done(self) -> float:
        """The share of the horizon after which the last loss was measured."""
        return float(self.steps[-1]) / len(self.rates)


@dataclass(frozen=True, kw_only=True, eq=False)
class Band:
    """Predicted losses, and an interval for each."""

    steps: np.ndarray  # int64 [point]
    mean: np.ndarray  # float64 [point]
    low: np.ndarray  # float64 [point]
    high: np.ndarray  # float64 [point]


@dataclass(frozen=True, kw_only=True, eq=False)
class CurveLaw:
    """A law that was fitted to curves, and what it said of those that it had not seen."""

    units: _Units
    theta: np.ndarray  # float64 [parameter]
    scale: float  # typical residual of the fit, of logarithms
    folds: tuple[np.ndarray, ...]  # parameters fitted without each fold; empty: too few curves
    held_out: tuple[_HeldOut, ...]  # one a curve, if there are folds
    groups: frozenset[str | None]  # of the curves
    errors: np.ndarray = field(default_factory=lambda: np.empty(0))  # [curve], of ends, relative

    def predict(
        self,
        rates: np.ndarray,  # [step], of the whole schedule
        steps: np.ndarray,  # [point]
        *,
        observed: Curve | None = None,
        level: float = 0.9,
    ) -> Band:
        """Return the losses after `steps` of a run with these rates, and an interval for each.

        `observed` are the first losses of the same run, if there are some. Without enough curves
        to hold some out the interval is unbounded.
        """
        steps = np.asarray(steps, dtype=np.int64)
        before = self._before(observed)
        mean = self._corrected(self.theta, rates, steps, before)
        if not self.folds:
            return Band(
                steps=steps,
                mean=np.exp(mean),
                low=np.zeros(len(steps)),
                high=np.full(len(steps), math.inf),
            )
        each = np.array([self._corrected(one, rates, steps, before) for one in self.folds])
        wrong = self._wrong(steps / len(rates), before)  # [curve, point]
        ends = each[[one.fold for one in self.held_out]] + wrong
        low, high = _interval(ends, level)
        return Band(
            steps=steps,
            mean=np.exp(mean),
            low=np.exp(np.minimum(low, mean)),
            high=np.exp(np.maximum(high, mean)),
        )

    def _before(self, observed: Curve | None) -> _Before | None:
        """Return the part of a run that was observed, and how much its errors tell."""
        if observed is None or not self.held_out:
            return None
        kept = _kept(observed)
        if not kept.any():
            return None
        done = observed.done
        pairs = np.array([(one.before(done), one.at(1.0)) for one in self.held_out])
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        first, last = pairs.T if len(pairs) else (np.zeros(0), np.zeros(0))
        # the slope of a line through zero, with a prior worth two typical curves at one half
        prior = 2 * self.scale**2
        share = float((first @ last + 0.5 * prior) / (first @ first + prior))
        return _Before(curve=observed, kept=kept, done=done, share=min(max(share, 0.0), 1.0))

    def _corrected(
        self, theta: np.ndarray, rates: np.ndarray, steps: np.ndarray, before: _Before | None
    ) -> np.ndarray:  # [point]
        """Return logarithms of losses, moved by what the law missed in the observed part."""
        found = self._logs(theta, rates, steps)
        if before is None:
            return found
        missed = np.log(before.curve.losses) - self._logs(theta, rates, before.curve.steps)
        return found + before.share * _recent(before.curve.steps, missed, before.kept)

    def _logs(self, theta: np.ndarray, rates: np.ndarray, steps: np.ndarray) -> np.ndarray:
        packed = _pack([(np.asarray(rates, dtype=float), np.asarray(steps))], self.units)
        return _logs(theta, packed)[0][0, : len(steps)]

    def _wrong(self, shares: np.ndarray, before: _Before | None) -> np.ndarray:  # [curve, point]
        """Return what folds missed of the curves that they had not seen, at shares of horizons."""
        rows = []
        for one in self.held_out:
            row = np.array([one.at(share) for share in shares])
            if before is not None:
                first = one.before(before.done)
                row = row - before.share * (first if math.isfinite(first) else 0.0)
            rows.append(row)
        return np.array(rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Before:
    curve: Curve
    kept: np.ndarray  # bool [point]
    done: float
    share: float  # of the error so far that is expected at the end


@dataclass(frozen=True, kw_only=True, eq=False)
class _HeldOut:
    """What a fold missed of a curve that it had not seen: logarithms, measured less predicted."""

    fold: int
    shares: np.ndarray  # [point], of the horizon
    missed: np.ndarray  # [point]

    def at(self, share: float) -> float:
        """Return what was missed at a share of the horizon."""
        return float(np.interp(share, self.shares, self.missed))

    def before(self, done: float) -> float:
        """Return what was missed lately at a share of the horizon; nan if nothing was measured."""
        kept = self.shares <= done + 1e-9
        return _recent(self.shares, self.missed, kept)


def _recent(steps: np.ndarray, missed: np.ndarray, kept: np.ndarray) -> float:
    """Return the mean of what was missed in the second half of the kept points."""
    if not kept.any():
        return math.nan
    last = steps[kept][-1]
    return float(missed[kept & (steps >= last / 2)].mean())


def fit(curves: Sequence[Curve], *, folds: int = 5, seed: int = 0) -> CurveLaw:
    """Return the law of curves of one model under several rates and schedules.

    Curves of a group (say, of one schedule) are held out together, so that bands are as wide as
    the errors on schedules that were not used. Raise `ValueError` for fewer than three curves with
    three finite, positive losses each.
    """
    usable = [one for one in curves if _kept(one).sum() >= 3]
    if len(usable) < FEWEST:
        raise ValueError(f"expected at least {FEWEST} curves of three losses, got {len(usable)}")
    units = _units(usable)
    most = max(POINTS, ALL // len(usable))
    points = [_chosen(one, most) for one in usable]
    packed = _pack(
        [(one.rates, one.steps[at]) for one, at in zip(usable, points, strict=True)], units
    )
    logs = np.zeros(packed.at.shape)
    for row, (one, at) in enumerate(zip(usable, points, strict=True)):
        logs[row, : len(at)] = np.log(one.losses[at])
    mean = _start(logs[packed.known])
    theta, scale = _fitted(packed, logs, mean)
    found: list[np.ndarray] = []
    held: dict[int, _HeldOut] = {}
    for number, rows in enumerate(_folds(usable, folds, seed)):
        kept = np.setdiff1d(np.arange(len(usable)), rows)
        found.append(_solve(packed.rows(kept), logs[kept], theta, mean, scale)[0])
        missed = logs[rows] - _logs(found[-1], packed.rows(rows))[0]
        for row, one in zip(rows, missed, strict=True):
            at = points[row]
            held[int(row)] = _HeldOut(
                fold=number,
                shares=usable[row].steps[at] / len(usable[row].rates),
                missed=one[: len(at)],
            )
    ordered = tuple(held[row] for row in sorted(held))
    return CurveLaw(
        units=units,
        theta=theta,
        scale=scale,
        folds=tuple(found),
        held_out=ordered,
        groups=frozenset(one.group for one in usable),
        errors=np.array([abs(math.expm1(-one.missed[-1])) for one in ordered]),
    )


def choose(law: CurveLaw, candidates: Sequence[tuple[np.ndarray, str | None]]) -> int:
    """Return which run would end best, of the rates of whole runs and the groups that they are in.

    A run of a group to which the law was not fitted is chosen only if it is expected to be better
    by more than the mean error on held-out curves.
    """
    error = float(law.errors.mean()) if len(law.errors) else 0.0
    ends = [
        law.predict(rates, np.array([len(rates)])).mean[0]
        * (1.0 if group in law.groups else 1.0 + error)
        for rates, group in candidates
    ]
    return int(np.argmin(ends))


# --- what is fitted


@dataclass(frozen=True, kw_only=True)
class _Units:
    rate: float  # the reference peak
    steps: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Packed:
    """Schedules on nodes, with the points of curves among them; short ones are padded."""

    nodes: np.ndarray  # float64 [curve, node], in units of steps
    shares: np.ndarray  # float64 [curve, node], of the peak rate
    peaks: np.ndarray  # float64 [curve], logarithms, from the reference
    at: np.ndarray  # int64 [curve, point], nodes
    known: np.ndarray  # bool [curve, point]

    def rows(self, some: np.ndarray) -> _Packed:
        """Return some curves."""
        return _Packed(
            nodes=self.nodes[some],
            shares=self.shares[some],
            peaks=self.peaks[some],
            at=self.at[some],
            known=self.known[some],
        )


def _units(curves: Sequence[Curve]) -> _Units:
    peaks = [math.log(one.rates.max()) for one in curves]
    return _Units(
        rate=math.exp(float(np.median(peaks))),
        steps=max(len(one.rates) for one in curves) / 5,
    )


def _kept(curve: Curve) -> np.ndarray:  # bool [point]
    """Return which losses are fitted: finite and positive ones, after the first steps."""
    horizon, peak = len(curve.rates), float(curve.rates.max(initial=0.0))
    if not peak > 0:
        return np.zeros(len(curve.steps), dtype=bool)
    warm_up = int(np.argmax(curve.rates >= 0.99 * peak))
    first = max(SKIPPED * horizon, min(1.5 * warm_up, SKIPPED_WARM_UP * horizon))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.isfinite(curve.losses) & (curve.losses > 0) & (curve.steps >= first))


def _chosen(curve: Curve, most: int) -> np.ndarray:  # int64 [point]
    """Return the points that are fitted: evenly by steps and by changes of the rate together.

    The last ones are added: ends are what a law is asked for.
    """
    kept = np.flatnonzero(_kept(curve))
    last = kept[-ENDS:]
    if len(kept) <= most:
        return np.sort(np.append(kept, last))
    steps = curve.steps[kept]
    changes = np.append(0.0, np.cumsum(np.abs(np.diff(curve.rates))))
    changed = np.append(changes, changes[-1])[steps]
    way = _share(steps.astype(float)) + _share(changed)
    at = np.searchsorted(way, np.linspace(0, way[-1], most))
    return np.sort(np.append(kept[np.unique(np.minimum(at, len(kept) - 1))], last))


def _share(values: np.ndarray) -> np.ndarray:
    """Return how far along ascending values are, from 0 to 1; zeros if they are all the same."""
    span = values[-1] - values[0]
    return np.asarray((values - values[0]) / span if span > 0 else np.zeros(len(values)))


def _pack(runs: Sequence[tuple[np.ndarray, np.ndarray]], units: _Units) -> _Packed:
    """Put schedules, each with the steps of its points, on nodes."""
    rows = [(rates, _nodes(rates, steps), steps) for rates, steps in runs]
    shape = len(rows), max(len(nodes) for _, nodes, _ in rows)
    points = max(len(steps) for _, _, steps in rows)
    nodes, shares = np.zeros(shape), np.zeros(shape)
    at = np.zeros((len(rows), points), dtype=np.int64)
    known = np.zeros((len(rows), points), dtype=bool)
    for row, (rates, own, steps) in enumerate(rows):
        here = np.append(rates, rates[-1])[own] / rates.max()
        nodes[row] = np.append(own, np.full(shape[1] - len(own), own[-1])) / units.steps
        shares[row] = np.append(here, np.full(shape[1] - len(own), here[-1]))
        at[row, : len(steps)] = np.searchsorted(own, steps)
        at[row, len(steps) :] = len(own) - 1
        known[row, : len(steps)] = True
    peaks = np.array([math.log(rates.max() / units.rate) for rates, _, _ in rows])
    return _Packed(nodes=nodes, shares=np.maximum(shares, LEAST), peaks=peaks, at=at, known=known)


def _nodes(rates: np.ndarray, steps: np.ndarray) -> np.ndarray:  # int64 [node]
    """Return steps between which the rate changes little, with those of points among them."""
    horizon = len(rates)
    changes = np.append(0.0, np.cumsum(np.abs(np.diff(rates))))
    even = np.linspace(0.0, 1.0, NODES)
    by_change = np.searchsorted(changes, even * changes[-1])
    first = np.geomspace(1, horizon, NODES // 2).astype(np.int64)
    every = [[0, horizon], (even * horizon).astype(np.int64), by_change, first, steps]
    return np.unique(np.clip(np.concatenate(every), 0, horizon))


def _logs(theta: np.ndarray, packed: _Packed) -> tuple[np.ndarray, np.ndarray]:
    """Return logarithms of losses [curve, point], and derivatives [curve, point, parameter]."""
    own = np.repeat(theta[: len(SHARED), None], len(packed.peaks), axis=1)  # [parameter, curve]
    for (name, power), slope in zip(SLOPES, theta[len(SHARED) :], strict=True):
        own[SHARED.index(name)] += slope * packed.peaks**power
    floor, a, alpha, q, b, p, c, gamma, beta, bend, nu = own[:, :, None]  # each [curve, 1]
    floor, a, alpha, b, c, beta, bend = (
        np.exp(np.clip(one, -60, 60)) for one in (floor, a, alpha, b, c, beta, bend)
    )
    s, ln = packed.shares, np.log(packed.shares)
    widths = np.diff(packed.nodes, axis=1)
    speed = s**q
    past, past_q = _summed(speed, widths), _summed(speed * ln, widths)  # [curve, node]
    rise = (1 + bend) ** p - 1
    above = (1 + s * bend) ** p
    h = (above - 1) / rise
    h_p = (above * np.log1p(s * bend) - h * (1 + bend) ** p * np.log1p(bend)) / rise
    h_bend = bend * p * (s * above / (1 + s * bend) - h * (1 + bend) ** (p - 1)) / rise
    # what a change at a node has done by each point: [curve, point, node]
    middle = _middles(s)
    at, at_q = (np.take_along_axis(one, packed.at, axis=1) for one in (past, past_q))
    since = at[:, :, None] - _middles(past)[:, None, :]
    before = since > 0
    factor = (c * middle**-gamma)[:, None, :]
    x = np.where(before, since, 0.0) * factor
    grown = np.log1p(x)
    left = np.exp(-beta[:, :, None] * grown)
    slope = np.where(before, beta[:, :, None] * left / (1 + x), 0.0)
    done = 1 - left
    change = _changes(h)[:, None, :]
    effect = (change * done).sum(axis=2)  # [curve, point]
    moved = change * slope
    at = np.maximum(at, 1e-9)
    progress = a * at**-alpha
    size = b * at**-nu
    noise = size * effect
    loss = floor + progress + noise
    log_at = np.log(at)
    since_q = at_q[:, :, None] - _middles(past_q)[:, None, :]
    by = {
        "floor": np.broadcast_to(floor, loss.shape),
        "a": progress,
        "alpha": -alpha * log_at * progress,
        "q": -(alpha * progress + nu * noise) * at_q / at
        + size * (moved * factor * since_q).sum(2),
        "b": noise,
        "p": size * (_changes(h_p)[:, None, :] * done).sum(axis=2),
        "c": size * (moved * x).sum(axis=2),
        "gamma": -size * (moved * x * np.log(middle)[:, None, :]).sum(axis=2),
        "beta": size * (change * beta[:, :, None] * grown * left).sum(axis=2),
        "bend": size * (_changes(h_bend)[:, None, :] * done).sum(axis=2),
        "nu": -log_at * noise,
    }
    columns = [by[name] for name in SHARED]
    columns += [by[name] * packed.peaks[:, None] ** power for name, power in SLOPES]
    safe = np.maximum(loss, 1e-12)
    return np.log(safe), np.stack(columns, axis=2) / safe[:, :, None]


def _summed(values: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return the integral up to each node [curve, node], by the trapezoidal rule."""
    parts = (values[:, 1:] + values[:, :-1]) / 2 * widths
    return np.concatenate([np.zeros((len(values), 1)), np.cumsum(parts, axis=1)], axis=1)


def _middles(values: np.ndarray) -> np.ndarray:
    """Return the middle between each node and the one before."""
    return np.concatenate([values[:, :1], (values[:, 1:] + values[:, :-1]) / 2], axis=1)


def _changes(values: np.ndarray) -> np.ndarray:
    """Return the difference of each node and the one before; the first one's from zero."""
    return np.concatenate([values[:, :1], np.diff(values, axis=1)], axis=1)


# --- fitting


def _start(logs: np.ndarray) -> np.ndarray:
    """Return the means of the priors."""
    least, most = math.exp(logs.min()), math.exp(float(np.quantile(logs, 0.9)))
    span = math.log(max(most - least, 1e-3 * least))
    start = {
        "floor": math.log(0.92 * least),
        "a": span,
        "alpha": math.log(0.5),
        "q": 0.7,
        "b": span - 0.7,
        "p": 0.5,
        "c": 1.0,
        "bend": 3.4,
    }
    return np.array([start.get(name, 0.0) for name in SHARED] + [0.0] * len(SLOPES))


def _fitted(packed: _Packed, logs: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the parameters of the best of several starts, and the scale of residuals."""
    scale = 0.003
    ways = [mean]
    for moves in ({"c": 2.0, "beta": -1.0}, {"floor": -0.3, "c": -1.0}, {"c": 3.0, "alpha": -0.5}):
        other = mean.copy()
        for name, move in moves.items():
            other[SHARED.index(name)] += move
        ways.append(other)
    theta = min(
        (_solve(packed, logs, start, mean, scale, evaluations=40) for start in ways),
        key=lambda one: one[1],
    )[0]
    for _ in range(2):
        missed = (logs - _logs(theta, packed)[0])[packed.known]
        scale = max(1.48 * float(np.median(np.abs(missed))), 1e-4)
        theta = _solve(packed, logs, theta, mean, scale)[0]
    return theta, scale


def _solve(
    packed: _Packed,
    logs: np.ndarray,
    start: np.ndarray,
    mean: np.ndarray,
    scale: float,
    evaluations: int = 60,
) -> tuple[np.ndarray, float]:
    """Return the parameters of least robust squares from a start, and the cost."""
    spreads = np.array([*SPREADS, *(SLOPE_SPREADS[power - 1] for _, power in SLOPES)])

    @functools.lru_cache(maxsize=1)  # derivatives are asked for where residuals were
    def both(theta: bytes) -> tuple[np.ndarray, np.ndarray]:
        return _logs(np.frombuffer(theta), packed)

    def residuals(theta: np.ndarray) -> np.ndarray:
        missed = (both(theta.tobytes())[0] - logs)[packed.known]
        return np.concatenate([missed / scale, (theta - mean) / spreads])

    def derivatives(theta: np.ndarray) -> np.ndarray:
        rows = both(theta.tobytes())[1][packed.known]
        return np.concatenate([rows / scale, np.diag(1 / spreads)])

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        found = least_squares(
            residuals,
            start,
            derivatives,
            loss="soft_l1",
            x_scale=spreads,
            max_nfev=evaluations,
            ftol=1e-5,
        )
    return found.x, float(found.cost)


def _folds(curves: Sequence[Curve], count: int, seed: int) -> list[np.ndarray]:
    """Return the rows of each fold; none where a fold would leave too few curves."""
    if count < 2:
        return []
    names = [one.group if one.group is not None else f"\0{row}" for row, one in enumerate(curves)]
    groups = sorted(set(names))
    count = min(count, len(groups))
    drawn = np.random.default_rng(seed).permutation(len(groups))
    of = {groups[group]: place % count for place, group in enumerate(drawn)}
    folds = [np.array([of[name] for name in names]) == fold for fold in range(count)]
    if count < 2 or any((~fold).sum() < FEWEST for fold in folds):
        return []
    return [np.flatnonzero(fold) for fold in folds]


def _interval(ends: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the interval of what held-out curves say of each point; `ends` is [curve, point]."""
    count = len(ends)
    if count >= CONFORMAL:
        ordered = np.sort(ends, axis=0)
        tail = max(math.floor((count + 1) * (1 - level) / 2), 1)
        return ordered[tail - 1], ordered[count - tail]
    half = student.ppf((1 + level) / 2, count - 1) * ends.std(axis=0, ddof=1)
    half = half * math.sqrt(1 + 1 / count)
    middle = ends.mean(axis=0)
    return middle - half, middle + half
