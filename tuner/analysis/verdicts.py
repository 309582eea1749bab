"""Verdicts: whether a trial's rate was too low, good or too high for its optimizer, or diverged.

Pure functions of curves. A verdict is relative to the study's best trial, so it may change while
trials end, and it never contradicts the ranking. Terms:

- *score*: the study's metric, negated if higher is better, so lower is always better.
- *best*: the completed trial that ranks first.
- *target*: the best trial's final score or, for a stopped trial, its score at the same share of
  the horizon, which has other steps with another batch size. Better values that a trial reached
  only before its end do not count.
- *start*: the median of first scores, or the best constant predictor's score if that is lower.
- *progress*: how far a trial came from the start (0) to the target (1). It does not change if the
  loss is scaled or shifted.

Verdicts:

- **diverged**: the guard stopped it, or it ended far above its first loss.
- **good**: progress of `GOOD` or more.
- **unclear**: stopped within its warm-up or after a few steps; or its distance from the target is
  within noise; or both lower and higher rates did better, so the rate alone is not the reason; or
  its rate is near good ones, and settings or arguments differ between trials.
- **too low**, **too high**: none of these. The side is decided by the position of its rate relative
  to the good rates of the same optimizer and schedule (or of the same optimizer); else by the signs
  of the cosines of consecutive gradients; else by its own curve. It is unclear if completed trials
  of the same optimizer contradict that side.

Labels in addition to the verdict: *oscillating* and *plateau*; see `_labels`.

The cosines are not measured but derived. For plain gradient descent (θ' = θ - lr·g, with the same
data at every step) on a quadratic, L' - L = -lr·(g + g')·g/2 exactly, so
g·g' = -2(L' - L)/lr - |g|². On other functions that is the trapezoid rule, with an error by the
third derivative.
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
"""Least progress of a good rate."""
FAR = 10.0
"""A trial whose last loss is this many times its first one has diverged, stopped or not."""
PLATEAU_TOLERANCE = 0.01
"""A score that improves by less than this share in the last third is on a plateau."""
SWING = 0.05
"""Swings of at least this share are an oscillation; smaller ones are noise."""
TAIL = 8
"""Number of last losses from which the growth of a divergent loss is fitted."""
EARLY = 9
"""Before a ninth of the horizon, values hardly predict the final ones (docs/search.md)."""
FEW = 3
"""Least number of evaluations after step 0 to judge a trial's rate."""
NEAR = 1.5
"""Where other parameters differ too, they and not the rate decide within this factor of a rate."""
NOISE = 2.0
"""Number of standard deviations of the best trial's evaluations that count as noise."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The properties of a study and of a trial's parameters that the evidence depends on."""

    metric: str
    sign: float  # 1: lower is better, -1: higher is
    keeps_best: bool  # a trial's value is its best evaluation, not its last
    horizon: int  # steps
    baseline: float | None  # the best constant predictor's score; None: unknown
    plain: bool  # full-batch gradient descent without momentum, decay or clipping
    rounding: float  # the relative rounding error of a loss
    several: bool = False  # settings, further rates or arguments differ between trials too


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """The summary of one trial's curve: some hundred numbers, whatever the curve's length."""

    number: int
    rate: float
    optimizer: str
    schedule: str
    outcome: str
    reason: str
    steps: int  # trained
    horizon: int  # steps
    at: np.ndarray  # int64 [evaluation]
    scores: np.ndarray  # float64 [evaluation], finite; the best so far if `keeps_best`
    noise: float  # standard deviation of the evaluations in the second half
    rising: bool  # the rate was highest at the last step: within a warm-up
    growth: float  # factor per step by which the last losses grow; nan: unknown
    exploded: bool  # the last loss is far above the first
    falls: bool  # every training loss is below the one before
    pairs: int  # pairs of consecutive gradients whose cosine is known
    crossed: int  # number of pairs with a negative cosine
    crossed_first: int  # number of such pairs before the first other one
    swing: float  # mean step size of a curve that oscillates in its second half; else 0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on a trial's rate for its optimizer."""

    kind: str  # one of VERDICTS
    optimizer: str
    labels: tuple[str, ...]
    reason: str  # a sentence or two

    def __str__(self) -> str:
        """Return the verdict in short, such as `good for adamw, plateau`."""
        return ", ".join((f"{self.kind} for {self.optimizer}", *self.labels))


