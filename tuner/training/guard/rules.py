"""The divergence guard: stop trials that cannot recover, judging from their losses alone.

The functions are pure and elementwise over [trial], so the judgment of a trial does not depend on
the trials beside it. Pruning is separate: the guard never stops a trial for being slow, oscillating
or stuck. Terms first, then the rules. Bold names are settings (`[guard]` in a study file) with
their defaults.

- *excess*: loss - floor, where floor = min(0, lowest loss so far). It equals the loss until a loss
  is negative, and makes ratios between levels meaningful.
- *start*: the highest of the first **window**/4 losses that are not zero, the current loss
  excluded, so that one lucky batch does not set the reference level for long. Its level is its
  excess, or |start| if that is larger: a first loss of -5 is its own floor, but shows the scale of
  the losses.
- *reference level*: the level of the start, or of the baseline (the loss of the best constant
  predictor) if that is known and higher. A trial that starts far above its baseline has not
  diverged yet.
- *lasting reference level*: the level at which the trial began; the start may already be after a
  jump. It is the highest of the levels of the validation loss before the first step, the first loss
  and the baseline. If the validation loss was not measured, it is the higher of the baseline's
  level and the first loss's level, provided that the latter is within **far** baselines. A first
  loss higher than that, or without a baseline, may be an outlier, so the level of the start is used
  instead.

1. **Non-finite**: the loss or the gradient norm is nan or infinite. Stops at once, during the
   warm-up too.

The other rules do not stop a trial during its warm-up, and rules 3 to 5 only consider windows that
begin after it. Rules 2, 3 and 5 are necessary but not sufficient: the trial continues if falling
rates may bring it back (`tuner.training.guard.recovery`).

2. **Runaway**: an excess above **runaway** (1e6) reference levels that is a new peak and that
   grew steadily by a factor of **growth** or more from quarter to quarter over the last three; or a
   single excess above 10,000 times that. A single smaller jump proves nothing: optimizers with
   bounded steps recover from it.
3. **Exploding**: exponential growth far above the reference level. Take the geometric mean of the
   excesses (each at least the reference level) in each quarter of the last **window** (16) losses.
   It rose by a factor of **growth** (1.05) or more from quarter to quarter three times in a row; it
   rose steadily; the total rise is at least three times the scatter within quarters (in
   logarithms); the last loss and the last quarter's mean are above **far** (10) reference levels;
   and the last quarter holds a new peak.
4. **Late**: past **late** (0.5) of the horizon, each of the last **window**/2 losses has an excess
   above **late_margin** (1.5) times the level of the start and is above each of the window/2 losses
   before; the mean excess rose by a factor of **growth** or more; the quarter means rose steadily;
   and the last quarter holds a new peak. This finds explosions too slow for rule 3. Noise alone
   meets the second condition once in 12,870 windows, and almost never all of them.
5. **Lost**: past **late** of the horizon, in each of the last four complete eighths of the horizon
   more than half of the losses had an excess above **far** lasting reference levels, and so has
   the current one; and the geometric mean of the excesses, divided by the squared rate, fell by
   less than a factor of e per quarter of the horizon. A faster fall is a recovery, if a slow one; a
   loss that only follows the rate is not recovering. This finds jumps to a height where nothing
   grows.

*Steadily*: the smallest of the three rises is at least a third of the largest. A spike or a jump to
a higher level rises only once or twice, so it does not count. *A new peak*: an excess of **growth**
times that of any loss before the window, so a steady oscillation does not count, however slow. An
oscillation with a growing envelope is found by rule 3 or, if irregular, by rule 2. (Just above the
stable limit of gradient descent and heavy ball, losses grow smoothly: the dominant root is real.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import numpy as np

from tuner.config import GuardTable

STEADY = 1 / 3
"""Rises are steady if the smallest is at least this fraction of the largest."""

SCATTERS = 3.0
"""Rule 3: minimum ratio of the rise over the window to the scatter within its quarters."""

JUMP = 1e4
"""Rule 2: a single loss this many times above the threshold of steady growth stops the trial."""

EIGHTHS = 8
"""Rule 5: number of equal parts of the horizon; the last half of them is judged."""

FALL = 0.5
"""Rule 5: the mean log excess of a lost trial falls by less than this per eighth."""


STORED_NAMES = {
    "start": "first",
    "first_loss": "begun",
    "initial_val_loss": "initial",
    "recovery_deadline": "awaited",
}
"""Names in checkpoints of the fields of a state that are stored under another name."""


class Rule(IntEnum):
    """The rule that stops a trial; `NONE` if none does."""

    NONE = 0
    NON_FINITE = 1
    RUNAWAY = 2
    EXPLODING = 3
    LATE = 4
    LOST = 5


@dataclass(frozen=True, kw_only=True)
class GuardState:
    """State of the guard, one entry per trial."""

    step: np.ndarray  # int64 [trial], losses observed so far
    counted: np.ndarray  # int64 [trial], losses that `start` is the maximum of, up to window/4
    start: np.ndarray  # float64 [trial], the start, current loss excluded; -inf if unknown
    lowest: np.ndarray  # float64 [trial], lowest loss so far
    highest: np.ndarray  # float64 [trial], highest loss before those in `recent`
    recent: np.ndarray  # float64 [trial, window], last losses in order; -inf before the first
    first_loss: np.ndarray  # float64 [trial], the first loss that is not zero; -inf if none yet
    initial_val_loss: np.ndarray  # float64 [trial], validation loss at step 0; -inf if not measured
    far_count: np.ndarray  # int64 [trial, eighth], losses above `far` lasting reference levels
    far_logs: np.ndarray  # float64 [trial, eighth], their sum of log(excess / reference / rate²)
    recovery_deadline: np.ndarray  # int64 [trial], step until which rule 5 waits, or 0

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the fields by their names in checkpoints."""
        return {STORED_NAMES.get(name, name): array for name, array in self._fields().items()}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> GuardState:
        """Restore a state from `arrays`; fields missing in checkpoints of 0.1.0 get defaults."""
        blank = start(len(arrays["step"]), GuardTable()).arrays()
        names = {stored: name for name, stored in STORED_NAMES.items()}
        found = {**blank, "begun": arrays["first"], **arrays}
        return cls(**{names.get(stored, stored): array for stored, array in found.items()})

    def take(self, trials: np.ndarray | list[int]) -> GuardState:
        """Return the state of the given trials, in that order."""
        return GuardState(**{name: array[trials] for name, array in self._fields().items()})

    def put(self, trial: int, state: GuardState) -> GuardState:
        """Return a copy with one trial's state replaced by `state`, which holds one trial."""
        arrays = {name: array.copy() for name, array in self._fields().items()}
        for name, array in state._fields().items():
            arrays[name][trial] = array[0]
        return GuardState(**arrays)

    def _fields(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def start(trials: int, settings: GuardTable) -> GuardState:
    """Return the state of trials before their first step."""
    return GuardState(
        step=np.zeros(trials, np.int64),
        counted=np.zeros(trials, np.int64),
        start=np.full(trials, -np.inf),
        lowest=np.full(trials, np.inf),
        highest=np.full(trials, -np.inf),
        recent=np.full((trials, settings.window), -np.inf),
        first_loss=np.full(trials, -np.inf),
        initial_val_loss=np.full(trials, -np.inf),
        far_count=np.zeros((trials, EIGHTHS), np.int64),
        far_logs=np.zeros((trials, EIGHTHS)),
        recovery_deadline=np.zeros(trials, np.int64),
    )


@np.errstate(all="ignore")  # losses may be any float, and overflow to infinity is meaningful
def observe(
    state: GuardState,
    loss: np.ndarray,  # float64 [trial]
    grad_norm: np.ndarray,  # float64 [trial]
    *,
    horizon: int,
    warmup: int | np.ndarray,  # steps; one for all, or [trial]
    baseline: float | None,  # training loss of the best constant predictor
    settings: GuardTable,
    rate: float | np.ndarray = 1.0,  # learning rate, in any unit; one for all, or [trial]
) -> tuple[GuardState, np.ndarray]:  # new state; int64 [trial], a `Rule` each
    """Return the state after the next step of every trial, and the rule that stops each."""
    finite = np.isfinite(loss) & np.isfinite(grad_norm)
    # count_nonzero costs a third of any() and all(), and this runs at every step
    all_finite = np.count_nonzero(finite) == len(finite)
    if not all_finite:
        loss = np.where(finite, loss, 0.0)  # a harmless value; rule 1 stops these trials below
    start, counted = state.start, state.counted
    counting = counted < settings.window // 4
    if np.count_nonzero(counting):
        previous = state.recent[:, -1]  # not the current loss, which would be compared with itself
        counting &= (previous != 0.0) & (state.step > 0)
        start = np.where(counting, np.maximum(start, previous), start)
        counted = counted + counting
    first_loss = state.first_loss
    beginning = (first_loss == -np.inf) & (loss != 0.0)
    if np.count_nonzero(beginning):
        first_loss = np.where(beginning, loss, first_loss)
    recent = np.empty_like(state.recent)
    recent[:, :-1] = state.recent[:, 1:]
    recent[:, -1] = loss
    new = GuardState(
        step=state.step + 1,
        counted=counted,
        start=start,
        lowest=np.minimum(state.lowest, loss),
        highest=np.maximum(state.highest, state.recent[:, 0]),
        recent=recent,
        first_loss=first_loss,
        initial_val_loss=state.initial_val_loss,
        far_count=state.far_count,
        far_logs=state.far_logs,
        recovery_deadline=state.recovery_deadline,
    )
    floor = np.minimum(new.lowest, 0.0)
    level = _level(start, floor)
    # no rule applies below this threshold, and few steps of a healthy trial are above it
    threshold = min(settings.far, settings.late_margin, settings.runaway)
    suspect = loss - floor > threshold * level
    lasting = _lasting_reference(new, floor, baseline, settings)
    far = loss - floor > settings.far * lasting
    if np.count_nonzero(far):
        heights = np.log((loss - floor) / lasting / rate**2)
        new = _with_far_losses(new, far, heights, horizon)
    elif all_finite and not np.count_nonzero(suspect):
        return new, np.zeros(len(loss), np.int64)
    rule = _rules_2_to_4(new, level, suspect, horizon, warmup, baseline, settings)
    candidates = far & (rule == Rule.NONE)
    candidates &= (new.step > settings.late * horizon) & (new.step > new.recovery_deadline)
    if np.count_nonzero(candidates):
        lost = _stayed_far(new, horizon, warmup, min_losses=settings.window // 4)
        rule[candidates & lost] = Rule.LOST
    return new, np.where(finite, rule, Rule.NON_FINITE)


@np.errstate(all="ignore")
def calm_below(
    state: GuardState, settings: GuardTable, baseline: float | None = None
) -> np.ndarray:  # float64 [trial]
    """Return the level below which no rule can stop a trial, so that `absorb` may take the losses.

    It holds for non-negative losses with finite gradient norms until the next call of `observe`,
    and is minus infinity while the reference levels are unknown.
    """
    known = (state.counted >= settings.window // 4) & (state.lowest >= 0)
    threshold = min(settings.far, settings.late_margin, settings.runaway)
    lasting = _lasting_reference(state, np.zeros(len(known)), baseline, settings)
    bound = np.minimum(threshold * np.abs(state.start), settings.far * lasting)
    return np.where(known, bound, -np.inf)


def absorb(state: GuardState, losses: np.ndarray) -> GuardState:  # losses: float64 [trial, step]
    """Return the state after losses below `calm_below`, as if each had been observed."""
    window = state.recent.shape[1]
    seen = np.concatenate([state.recent, losses], axis=1)
    return replace(
        state,
        step=state.step + losses.shape[1],
        lowest=np.minimum(state.lowest, losses.min(axis=1, initial=np.inf)),
        highest=np.maximum(state.highest, seen[:, :-window].max(axis=1, initial=-np.inf)),
        recent=seen[:, -window:],
    )


@np.errstate(all="ignore")
def explain(
    rule: int,
    state: GuardState,  # of one trial, after the step
    *,
    loss: float,
    grad_norm: float,
    horizon: int,
    baseline: float | None,
    settings: GuardTable,
) -> str:
    """Return the reason why a rule stopped a trial, with its numbers, as a clause of text."""
    step = int(state.step[0]) - 1
    floor = np.minimum(state.lowest, 0.0)
    started = _level(state.start, floor)
    above = _level(np.array([baseline or 0.0]), floor) if baseline else np.zeros(1)
    if above[0] > started[0]:
        reference = f"{above[0]:.4g}, the level of the best constant predictor"
    else:
        reference = f"{started[0]:.4g}, the level of its first steps"
    match rule:
        case Rule.NON_FINITE if np.isfinite(loss):
            return f"the gradient's norm was {grad_norm} at step {step} (loss {loss:.4g})"
        case Rule.NON_FINITE:
            return f"the loss was {loss} at step {step}"
        case Rule.RUNAWAY:
            return (
                f"the loss ran away: {loss:.4g} at step {step}, more than {settings.runaway:g} "
                f"times {reference}"
            )
        case Rule.EXPLODING:
            logs = _logs(state, np.maximum(started, above), floor)
            means = ", ".join(f"{mean:.4g}" for mean in np.exp(logs.reshape(4, -1).mean(axis=1)))
            return (
                f"the loss exploded: {loss:.4g} at step {step}, more than {settings.far:g} times "
                f"{reference}, and growing (means of the last 4 times {settings.window // 4} "
                f"steps: {means})"
            )
        case Rule.LOST:
            lasting = _lasting_reference(state, floor, baseline, settings)[0]
            return (
                f"the loss jumped and did not come back: {loss:.4g} at step {step} of {horizon}, "
                f"and for half of the horizon mostly more than {settings.far:g} times "
                f"{lasting:.4g}, the level where it began"
            )
        case _:
            half = settings.window // 2
            before, last = (state.recent[0].reshape(2, half) - floor[0]).mean(axis=1)
            return (
                f"the loss was still rising late: {loss:.4g} at step {step} of {horizon}, more "
                f"than {settings.late_margin:g} times {started[0]:.4g}, the level of its first "
                f"steps (means of the last 2 times {half} steps: {before:.4g}, {last:.4g})"
            )


def _rules_2_to_4(
    state: GuardState,
    started: np.ndarray,  # float64 [trial], level of the start
    suspect: np.ndarray,  # bool [trial]
    horizon: int,
    warmup: int | np.ndarray,
    baseline: float | None,
    settings: GuardTable,
) -> np.ndarray:  # int64 [trial]
    """Return the rule among 2 to 4 that stops each trial, or `Rule.NONE`."""
    at = state.step - 1
    loss = state.recent[:, -1]
    floor = np.minimum(state.lowest, 0.0)
    excess = loss - floor
    reference = _reference_level(state, floor, baseline)
    rule = np.zeros(len(loss), np.int64)

    warm = suspect & (at >= warmup)
    quarter = settings.window // 4
    height = state.recent[:, -quarter:].max(axis=1) - floor
    rose = warm & (height >= settings.growth * (state.highest - floor))
    runaway = rose & (excess > settings.runaway * reference) & (at >= warmup + 3 * quarter - 1)
    if runaway.any():
        rises = _rises(_logs(state, reference, floor))[:, 1:]
        runaway &= (rises >= np.log(settings.growth)).all(axis=1) & _steady(rises)
    runaway |= warm & (excess > JUMP * settings.runaway * reference)
    whole = rose & (at >= warmup + settings.window - 1)

    late = whole & (at >= settings.late * horizon)
    if late.any():
        before, last = np.split(state.recent, 2, axis=1)
        late &= last.min(axis=1) - floor > settings.late_margin * started
        late &= last.min(axis=1) > before.max(axis=1)
        late &= last.mean(axis=1) - floor >= settings.growth * (before.mean(axis=1) - floor)
        late &= _steady(_rises(state.recent))
        rule[late] = Rule.LATE

    exploding = whole & (excess > settings.far * reference)
    if exploding.any():
        logs = _logs(state, reference, floor)
        rises = _rises(logs)
        exploding &= (rises >= np.log(settings.growth)).all(axis=1) & _steady(rises)
        quarters = logs.reshape(len(logs), 4, -1)
        exploding &= rises.sum(axis=1) >= SCATTERS * quarters.std(axis=2).mean(axis=1)
        exploding &= quarters[:, -1].mean(axis=1) > np.log(settings.far * reference)
        rule[exploding] = Rule.EXPLODING

    rule[runaway] = Rule.RUNAWAY
    return rule


# --- rule 5: losses that stay far above the lasting reference level. Only such losses are
# recorded, so most steps of a healthy trial need no work.


def _with_far_losses(
    state: GuardState,
    far: np.ndarray,  # bool [trial], whether the loss is above `far` lasting reference levels
    height: np.ndarray,  # float64 [trial], log(excess / reference / rate²)
    horizon: int,
) -> GuardState:
    """Return the state with the far losses of this step counted in their eighth of the horizon."""
    count, logs = state.far_count.copy(), state.far_logs.copy()
    trials = np.flatnonzero(far)
    eighth = np.minimum((state.step - 1)[trials] * EIGHTHS // horizon, EIGHTHS - 1)
    count[trials, eighth] += 1
    logs[trials, eighth] += height[trials]
    return replace(state, far_count=count, far_logs=logs)


def _stayed_far(
    state: GuardState,
    horizon: int,
    warmup: int | np.ndarray,  # steps; one for all, or [trial]
    *,
    min_losses: int,  # in an eighth, for it to be judged
) -> np.ndarray:  # bool [trial]
    """Return which trials were far up without recovering in the last four complete eighths."""
    edges = -(-np.arange(EIGHTHS + 1) * horizon // EIGHTHS)  # [9], first step of each eighth
    lengths = np.diff(edges)
    if lengths.min() < min_losses:
        return np.zeros(len(state.step), bool)
    half = EIGHTHS // 2
    current = np.minimum((state.step - 1) * EIGHTHS // horizon, EIGHTHS - 1)
    eighths = np.maximum(current, half)[:, None] - half + np.arange(half)  # [trial, 4]
    counts = np.take_along_axis(state.far_count, eighths, axis=1)
    means = np.take_along_axis(state.far_logs, eighths, axis=1) / counts
    stayed: np.ndarray = (current >= half) & (edges[eighths[:, 0]] >= warmup)
    stayed &= (2 * counts > lengths[eighths]).all(axis=1)
    stayed &= means[:, 0] - means[:, -1] < FALL * (half - 1)
    return stayed


# --- levels and rises


def log_heights(
    state: GuardState, baseline: float | None, settings: GuardTable, *, lasting: bool
) -> np.ndarray:  # float64 [trial, window]
    """Return log(excess / reference level) of the losses in the window, at least 0."""
    floor = np.minimum(state.lowest, 0.0)
    reference = (
        _lasting_reference(state, floor, baseline, settings)
        if lasting
        else _reference_level(state, floor, baseline)
    )
    logs: np.ndarray = _logs(state, reference, floor) - np.log(reference)[:, None]
    return logs


def _logs(state: GuardState, reference: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Return the logs of the window's excesses, each at least `reference`; [trial, window]."""
    logs: np.ndarray = np.log(np.maximum(state.recent - floor[:, None], reference[:, None]))
    return logs


def _rises(window: np.ndarray) -> np.ndarray:
    """Return the rise of the mean from each quarter of a window to the next; [trial, 3]."""
    return np.diff(window.reshape(len(window), 4, -1).mean(axis=2), axis=1)


def _steady(rises: np.ndarray) -> np.ndarray:
    """Return whether rises [trial, 3] are steady; bool [trial]."""
    steady: np.ndarray = rises.min(axis=1) >= STEADY * np.abs(rises).max(axis=1)
    return steady


def _reference_level(state: GuardState, floor: np.ndarray, baseline: float | None) -> np.ndarray:
    """Return the reference level; [trial]."""
    started = _level(state.start, floor)
    return started if baseline is None else np.maximum(started, _level(baseline, floor))


def _lasting_reference(
    state: GuardState, floor: np.ndarray, baseline: float | None, settings: GuardTable
) -> np.ndarray:
    """Return the lasting reference level; [trial]."""
    known = 0.0 if baseline is None else _level(baseline, floor)
    first_level = _level(state.first_loss, floor)
    outlier = first_level > settings.far * known
    own = np.where(outlier, _level(state.start, floor), first_level)
    measured = np.maximum(first_level, _level(state.initial_val_loss, floor))
    own = np.where(state.initial_val_loss > -np.inf, measured, own)
    lasting: np.ndarray = np.maximum(own, known)
    return lasting


def _level(loss: float | np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Return the level of a loss: its excess, or its absolute value if larger; [trial]."""
    return np.maximum(np.abs(loss), loss - floor)
