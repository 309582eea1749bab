"""Verdicts: was a trial's rate too low, good or too high for its optimizer, or did it diverge.

Pure functions of curves. A verdict is relative to the study's best trial, so it may change as long
as trials end, and it never contradicts the ranking. Words: a *score* is the study's metric with its
sign turned where higher is better, so lower is always better. The *best* is the completed trial
that the ranking puts first. The *bar* is what it ended with or, for a trial that was stopped, what
it had at the same step; a value that some trial had only on the way is none. *Progress* is how far
a trial came from the *start* (the median of first scores, or the best constant predictor's score
where that is lower) to the bar: 0 nothing, 1 as good as the best. It does not change when the loss
is scaled or shifted.

- **diverged**: the guard stopped it, or it ended far above where it began.
- **good**: progress of `GOOD` or more.
- **unclear**: stopped within its warm-up or after a handful of steps, or no further from the bar
  than noise, or worse than both lower and higher rates: then the rate alone is not the reason.
- **too low**, **too high**: none of these. The side is where its rate lies beside the good rates of
  the same optimizer and schedule (or the same optimizer); else the signs of the cosines of
  consecutive gradients; else its own curve. A side that completed trials of the same optimizer
  speak against is unclear.

Labels beside the verdict: *oscillating* and *plateau*; see `_labels`.

The cosines are not measured, they follow from what is: for plain gradient descent (θ' = θ - lr·g,
every step the same data) on a quadratic, L' - L = -lr·(g + g')·g/2 exactly, so
g·g' = -2(L' - L)/lr - |g|². Elsewhere that is the trapezoid rule, wrong by the third derivative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tuner.core.curves import Chunk
from tuner.core.outcome import COMPLETED, DIVERGED, PRUNED

TOO_LOW, GOOD_RATE, TOO_HIGH, DIVERGING = "too low", "good", "too high", "diverged"
UNCLEAR = "unclear"
VERDICTS = (TOO_LOW, GOOD_RATE, TOO_HIGH, DIVERGING, UNCLEAR)
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
EARLY = 9
"""Before a ninth of the horizon values say next to nothing of the end (docs/search.md)."""
FEW = 3
"""A trial with fewer evaluations after its beginning was stopped too early to judge its rate."""
NOISE = 2.0
"""So many standard deviations of the best trial's evaluations are within noise."""


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
    noise: float  # standard deviation of the evaluations in the second half
    rising: bool  # the rate was at its highest at the last step: within a warm-up
    growth: float  # factor a step by which the last losses rise; nan: not known
    exploded: bool  # the loss ended far above where it began
    falls: bool  # no training loss is above the one before
    pairs: int  # consecutive gradients whose cosine is known
    crossed: int  # of them, those that point against each other
    crossed_first: int  # how many of the first ones do, without a break
    swing: float  # mean size of a step of a curve that goes up and down in its second half; else 0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the evidence says of a trial's rate for its optimizer."""

    kind: str  # one of VERDICTS
    optimizer: str
    labels: tuple[str, ...]
    reason: str  # a sentence or two

    def __str__(self) -> str:
        """Return the verdict in short, such as `good for adamw, plateau`."""
        return ", ".join((f"{self.kind} for {self.optimizer}", *self.labels))


@np.errstate(over="ignore", invalid="ignore")
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
    """Return a summary of a trial's curve; None where its end says nothing of its rate."""
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
        noise=_noise(scores),
        rising=_rising(curve.columns.get("lr", np.empty(0))),
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