@np.errstate(over="ignore", invalid="ignore")
def summarize(
    number: int,
    *,
    rate: float,
    optimizer: str,
    schedule: str,
    outcome: str,
    reason: str,
    curve: Chunk,
    setting: Setting,
) -> Evidence | None:
    """Return a summary of a trial's curve; None if its outcome does not depend on its rate."""
    if outcome not in (COMPLETED, PRUNED, DIVERGED):
        return None
    reported = curve.reported
    loss = curve.columns.get("train_loss", np.empty(0))[reported]
    measured = setting.sign * curve.metrics.get(setting.metric, np.empty(0))
    known = np.isfinite(measured)
    at, scores = curve.eval_steps[known], measured[known]
    crossings = opposing_gradients(curve, setting.rounding) if setting.plain else np.empty(0, bool)
    ends = loss[np.isfinite(loss)]
    level = max(abs(ends[0]), abs(setting.baseline or 0.0)) if len(ends) else 0.0
    return Evidence(
        number=number,
        rate=rate,
        optimizer=optimizer,
        schedule=schedule,
        outcome=outcome,
        reason=reason,
        steps=len(curve.times),
        horizon=setting.horizon,
        at=at,
        scores=np.minimum.accumulate(scores) if setting.keeps_best else scores,
        noise=_noise(scores),
        rising=_rising(curve.columns.get("lr", np.empty(0))[reported]),
        growth=growth_factor(loss),
        exploded=bool(len(ends) < len(loss) or (len(ends) and ends[-1] > FAR * level > 0)),
        falls=bool(len(loss) > 1 and (np.diff(loss) < 0).all()),
        pairs=len(crossings),
        crossed=int(crossings.sum()),
        crossed_first=int(np.argmin(np.append(crossings, False))),
        swing=_swing(loss if setting.plain else scores),
    )


def opposing_gradients(curve: Chunk, rounding: float) -> np.ndarray:  # bool [pair]
    """Return for pairs of consecutive gradients whether their cosine is negative.

    For plain gradient descent only; see the formula at the top of this module. Pairs whose sign
    rounding could change are left out.
    """
    loss, rate, norm = (curve.columns.get(name) for name in ("train_loss", "lr", "grad_norm"))
    if loss is None or rate is None or norm is None or len(loss) < 2:
        return np.empty(0, bool)
    with np.errstate(all="ignore"):
        product = -2 * np.diff(loss) / rate[:-1] - norm[:-1] ** 2  # g·g'
        unsure = 4 * rounding * np.maximum(np.abs(loss[:-1]), np.abs(loss[1:])) / rate[:-1]
        known = np.isfinite(product) & (np.abs(product) > unsure) & (rate[:-1] > 0)
    return np.asarray(product[known] < 0)


def growth_factor(loss: np.ndarray) -> float:
    """Return the fitted factor per step of the last positive losses [step]; nan if too few."""
    tail = loss[np.isfinite(loss)][-TAIL:]
    if len(tail) < 3 or (tail <= 0).any():
        return float("nan")
    return float(np.exp(np.polyfit(np.arange(len(tail)), np.log(tail), 1)[0]))


