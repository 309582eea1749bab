"""Regimes: was a trial's rate too low, good or too high, or did it diverge, and why we say so.

Pure functions of curves. A regime is relative to the study's best trial, so it may change as long
as trials end. Words: a *score* is the study's metric with its sign turned where higher is better,
so lower is always better. *Progress* is how far a trial came from its *ceiling* (its first score,
or the best constant predictor's where that is lower) to the best score that any trial had by the
same step: 0 nothing, 1 as good as the best. It does not change when the loss is scaled or shifted.

- **diverged**: the guard stopped it, or it ended far above where it began.
- **good**: progress of `GOOD` or more.
- **too low**, **too high**: neither, told apart by what is known best: the signs of the cosines of
  consecutive gradients; else where its rate lies beside the good rates of the same optimiser and
  schedule (or the same optimiser); else its own curve.

Labels beside the regime: *oscillating* and *plateau*; see `_labels`.

The cosines are not measured, they follow from what is: for plain gradient descent (θ' = θ - lr·g,
every step the same data) on a quadratic, L' - L = -lr·(g + g')·g/2 exactly, so
g·g' = -2(L' - L)/lr - |g|². Elsewhere that is the trapezoid rule, wrong by the third derivative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tuner.curves import Chunk
from tuner.outcome import COMPLETED, DIVERGED, PRUNED

TOO_LOW, GOOD_RATE, TOO_HIGH, DIVERGING = "too low", "good", "too high", "diverged"
REGIMES = (TOO_LOW, GOOD_RATE, TOO_HIGH, DIVERGING)
OSCILLATING, PLATEAU = "oscillating", "plateau"

GOOD = 0.9
"""The progress from which on a rate is good."""
FAR = 10.0
"""A trial that ends so many times above its beginning has diverged, stopped or not."""
STILL = 0.01
"""A score that improves by less than this share in the last third stands on a plateau."""
SWING = 0.05
"""Swings of this share or more are an oscillation; less is noise."""
TAIL = 8
"""How many of the last losses tell how a divergent loss grows."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What of a study and a trial's parameters the evidence depends on."""

    metric: str
    sign: float  # 1: lower is better, -1: higher is
    keeps_best: bool  # the best evaluation counts, not the last
    horizon: int  # steps
    baseline: float | None  # the best constant predictor's score; None: not known
    plain: bool  # gradient descent without momentum, decay or clipping, on all data at each step
    rounding: float  # the relative rounding error of a loss


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What is kept of one trial; it is some hundred numbers, however long its curve."""

    number: int
    rate: float
    optimizer: str
    schedule: str
    outcome: str
    reason: str
    steps: int  # trained
    at: np.ndarray  # int64 [evaluation]
    scores: np.ndarray  # float64 [evaluation], finite; the best so far where that counts
    growth: float  # factor a step by which the last losses rise; nan: not known
    exploded: bool  # the loss ended far above where it began
    falls: bool  # no training loss is above the one before
    pairs: int  # consecutive gradients whose cosine is known
    crossed: int  # of them, those that point against each other
    crossed_first: int  # how many of the first ones do, without a break
    swing: float  # mean size of a step of a curve that goes up and down in its second half; else 0


@dataclass(frozen=True, kw_only=True)
class Regime:
    """What became of a trial, by its rate."""

    kind: str  # one of REGIMES
    labels: tuple[str, ...]
    reason: str  # a sentence or two


@np.errstate(over="ignore", invalid="ignore")  # losses may be near the largest float
def evidence(
    number: int,
    *,
    rate: float,
    optimizer: str,
    schedule: str,
    outcome: str,
    reason: str,
    curve: Chunk,
    given: Given,
) -> Evidence | None:
    """Sum up a trial's curve; None where its end says nothing of its rate, as when it failed."""
    if outcome not in (COMPLETED, PRUNED, DIVERGED):
        return None
    loss = curve.columns.get("train_loss", np.empty(0))
    measured = given.sign * curve.metrics.get(given.metric, np.empty(0))
    known = np.isfinite(measured)
    at, scores = curve.eval_steps[known], measured[known]
    crossings = against(curve, given.rounding) if given.plain else np.empty(0, bool)
    ends = loss[np.isfinite(loss)]
    level = max(abs(ends[0]), abs(given.baseline or 0.0)) if len(ends) else 0.0
    return Evidence(
        number=number,
        rate=rate,
        optimizer=optimizer,
        schedule=schedule,
        outcome=outcome,
        reason=reason,
        steps=len(curve.times),
        at=at,
        scores=np.minimum.accumulate(scores) if given.keeps_best else scores,
        growth=growth(loss),
        exploded=bool(len(ends) < len(loss) or (len(ends) and ends[-1] > FAR * level > 0)),
        falls=bool(len(loss) > 1 and (np.diff(loss) < 0).all()),
        pairs=len(crossings),
        crossed=int(crossings.sum()),
        crossed_first=int(np.argmin(np.append(crossings, False))),
        swing=_swing(loss if given.plain else scores),
    )