def _noise(scores: np.ndarray) -> float:  # [evaluation]
    """Estimate the standard deviation of the second half of scores around their trend.

    Second differences cancel a trend; of independent noise they have six times its variance. A
    curve that never turns has no noise to see.
    """
    late = scores[len(scores) // 2 :]
    moves = np.diff(late)
    if len(moves) < 3 or not (moves > 0).any() or not (moves < 0).any():
        return 0.0
    return float(np.median(np.abs(np.diff(moves))) / (0.6745 * np.sqrt(6)))


def _rising(rates: np.ndarray) -> bool:  # [step]
    """Return whether the rate rose to its highest at the last step."""
    return len(rates) > 1 and int(np.argmax(rates)) == len(rates) - 1


# --- judging


@dataclass(frozen=True, kw_only=True)
class _Bar:
    """What trials are measured by."""

    best: Evidence | None  # the completed trial that ranks first; None: none has completed
    start: float  # the score before anything is learnt
    end: float  # the best score at the end of any completed trial, imported ones included

    def at(self, seen: Evidence) -> float:
        """Return the score to come up to: at the end, or by a trial's last evaluation."""
        if seen.outcome == COMPLETED or self.best is None:
            return self.end
        index = int(np.searchsorted(self.best.at, seen.at[-1], side="right")) - 1
        return float(self.best.scores[max(index, 0)])


@dataclass(frozen=True, kw_only=True)
class _Stand:
    """How one trial stands beside the best."""

    seen: Evidence
    start: float
    bar: float
    score: float
    progress: float  # nan: nothing has been learnt by then

    @property
    def good(self) -> bool:
        """Whether it came as far as a good rate comes."""
        return self.progress >= GOOD and self.seen.outcome != DIVERGED


@np.errstate(over="ignore", invalid="ignore")
def judge(
    found: Sequence[Evidence], given: Given, *, imported: float | None = None
) -> dict[int, Verdict]:
    """Return the verdict of each trial, by its number.

    `imported` is the best score of the trials of earlier versions, which have no evidence here.
    """
    bar = _bar(found, given, imported)
    stands = [_stand(one, bar) for one in found]
    early = {one.seen.number for one in stands if _why_early(one.seen, given)}
    ranges: dict[tuple[str, ...], tuple[float, float]] = {}
    for one in stands:
        seen = one.seen
        if one.good and (seen.outcome == COMPLETED or seen.number not in early):
            for whose in ((seen.optimizer,), (seen.optimizer, seen.schedule)):
                low, high = ranges.get(whose, (seen.rate, seen.rate))
                ranges[whose] = min(low, seen.rate), max(high, seen.rate)
    context = _Context(
        given=given, bar=bar, ranges=ranges, ended=[one for one in stands if _ended(one.seen)]
    )
    return {one.seen.number: _judged(one, context) for one in stands}


Ranges = Mapping[tuple[str, ...], tuple[float, float]]
"""The lowest and the highest good rate of an optimizer, and of an optimizer and a schedule."""


@dataclass(frozen=True, kw_only=True)
class _Context:
    """What a trial is judged beside."""

    given: Given
    bar: _Bar
    ranges: Ranges
    ended: Sequence[_Stand]  # the completed trials with a score


def _ended(seen: Evidence) -> bool:
    return seen.outcome == COMPLETED and len(seen.scores) > 0


def _bar(found: Sequence[Evidence], given: Given, imported: float | None) -> _Bar:
    ended = [one for one in found if _ended(one)]
    best = min(ended, key=lambda one: (one.scores[-1], one.number), default=None)
    firsts = [float(one.scores[0]) for one in found if len(one.scores)]
    start = min(_median(firsts), np.inf if given.baseline is None else given.baseline)
    ends = [] if best is None else [float(best.scores[-1])]
    ends += [] if imported is None else [imported]
    return _Bar(best=best, start=start, end=min(ends, default=float("nan")))


def _median(values: list[float]) -> float:
    """Return the lower median, which no sum can make overflow; inf where there is none."""
    return sorted(values)[(len(values) - 1) // 2] if values else float("inf")


def _stand(seen: Evidence, bar: _Bar) -> _Stand:
    nan = float("nan")
    if not len(seen.scores):
        return _Stand(seen=seen, start=bar.start, bar=nan, score=nan, progress=nan)
    score, aim = float(seen.scores[-1]), bar.at(seen)
    way = bar.start - aim
    progress = (bar.start - score) / way if way > 0 and np.isfinite(way) else nan
    return _Stand(seen=seen, start=bar.start, bar=aim, score=score, progress=progress)


def _judged(one: _Stand, context: _Context) -> Verdict:
    seen, given = one.seen, context.given
    early = _why_early(seen, given)
    labels = _labels(one)
    if seen.outcome == DIVERGED or (seen.exploded and not one.good):
        kind, labels, reason = DIVERGING, (), _diverged(seen)
    elif one.good and (seen.outcome == COMPLETED or not early):
        kind, reason = GOOD_RATE, _good(one, labels, context)
    else:
        kind, because = _why_not(one, labels, context, early)
        reason = _not_good(one, kind, because, given)
    return Verdict(kind=kind, optimizer=seen.optimizer, labels=labels, reason=reason)


def _why_not(one: _Stand, labels: Sequence[str], context: _Context, early: str) -> tuple[str, str]:
    """Return whether a trial that is not good was too low, too high or neither, and why."""
    seen, best = one.seen, context.bar.best
    if early:
        return UNCLEAR, early
    if best is None:
        return UNCLEAR, "no trial has completed that it could be compared with"
    if seen is best and not np.isfinite(one.progress):
        return UNCLEAR, "the best so far, and no better than where trials begin"
    if one.score - one.bar <= NOISE * best.noise:
        return UNCLEAR, f"so far from trial {best.number} as evaluations of that one vary"
    kind, because = _side(seen, labels, context.ranges)
    others = [other for other in context.ended if other.seen.optimizer == seen.optimizer]
    if kind in (TOO_LOW, TOO_HIGH) and _is_contradicted(one, kind, others):
        where = "lower" if kind == TOO_HIGH else "higher"
        return UNCLEAR, f"{because}, but {where} rates with {seen.optimizer} did no better"
    return kind, because


def _is_contradicted(one: _Stand, kind: str, others: Sequence[_Stand]) -> bool:
    """Return whether completed trials lie where the rate should go and none of them is better."""
    sign = -1.0 if kind == TOO_HIGH else 1.0
    there = [other for other in others if sign * (other.seen.rate - one.seen.rate) > 0]
    score = one.score if np.isfinite(one.score) else float("inf")
    return bool(there) and all(other.score >= score for other in there)


def _why_early(seen: Evidence, given: Given) -> str:
    """Return why a trial ended too early to judge its rate; nothing where it did not."""
    if seen.steps >= given.horizon or seen.outcome == DIVERGED:
        return ""
    after = int((seen.at > 0).sum())
    if seen.rising:
        return f"it ended after {seen.steps} of {given.horizon} steps, while its rate still rose"
    if after < FEW or seen.steps * EARLY < given.horizon:
        return f"it ended after {seen.steps} of {given.horizon} steps, too early to tell"
    return ""


def _labels(one: _Stand) -> tuple[str, ...]:
    """Give *oscillating* and *plateau*.

    It oscillates where most consecutive gradients point against each other, or its curve turns at
    every second point or more, as far up as down, by `SWING` of its score or of its progress. It
    stands on a plateau where it had learnt something, and improved by less than `STILL` of its
    score and of its progress in the last third of its evaluations.
    """
    seen, labels = one.seen, []
    way = one.start - one.score
    scale = min(abs(one.score), abs(way))
    swings = seen.swing > SWING * scale
    if swings or (seen.pairs and seen.crossed > seen.pairs / 2):
        labels.append(OSCILLATING)
    if len(seen.scores) >= 6 and one.progress > 1 - GOOD:
        before = seen.scores[: -(len(seen.scores) // 3)].min()
        if before - seen.scores.min() <= STILL * scale and not swings:
            labels.append(PLATEAU)
    return tuple(labels)


def _side(seen: Evidence, labels: Sequence[str], ranges: Ranges) -> tuple[str, str]:
    """Return too low or too high, and by what; unclear where good rates lie on both sides."""
    by_gradients = _side_by_gradients(seen)
    for whose in ((seen.optimizer, seen.schedule), (seen.optimizer,)):
        if whose in ranges:
            kind, because = _side_of(seen.rate, *ranges[whose], " and ".join(whose))
            if kind != UNCLEAR or len(whose) == 2:
                agrees = seen.pairs and kind == by_gradients[0]
                return by_gradients if agrees else (kind, because)
    if seen.pairs:
        return by_gradients
    if OSCILLATING in labels:
        return TOO_HIGH, "its curve goes up and down"
    return _side_by_curve(seen.scores)


def _side_of(rate: float, low: float, high: float, names: str) -> tuple[str, str]:
    """Return on which side of the good rates a rate lies."""
    if rate < low:
        return TOO_LOW, f"good rates with {names} begin at {low:.3g}"
    if rate > high:
        return TOO_HIGH, f"good rates with {names} end at {high:.3g}"
    return UNCLEAR, f"rates like it were good with {names}, so the rate is not the reason"


def _side_by_gradients(seen: Evidence) -> tuple[str, str]:
    share = f"{seen.crossed} of {seen.pairs} consecutive gradients point against each other"
    if seen.crossed > seen.pairs / 2:
        return TOO_HIGH, f"{share}: it overshoots, and parameters swing from side to side"
    return TOO_LOW, f"{share}: it goes the right way, in steps that are too small"


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
    said = [f"Diverged with {seen.optimizer} after {seen.steps} steps"]
    if seen.growth > 1:
        said.append(f", its loss growing by a factor of {seen.growth:.4f} a step at the end")
    if seen.outcome == DIVERGED and seen.reason:
        said.append(f": {seen.reason[:1].lower()}{seen.reason[1:].rstrip('.')}")
    return "".join(said) + "."


def _good(one: _Stand, labels: Sequence[str], context: _Context) -> str:
    seen, given, of = one.seen, context.given, len(context.ended)
    where = f"Good for {seen.optimizer}: {_value(one, given)}"
    if seen is context.bar.best:
        said = [f"{where}, the best of {of} that completed" if of > 1 else where]
    else:
        then = "" if seen.outcome == COMPLETED else " by then"
        said = [f"{where}, {_share(one.progress)} of the best's progress{then}"]
        if given.sign > 0 and one.bar > 0 and one.score > 2 * one.bar:
            settled = PLATEAU in labels
            said.append(
                f"; {'it came to rest' if settled else 'converging, not converged'}, at "
                f"{one.score / one.bar:.1f} times the best's"
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
    said = [f"{kind.capitalize()} for {one.seen.optimizer}: {where}"]
    if np.isfinite(one.progress):
        shown, then = given.sign * one.bar, "" if one.seen.outcome == COMPLETED else " by then"
        said.append(f", {_share(one.progress)} of the way to the best{then} ({shown:.4g})")
    if given.baseline is not None and one.score > given.baseline:
        said.append(f", and worse than the best constant predictor ({given.baseline:.4g})")
    return f"{''.join(said)}; {because}."


def _value(one: _Stand, given: Given) -> str:
    return f"{given.metric} {given.sign * one.score:.4g} after {one.seen.at[-1]} steps"


def _share(progress: float) -> str:
    if progress < 0:
        return "nothing"
    return f"{100 * progress:.0f} %" if progress <= 0.995 else f"{min(100 * progress, 99.9):.1f} %"


def counted(verdicts: Mapping[int, Verdict]) -> dict[str, int]:
    """Count trials by verdict, those that say nothing of the rate last."""
    kinds = [verdict.kind for verdict in verdicts.values()]
    return {kind: kinds.count(kind) for kind in VERDICTS}