def _swing(series: np.ndarray) -> float:
    """Return the mean step size of the second half of a series [point] if it oscillates; else 0."""
    late = series[len(series) // 2 :]
    if len(late) < 6 or not np.isfinite(late).all():
        return 0.0
    moves = np.diff(late)
    turns = np.mean(moves[1:] * moves[:-1] < 0)
    up, down = moves[moves > 0].sum(), -moves[moves < 0].sum()
    return float(np.abs(moves).mean()) if turns >= 0.5 and up >= 0.5 * down else 0.0


def _noise(scores: np.ndarray) -> float:  # [evaluation]
    """Return the estimated standard deviation of the second half of scores around their trend.

    Second differences cancel a trend, and have six times the variance of independent noise. A
    monotonic curve has no noise.
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
class _Reference:
    """The scores with which trials are compared."""

    best: Evidence | None  # the completed trial that ranks first; None: none has completed
    start: float  # the score before training
    end: float  # the best score at the end of any completed trial, imported ones included

    def at(self, evidence: Evidence) -> float:
        """Return a trial's target: the best final score, or that where it was evaluated last."""
        if evidence.outcome == COMPLETED or self.best is None:
            return self.end
        at, horizon = int(evidence.at[-1]), evidence.horizon
        index = int(np.searchsorted(self.best.at * horizon, at * self.best.horizon, "right")) - 1
        return float(self.best.scores[max(index, 0)])


@dataclass(frozen=True, kw_only=True)
class _Standing:
    """One trial, compared with the best."""

    evidence: Evidence
    start: float
    target: float
    score: float
    progress: float  # nan: the best trial has not improved by then

    @property
    def good(self) -> bool:
        """Whether its progress is that of a good rate."""
        return self.progress >= GOOD and self.evidence.outcome != DIVERGED


@np.errstate(over="ignore", invalid="ignore")
def judge(
    found: Sequence[Evidence], setting: Setting, *, imported: float | None = None
) -> dict[int, Verdict]:
    """Return the verdict of each trial, by its number.

    `imported` is the best score of trials imported from earlier versions, which have no evidence.
    """
    reference = _reference(found, setting, imported)
    standings = [_standing(one, reference) for one in found]
    early = {one.evidence.number for one in standings if _why_early(one.evidence)}
    ranges: dict[tuple[str, ...], tuple[float, float]] = {}
    for one in standings:
        evidence = one.evidence
        if one.good and (evidence.outcome == COMPLETED or evidence.number not in early):
            for whose in ((evidence.optimizer,), (evidence.optimizer, evidence.schedule)):
                low, high = ranges.get(whose, (evidence.rate, evidence.rate))
                ranges[whose] = min(low, evidence.rate), max(high, evidence.rate)
    ended = [one for one in standings if _ended(one.evidence)]
    optimizers = {one.evidence.optimizer for one in ended}
    context = _Comparison(
        setting=setting,
        reference=reference,
        ranges=ranges,
        ended=len(ended),
        by_rate={
            name: _ByRate([one for one in ended if one.evidence.optimizer == name])
            for name in optimizers
        },
    )
    return {one.evidence.number: _judged(one, context) for one in standings}


Ranges = Mapping[tuple[str, ...], tuple[float, float]]
"""The lowest and the highest good rate of an optimizer, and of an optimizer and a schedule."""


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """What each trial is compared with."""

    setting: Setting
    reference: _Reference
    ranges: Ranges
    ended: int  # number of completed trials with a score
    by_rate: Mapping[str, _ByRate]  # these, by their optimizer


class _ByRate:
    """The scores of completed trials with one optimizer, in the order of their rates."""

    def __init__(self, ended: Sequence[_Standing]) -> None:
        pairs = sorted((one.evidence.rate, one.score) for one in ended)
        self._rates, scores = np.array(pairs).reshape(-1, 2).T
        self._best_up_to = np.minimum.accumulate(scores)
        self._best_from = np.minimum.accumulate(scores[::-1])[::-1]

    def best_below(self, rate: float) -> float | None:
        """Return the best score at lower rates; None if there is no trial."""
        count = int(np.searchsorted(self._rates, rate, "left"))
        return float(self._best_up_to[count - 1]) if count else None

    def best_above(self, rate: float) -> float | None:
        """Return the best score at higher rates; None if there is no trial."""
        first = int(np.searchsorted(self._rates, rate, "right"))
        return float(self._best_from[first]) if first < len(self._rates) else None


def _ended(evidence: Evidence) -> bool:
    return evidence.outcome == COMPLETED and len(evidence.scores) > 0


def _reference(found: Sequence[Evidence], setting: Setting, imported: float | None) -> _Reference:
    ended = [one for one in found if _ended(one)]
    best = min(ended, key=lambda one: (one.scores[-1], one.number), default=None)
    firsts = [float(one.scores[0]) for one in found if len(one.scores)]
    start = min(_median(firsts), np.inf if setting.baseline is None else setting.baseline)
    ends = [] if best is None else [float(best.scores[-1])]
    ends += [] if imported is None else [imported]
    return _Reference(best=best, start=start, end=min(ends, default=float("nan")))


def _median(values: list[float]) -> float:
    """Return the lower median, which cannot overflow; inf if there are no values."""
    return sorted(values)[(len(values) - 1) // 2] if values else float("inf")


def _standing(evidence: Evidence, reference: _Reference) -> _Standing:
    nan = float("nan")
    if not len(evidence.scores):
        return _Standing(
            evidence=evidence, start=reference.start, target=nan, score=nan, progress=nan
        )
    score, target = float(evidence.scores[-1]), reference.at(evidence)
    way = reference.start - target
    progress = (reference.start - score) / way if way > 0 and np.isfinite(way) else nan
    return _Standing(
        evidence=evidence, start=reference.start, target=target, score=score, progress=progress
    )


def _judged(one: _Standing, context: _Comparison) -> Verdict:
    evidence, setting = one.evidence, context.setting
    early = _why_early(evidence)
    labels = _labels(one)
    if evidence.outcome == DIVERGED or (evidence.exploded and not one.good):
        kind, labels, reason = DIVERGING, (), _diverged(evidence)
    elif one.good and (evidence.outcome == COMPLETED or not early):
        kind, reason = GOOD_RATE, _good(one, labels, context)
    else:
        kind, because = _why_not(one, labels, context, early)
        reason = _not_good(one, kind, because, setting)
    return Verdict(kind=kind, optimizer=evidence.optimizer, labels=labels, reason=reason)


def _why_not(
    one: _Standing, labels: Sequence[str], context: _Comparison, early: str
) -> tuple[str, str]:
    """Return whether a rate that is not good is too low, too high or unclear, and why."""
    evidence, best, setting = one.evidence, context.reference.best, context.setting
    if early:
        return UNCLEAR, early
    if best is None:
        return UNCLEAR, "there is no completed trial to compare it with"
    if evidence is best and not np.isfinite(one.progress):
        return UNCLEAR, "the best so far, but no better than the start"
    if one.score - one.target <= NOISE * best.noise:
        return UNCLEAR, f"within the noise of the evaluations of the best, trial {best.number}"
    margin = NEAR if setting.several else 1.0
    kind, because = _side(evidence, labels, context.ranges, margin)
    if kind in (TOO_LOW, TOO_HIGH) and _is_contradicted(one, kind, context.by_rate):
        where = "lower" if kind == TOO_HIGH else "higher"
        return UNCLEAR, f"{because}, but {where} rates with {evidence.optimizer} did no better"
    return kind, because


def _is_contradicted(one: _Standing, kind: str, by_rate: Mapping[str, _ByRate]) -> bool:
    """Return whether completed trials on the proposed side exist and none of them is better."""
    others, rate = by_rate.get(one.evidence.optimizer), one.evidence.rate
    if others is None:
        return False
    there = others.best_below(rate) if kind == TOO_HIGH else others.best_above(rate)
    score = one.score if np.isfinite(one.score) else float("inf")
    return there is not None and there >= score


def _why_early(evidence: Evidence) -> str:
    """Return why a trial ended too early to judge its rate; empty if it did not."""
    if evidence.steps >= evidence.horizon or evidence.outcome == DIVERGED:
        return ""
    after = int((evidence.at > 0).sum())
    ended = f"it ended after {evidence.steps} of {evidence.horizon} steps"
    if evidence.rising:
        return f"{ended}, while its rate still rose"
    if after < FEW or evidence.steps * EARLY < evidence.horizon:
        return f"{ended}, too early to tell"
    return ""


def _labels(one: _Standing) -> tuple[str, ...]:
    """Return the labels *oscillating* and *plateau*, if they apply.

    *oscillating*: most pairs of consecutive gradients have a negative cosine; or the curve turns at
    every second point or more, about as far up as down, by `SWING` of its score or of its progress.
    *plateau*: the trial made some progress, and improved by less than `PLATEAU_TOLERANCE`
    of its score and of its progress in the last third of its evaluations.
    """
    evidence, labels = one.evidence, []
    way = one.start - one.score
    scale = min(abs(one.score), abs(way))
    swings = evidence.swing > SWING * scale
    if swings or (evidence.pairs and evidence.crossed > evidence.pairs / 2):
        labels.append(OSCILLATING)
    if len(evidence.scores) >= 6 and one.progress > 1 - GOOD:
        before = evidence.scores[: -(len(evidence.scores) // 3)].min()
        if before - evidence.scores.min() <= PLATEAU_TOLERANCE * scale and not swings:
            labels.append(PLATEAU)
    return tuple(labels)


def _side(
    evidence: Evidence, labels: Sequence[str], ranges: Ranges, margin: float
) -> tuple[str, str]:
    """Return too low or too high, and the reason; unclear if good rates lie on both sides."""
    by_gradients = _side_by_gradients(evidence)
    for whose in ((evidence.optimizer, evidence.schedule), (evidence.optimizer,)):
        if whose in ranges:
            kind, because = _side_of(evidence.rate, ranges[whose], margin, " and ".join(whose))
            if kind != UNCLEAR or len(whose) == 2:
                agrees = evidence.pairs and kind == by_gradients[0]
                return by_gradients if agrees else (kind, because)
    if evidence.pairs:
        return by_gradients
    if OSCILLATING in labels:
        return TOO_HIGH, "its curve goes up and down"
    return _side_by_curve(evidence.scores)


def _side_of(rate: float, good: tuple[float, float], margin: float, names: str) -> tuple[str, str]:
    """Return the side of the good rates on which a rate lies, beyond a factor, and the reason."""
    low, high = good
    where = f"begin at {low:.3g}" if rate < low else f"end at {high:.3g}"
    if rate < low / margin:
        return TOO_LOW, f"good rates with {names} {where}"
    if rate > high * margin:
        return TOO_HIGH, f"good rates with {names} {where}"
    if not low <= rate <= high:
        near = "too near to tell, as other parameters differ too"
        return UNCLEAR, f"good rates with {names} {where}, {near}"
    return UNCLEAR, f"rates like it were good with {names}, so the rate is not the reason"


def _side_by_gradients(evidence: Evidence) -> tuple[str, str]:
    share = f"{evidence.crossed} of {evidence.pairs} consecutive gradients point against each other"
    if evidence.crossed > evidence.pairs / 2:
        return TOO_HIGH, f"{share}: it overshoots, and parameters oscillate"
    return TOO_LOW, f"{share}: the direction is right, the steps are too small"


def _side_by_curve(scores: np.ndarray) -> tuple[str, str]:  # [evaluation]
    """Return too low or too high from the curve alone, and the reason."""
    if not len(scores) or scores[-1] > scores[0]:
        return TOO_HIGH, "it ended above its first value"
    fell, late = scores[0] - scores[-1], scores[len(scores) * 2 // 3] - scores[-1]
    if fell == 0:
        return TOO_LOW, "it did not change"
    if late > 0.1 * fell:
        return TOO_LOW, "its curve was still falling"
    return TOO_HIGH, "its curve fell and then stayed high"


# --- sentences


def _diverged(evidence: Evidence) -> str:
    parts = [f"Diverged with {evidence.optimizer} after {evidence.steps} steps"]
    if evidence.growth > 1:
        parts.append(f", its loss growing by a factor of {evidence.growth:.4f} a step at the end")
    if evidence.outcome == DIVERGED and evidence.reason:
        parts.append(f": {evidence.reason[:1].lower()}{evidence.reason[1:].rstrip('.')}")
    return "".join(parts) + "."


def _good(one: _Standing, labels: Sequence[str], context: _Comparison) -> str:
    evidence, setting, of = one.evidence, context.setting, context.ended
    where = f"Good for {evidence.optimizer}: {_value(one, setting)}"
    if evidence is context.reference.best:
        parts = [f"{where}, the best of {of} that completed" if of > 1 else where]
    else:
        then = "" if evidence.outcome == COMPLETED else " by then"
        parts = [f"{where}, {_share(one.progress)} of the best's progress{then}"]
        if setting.sign > 0 and one.target > 0 and one.score > 2 * one.target:
            state = "no longer improving" if PLATEAU in labels else "converging, not converged"
            parts.append(f"; {state}, at {one.score / one.target:.1f} times the best's")
    if evidence.falls:
        parts.append("; the training loss fell at every step")
    if evidence.crossed_first and evidence.falls:
        parts.append(
            f", although the first {evidence.crossed_first + 1} gradients point against each "
            "other: parameters alternate between the sides of the valley, which does no harm"
        )
    elif evidence.crossed_first:
        parts.append(f"; the first {evidence.crossed_first + 1} gradients point against each other")
    return "".join(parts) + "."


def _not_good(one: _Standing, kind: str, because: str, setting: Setting) -> str:
    evidence = one.evidence
    value = f"no value after {evidence.steps} steps"
    if len(evidence.at):
        value = _value(one, setting)
    parts = [f"{kind.capitalize()} for {evidence.optimizer}: {value}"]
    if np.isfinite(one.progress):
        target = f"{setting.sign * one.target:.4g}"
        then = "" if evidence.outcome == COMPLETED else " by then"
        parts.append(f", {_share(one.progress)} of the way to the best{then} ({target})")
    if setting.baseline is not None and one.score > setting.baseline:
        parts.append(f", and worse than the best constant predictor ({setting.baseline:.4g})")
    return f"{''.join(parts)}; {because}."


def _value(one: _Standing, setting: Setting) -> str:
    return f"{setting.metric} {setting.sign * one.score:.4g} after {one.evidence.at[-1]} steps"


def _share(progress: float) -> str:
    if progress < 0:
        return "nothing"
    return f"{100 * progress:.0f} %" if progress <= 0.995 else f"{min(100 * progress, 99.9):.1f} %"


def count_by_verdict(verdicts: Mapping[int, Verdict]) -> dict[str, int]:
    """Return the number of trials by verdict, unclear ones last."""
    kinds = [verdict.kind for verdict in verdicts.values()]
    return {kind: kinds.count(kind) for kind in VERDICTS}