def against(curve: Chunk, rounding: float) -> np.ndarray:  # bool [pair]
    """Tell of consecutive gradients of plain gradient descent whether their cosine is negative.

    Pairs that rounding could turn are left out. The formula is at the top of this module.
    """
    loss, rate, norm = (curve.columns.get(name) for name in ("train_loss", "lr", "grad_norm"))
    if loss is None or rate is None or norm is None or len(loss) < 2:
        return np.empty(0, bool)
    with np.errstate(all="ignore"):
        product = -2 * np.diff(loss) / rate[:-1] - norm[:-1] ** 2  # g·g'
        unsure = 4 * rounding * np.maximum(np.abs(loss[:-1]), np.abs(loss[1:])) / rate[:-1]
        known = np.isfinite(product) & (np.abs(product) > unsure) & (rate[:-1] > 0)
    return np.asarray(product[known] < 0)


def growth(loss: np.ndarray) -> float:
    """Fit the factor a step by which the last positive losses [step] grow; nan where too few."""
    tail = loss[np.isfinite(loss)][-TAIL:]
    if len(tail) < 3 or (tail <= 0).any():
        return float("nan")
    return float(np.exp(np.polyfit(np.arange(len(tail)), np.log(tail), 1)[0]))


def _swing(series: np.ndarray) -> float:
    """Give the mean step of the second half of a series [point] that goes up and down; else 0."""
    late = series[len(series) // 2 :]
    if len(late) < 6 or not np.isfinite(late).all():
        return 0.0
    moves = np.diff(late)
    turns = np.mean(moves[1:] * moves[:-1] < 0)
    up, down = moves[moves > 0].sum(), -moves[moves < 0].sum()
    return float(np.abs(moves).mean()) if turns >= 0.5 and up >= 0.5 * down else 0.0


# --- judging


@dataclass(frozen=True, kw_only=True)
class _Stand:
    """How one trial stands beside the others."""

    seen: Evidence
    ceiling: float
    best: float  # any trial's by the same step
    score: float
    progress: float  # nan: nobody has learnt anything by then


@np.errstate(over="ignore", invalid="ignore")
def judge(found: Sequence[Evidence], given: Given) -> dict[int, Regime]:
    """Tell the regime of each trial, by its number."""
    frontier = _frontier(found)
    stands = [_stand(one, given, *frontier) for one in found]
    good = [one for one in stands if one.progress >= GOOD and not _has_diverged(one.seen)]
    ranges: dict[tuple[str, ...], tuple[float, float]] = {}
    for one in good:
        seen = one.seen
        for whose in ((seen.optimizer,), (seen.optimizer, seen.schedule)):
            low, high = ranges.get(whose, (seen.rate, seen.rate))
            ranges[whose] = min(low, seen.rate), max(high, seen.rate)
    winner = min(good, key=lambda one: one.score, default=None)
    return {
        one.seen.number: _judged(one, ranges, given, best=one is winner, of=len(found))
        for one in stands
    }


def _has_diverged(seen: Evidence) -> bool:
    return seen.outcome == DIVERGED or seen.exploded


def _frontier(found: Sequence[Evidence]) -> tuple[np.ndarray, np.ndarray]:
    """Give the steps [point] at which anything was measured, and the best score by then [point]."""
    at = np.concatenate([one.at for one in found] or [np.empty(0, np.int64)])
    scores = np.concatenate([one.scores for one in found] or [np.empty(0)])
    order = np.argsort(at, kind="stable")
    return at[order], np.minimum.accumulate(scores[order])


def _stand(seen: Evidence, given: Given, at: np.ndarray, best: np.ndarray) -> _Stand:
    if not len(seen.at):
        nan = float("nan")
        return _Stand(seen=seen, ceiling=nan, best=nan, score=nan, progress=nan)
    first, score = float(seen.scores[0]), float(seen.scores[-1])
    ceiling = first if given.baseline is None else min(first, given.baseline)
    by_then = float(best[np.searchsorted(at, seen.at[-1], side="right") - 1])
    way = ceiling - by_then
    progress = (ceiling - score) / way if way > 0 else float("nan")
    return _Stand(seen=seen, ceiling=ceiling, best=by_then, score=score, progress=progress)


Ranges = Mapping[tuple[str, ...], tuple[float, float]]
"""The lowest and the highest good rate of an optimiser, and of an optimiser and a schedule."""


def _judged(one: _Stand, ranges: Ranges, given: Given, *, best: bool, of: int) -> Regime:
    seen = one.seen
    if _has_diverged(seen):
        return Regime(kind=DIVERGING, labels=(), reason=_diverged(seen))
    labels = _labels(one)
    if one.progress >= GOOD:
        return Regime(kind=GOOD_RATE, labels=labels, reason=_good(one, labels, given, best, of))
    kind, because = _side(one, labels, ranges)
    return Regime(kind=kind, labels=labels, reason=_not_good(one, kind, because, given))


def _labels(one: _Stand) -> tuple[str, ...]:
    """Give *oscillating* and *plateau*.

    It oscillates where most consecutive gradients point against each other, or its curve turns at
    every second point or more, as far up as down, by `SWING` of its score or of its progress. It
    stands on a plateau where it had learnt something, and improved by less than `STILL` of its
    score and of its progress in the last third of its evaluations.
    """
    seen, labels = one.seen, []
    way = one.ceiling - one.score
    scale = min(abs(one.score), abs(way))
    swings = seen.swing > SWING * scale
    if swings or (seen.pairs and seen.crossed > seen.pairs / 2):
        labels.append(OSCILLATING)
    if len(seen.scores) >= 6 and one.progress > 1 - GOOD:
        before = seen.scores[: -(len(seen.scores) // 3)].min()
        if before - seen.scores.min() <= STILL * scale and not swings:
            labels.append(PLATEAU)
    return tuple(labels)


def _side(one: _Stand, labels: Sequence[str], ranges: Ranges) -> tuple[str, str]:
    """Tell too low from too high, and by what."""
    seen = one.seen
    if seen.pairs:
        share = f"{seen.crossed} of {seen.pairs} consecutive gradients point against each other"
        if seen.crossed > seen.pairs / 2:
            return TOO_HIGH, f"{share}: it overshoots, and parameters swing from side to side"
        return TOO_LOW, f"{share}: it goes the right way, in steps that are too small"
    for whose in ((seen.optimizer, seen.schedule), (seen.optimizer,)):
        low, high = ranges.get(whose, (seen.rate, seen.rate))
        if seen.rate < low:
            return TOO_LOW, f"good rates with {' and '.join(whose)} begin at {low:.3g}"
        if seen.rate > high:
            return TOO_HIGH, f"good rates with {' and '.join(whose)} end at {high:.3g}"
    if OSCILLATING in labels:
        return TOO_HIGH, "its curve goes up and down"
    return _side_by_curve(seen.scores)


def _side_by_curve(scores: np.ndarray) -> tuple[str, str]:  # [evaluation]
    """Tell too low from too high where no other trial helps."""
    if not len(scores) or scores[-1] > scores[0]:
        return TOO_HIGH, "it ended above where it began"
    fell, late = scores[0] - scores[-1], scores[len(scores) * 2 // 3] - scores[-1]
    if fell == 0:
        return TOO_LOW, "it stood still"
    if late > 0.1 * fell:
        return TOO_LOW, "its curve was still on its way down"
    return TOO_HIGH, "its curve fell and then stayed high"


# --- sentences


def _diverged(seen: Evidence) -> str:
    said = [f"Diverged after {seen.steps} steps"]
    if seen.growth > 1:
        said.append(f", its loss growing by a factor of {seen.growth:.4f} a step at the end")
    if seen.outcome == DIVERGED and seen.reason:
        said.append(f": {seen.reason[:1].lower()}{seen.reason[1:].rstrip('.')}")
    return "".join(said) + "."


def _good(one: _Stand, labels: Sequence[str], given: Given, best: bool, of: int) -> str:
    seen, value = one.seen, _value(one, given)
    if best:
        said = [f"Good: {value}, the best of {of}" if of > 1 else f"Good: {value}"]
    else:
        said = [f"Good: {value}, {_share(one.progress)} of the best's progress by then"]
        if given.sign > 0 and one.best > 0 and one.score > 2 * one.best:
            settled = PLATEAU in labels
            said.append(
                f"; {'it came to rest' if settled else 'converging, not converged'}, at "
                f"{one.score / one.best:.1f} times the best's"
            )
    if seen.falls:
        said.append("; the training loss fell at every step")
    if seen.crossed_first and seen.falls:
        said.append(
            f", although the first {seen.crossed_first + 1} gradients point against each other in "
            "turn: parameters alternate about the valley's floor, and it is no harm"
        )
    elif seen.crossed_first:
        said.append(f"; the first {seen.crossed_first + 1} gradients point against each other")
    return "".join(said) + "."


def _not_good(one: _Stand, kind: str, because: str, given: Given) -> str:
    where = _value(one, given) if len(one.seen.at) else f"no value after {one.seen.steps} steps"
    said = [f"{kind.capitalize()}: {where}"]
    if np.isfinite(one.progress):
        shown = given.sign * one.best
        said.append(f", {_share(one.progress)} of the way to the best by then ({shown:.4g})")
    if given.baseline is not None and one.score > given.baseline:
        said.append(f", and worse than the best constant predictor ({given.baseline:.4g})")
    return f"{''.join(said)}; {because}."


def _value(one: _Stand, given: Given) -> str:
    return f"{given.metric} {given.sign * one.score:.4g} after {one.seen.at[-1]} steps"


def _share(progress: float) -> str:
    if progress < 0:
        return "nothing"
    return f"{100 * progress:.0f} %" if progress <= 0.995 else f"{min(100 * progress, 99.9):.1f} %"


def counted(regimes: Mapping[int, Regime]) -> dict[str, int]:
    """Count trials by regime, in the order of rates."""
    kinds = [regime.kind for regime in regimes.values()]
    return {kind: kinds.count(kind) for kind in REGIMES}
