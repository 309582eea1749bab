"""The divergence guard: which trials can no longer be saved, and why, from their losses alone.

It is pure and goes by [trial], elementwise, so a trial is judged alike in any company. Pruning is
another matter: too slow, oscillating or stuck trials are never stopped here. The words, then the
rules; bold names are settings (`[guard]` in a study file) with their defaults.

- *excess*: how far a loss is above floor = min(0, lowest loss so far). So it is the loss itself
  until a loss is negative, and a level can be compared with another by their ratio.
- *start*: the highest of the first **window**/4 losses that are not zero, of those before the one
  that is judged; so one lucky batch sets no standard for long. Its level is its excess, or its
  size |start| where that is more: a first loss of -5 is its own floor, and still says that
  losses here come in fives.
- *standard*: the level of the start, or of the baseline (the loss of the best constant predictor)
  where there is one and it is higher. A trial that begins far above its baseline has not diverged
  by beginning there.

- *lasting standard*: how high the trial began; the start itself may be after a jump already. It is
  the level of the loss of all validation data before the first step, or of the first loss or the
  baseline where that is more. Where that was not measured, it is the standard, but with the level
  of the first loss for that of the start, if it is within **far** baselines: farther up, or without
  a baseline, it may have been luck, and the start's level stays.

1. **Non-finite**: the loss or the gradient's norm is nan or infinite. At once, in warm-up too.

Nothing else stops a trial within its warm-up; rules 3 to 5 look at windows after it. Rules 2, 3 and
5 are half of the answer: falling rates may bring a trial back (`tuner.training.guard.recovery`).

2. **Runaway**: an excess above **runaway** (1e6) standards, at a new height, that grew steadily and
   by **growth** or more from quarter to quarter of the last three; or, at once, an excess above
   10,000 times that. Below it a single jump proves nothing: optimisers whose steps are bounded come
   back from it.
3. **Exploding**: exponential growth, far up. In each quarter of the last **window** (16) losses
   take the geometric mean of the excesses, where those below the standard count as the standard.
   It rose by a factor of **growth** (1.05) or more from quarter to quarter, three times in a row;
   it rose steadily; all three rises together are three times the scatter within quarters or more
   (in logarithms); the last loss and the last quarter's mean are above **far** (10) standards;
   and the last quarter holds a new height.
4. **Late**: past **late** (0.5) of the horizon, every one of the last **window**/2 losses has an
   excess above **late_margin** (1.5) levels of the start, and is above every one of the window/2
   before; their mean excess rose by **growth** or more; the means of the quarters rose steadily;
   and the last quarter holds a new height. This is for explosions too slow for rule 3. Noise
   alone passes the second condition once in 12,870 windows, and hardly ever all of them.

5. **Lost**: past **late** of the horizon, in each of the last four whole eighths of the horizon
   more than half of the losses had an excess above **far** lasting standards, and so has this one;
   and their geometric means, over the square of the rate, fell by less than a factor of e in a
   quarter of the horizon. What falls faster is on its way back, if too slow; what only follows its
   rate is not. This is for jumps to a height where nothing grows.

*Steadily*: the smallest of the three rises is at least a third of the greatest, so that neither a
spike nor a jump to a higher level counts: they rise once or twice. *A new height*: an excess
**growth** times that of any loss before the window, so a steady oscillation does not count,
however slow. One whose envelope grows does, by rule 3 or, if it is wild, by rule 2. (Gradient
descent and heavy ball just above their stable limit grow smoothly: the dominant root is real.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import numpy as np

from tuner.config import GuardTable
from tuner.training.guard import horizons

STEADY = 1 / 3
"""The smallest of three rises is at least this share of the greatest, if they are steady."""

SCATTERS = 3.0
"""A rise over the window is at least so many times the scatter within its quarters."""

JUMP = 1e4
"""A single loss is believed to have run away at so many times what growth needs to."""


class Verdict(IntEnum):
    """What the guard says of a trial after a step; anything but `GO` stops it."""

    GO = 0
    NON_FINITE = 1
    RUNAWAY = 2
    EXPLODING = 3
    LATE = 4
    LOST = 5


@dataclass(frozen=True, kw_only=True)
class GuardState:
    """What the guard remembers of each trial."""

    step: np.ndarray  # int64 [trial], losses seen so far
    counted: np.ndarray  # int64 [trial], those that made `first`, up to a quarter window
    first: np.ndarray  # float64 [trial], the start as of the step before; -inf: none yet
    lowest: np.ndarray  # float64 [trial], loss so far
    highest: np.ndarray  # float64 [trial], loss before those in `recent`
    recent: np.ndarray  # float64 [trial, window], losses, the last one last; -inf before the first
    begun: np.ndarray  # float64 [trial], the first loss that is not zero; -inf: none yet
    initial: np.ndarray  # float64 [trial], loss on all validation data at step 0; -inf: not known
    far_count: np.ndarray  # int64 [trial, eighth], losses above `far` lasting standards
    far_logs: np.ndarray  # float64 [trial, eighth], sum of their log(excess / standard / rate²)
    awaited: np.ndarray  # int64 [trial], the step by which what exploded is expected back; or 0

    def arrays(self) -> dict[str, np.ndarray]:
        """Give the state as a dict, for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> GuardState:
        """Restore what `arrays` gave; version 0.1.0 had no long memory, so it begins there."""
        blank = start(len(arrays["step"]), GuardTable()).arrays()
        return cls(**{**blank, "begun": arrays["first"], **arrays})

    def take(self, trials: np.ndarray | list[int]) -> GuardState:
        """Give the state of some trials, in that order."""
        return GuardState(**{name: array[trials] for name, array in self.arrays().items()})

    def put(self, trial: int, state: GuardState) -> GuardState:
        """Replace the state of one trial by that of the only one in `state`."""
        arrays = {name: array.copy() for name, array in self.arrays().items()}
        for name, array in state.arrays().items():
            arrays[name][trial] = array[0]
        return GuardState(**arrays)


def start(trials: int, settings: GuardTable) -> GuardState:
    """Give the state of trials that have not made a step."""
    return GuardState(
        step=np.zeros(trials, np.int64),
        counted=np.zeros(trials, np.int64),
        first=np.full(trials, -np.inf),
        lowest=np.full(trials, np.inf),
        highest=np.full(trials, -np.inf),
        recent=np.full((trials, settings.window), -np.inf),
        begun=np.full(trials, -np.inf),
        initial=np.full(trials, -np.inf),
        far_count=np.zeros((trials, horizons.EIGHTHS), np.int64),
        far_logs=np.zeros((trials, horizons.EIGHTHS)),
        awaited=np.zeros(trials, np.int64),
    )


@np.errstate(all="ignore")  # losses may be anything at all, and overflow is an answer here
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
) -> tuple[GuardState, np.ndarray]:  # and verdicts, int64 [trial]
    """Take in the next step of every trial, and judge it."""
    finite = np.isfinite(loss) & np.isfinite(grad_norm)
    # count_nonzero, since any() and all() cost thrice as much, and every step comes through here
    all_finite = np.count_nonzero(finite) == len(finite)
    if not all_finite:
        loss = np.where(finite, loss, 0.0)  # those stop below; a number that warns of nothing
    first, counted = state.first, state.counted
    counting = counted < settings.window // 4
    if np.count_nonzero(counting):
        previous = state.recent[:, -1]  # not this loss: it would be measured by itself
        counting &= (previous != 0.0) & (state.step > 0)
        first = np.where(counting, np.maximum(first, previous), first)
        counted = counted + counting
    begun = state.begun
    beginning = (begun == -np.inf) & (loss != 0.0)
    if np.count_nonzero(beginning):
        begun = np.where(beginning, loss, begun)
    recent = np.empty_like(state.recent)
    recent[:, :-1] = state.recent[:, 1:]
    recent[:, -1] = loss
    new = GuardState(
        step=state.step + 1,
        counted=counted,
        first=first,
        lowest=np.minimum(state.lowest, loss),
        highest=np.maximum(state.highest, state.recent[:, 0]),
        recent=recent,
        begun=begun,
        initial=state.initial,
        far_count=state.far_count,
        far_logs=state.far_logs,
        awaited=state.awaited,
    )
    floor = np.minimum(new.lowest, 0.0)
    level = _level(first, floor)
    # no rule below can speak under these lines, and hardly any step of a healthy trial is above
    line = min(settings.far, settings.late_margin, settings.runaway)
    suspect = loss - floor > line * level
    lasting = _lasting(new, floor, baseline, settings)
    far = loss - floor > settings.far * lasting
    if np.count_nonzero(far):
        heights = np.log((loss - floor) / lasting / rate**2)
        count, logs = horizons.remember(
            new.far_count, new.far_logs, new.step - 1, far, heights, horizon
        )
        new = replace(new, far_count=count, far_logs=logs)
    elif all_finite and not np.count_nonzero(suspect):
        return new, np.zeros(len(loss), np.int64)
    verdict = _judge(new, level, suspect, horizon, warmup, baseline, settings)
    may_be = far & (verdict == Verdict.GO)
    may_be &= (new.step > settings.late * horizon) & (new.step > new.awaited)
    if np.count_nonzero(may_be):
        at, fewest = new.step - 1, settings.window // 4
        gone = horizons.lost(new.far_count, new.far_logs, at, horizon, warmup, fewest)
        verdict[may_be & gone] = Verdict.LOST
    return new, np.where(finite, verdict, Verdict.NON_FINITE)


@np.errstate(all="ignore")
def calm_below(
    state: GuardState, settings: GuardTable, baseline: float | None = None
) -> np.ndarray:  # float64 [trial]
    """Give the level under which losses need no judging: `absorb` takes them in, many at a time.

    It holds for losses of 0 or more with a finite gradient, until `observe` is called again;
    minus infinity where nothing is known yet.
    """
    known = (state.counted >= settings.window // 4) & (state.lowest >= 0)
    line = min(settings.far, settings.late_margin, settings.runaway)
    lasting = _lasting(state, np.zeros(len(known)), baseline, settings)
    bound = np.minimum(line * np.abs(state.first), settings.far * lasting)
    return np.where(known, bound, -np.inf)


def absorb(state: GuardState, losses: np.ndarray) -> GuardState:  # losses: float64 [trial, step]
    """Take in calm losses; the same as to `observe` them one by one."""
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
def sentence(
    verdict: int,
    state: GuardState,  # after the step, of one trial
    *,
    loss: float,
    grad_norm: float,
    horizon: int,
    baseline: float | None,
    settings: GuardTable,
) -> str:
    """Say to a person why a trial was stopped, with the numbers."""
    step = int(state.step[0]) - 1
    floor = np.minimum(state.lowest, 0.0)
    started = _level(state.first, floor)
    above = _level(np.array([baseline or 0.0]), floor) if baseline else np.zeros(1)
    if above[0] > started[0]:
        standard = f"{above[0]:.4g}, the level of the best constant predictor"
    else:
        standard = f"{started[0]:.4g}, the level of its first steps"
    match verdict:
        case Verdict.NON_FINITE if np.isfinite(loss):
            return f"the gradient's norm was {grad_norm} at step {step} (loss {loss:.4g})"
        case Verdict.NON_FINITE:
            return f"the loss was {loss} at step {step}"
        case Verdict.RUNAWAY:
            return (
                f"the loss ran away: {loss:.4g} at step {step}, more than {settings.runaway:g} "
                f"times {standard}"
            )
        case Verdict.EXPLODING:
            logs = _logs(state, np.maximum(started, above), floor)
            means = ", ".join(f"{mean:.4g}" for mean in np.exp(logs.reshape(4, -1).mean(axis=1)))
            return (
                f"the loss exploded: {loss:.4g} at step {step}, more than {settings.far:g} times "
                f"{standard}, and growing (means of the last 4 times {settings.window // 4} "
                f"steps: {means})"
            )
        case Verdict.LOST:
            lasting = _lasting(state, floor, baseline, settings)[0]
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


def _judge(
    state: GuardState,
    started: np.ndarray,  # float64 [trial], level of the start
    suspect: np.ndarray,  # bool [trial]
    horizon: int,
    warmup: int | np.ndarray,
    baseline: float | None,
    settings: GuardTable,
) -> np.ndarray:  # int64 [trial]
    """Apply rules 2 to 4."""
    at = state.step - 1
    loss = state.recent[:, -1]
    floor = np.minimum(state.lowest, 0.0)
    excess = loss - floor
    standard = _standard(state, floor, baseline)
    verdict = np.zeros(len(loss), np.int64)

    warm = suspect & (at >= warmup)
    quarter = settings.window // 4
    height = state.recent[:, -quarter:].max(axis=1) - floor
    rose = warm & (height >= settings.growth * (state.highest - floor))
    runaway = rose & (excess > settings.runaway * standard) & (at >= warmup + 3 * quarter - 1)
    if runaway.any():
        rises = _rises(_logs(state, standard, floor))[:, 1:]
        runaway &= (rises >= np.log(settings.growth)).all(axis=1) & _steady(rises)
    runaway |= warm & (excess > JUMP * settings.runaway * standard)
    whole = rose & (at >= warmup + settings.window - 1)

    late = whole & (at >= settings.late * horizon)
    if late.any():
        before, last = np.split(state.recent, 2, axis=1)
        late &= last.min(axis=1) - floor > settings.late_margin * started
        late &= last.min(axis=1) > before.max(axis=1)
        late &= last.mean(axis=1) - floor >= settings.growth * (before.mean(axis=1) - floor)
        late &= _steady(_rises(state.recent))
        verdict[late] = Verdict.LATE

    exploding = whole & (excess > settings.far * standard)
    if exploding.any():
        logs = _logs(state, standard, floor)
        rises = _rises(logs)
        exploding &= (rises >= np.log(settings.growth)).all(axis=1) & _steady(rises)
        quarters = logs.reshape(len(logs), 4, -1)
        exploding &= rises.sum(axis=1) >= SCATTERS * quarters.std(axis=2).mean(axis=1)
        exploding &= quarters[:, -1].mean(axis=1) > np.log(settings.far * standard)
        verdict[exploding] = Verdict.EXPLODING

    verdict[runaway] = Verdict.RUNAWAY
    return verdict


def heights(
    state: GuardState, baseline: float | None, settings: GuardTable, *, lasting: bool
) -> np.ndarray:  # float64 [trial, window]
    """Give the logs of how many standards the window's excesses are, at least one."""
    floor = np.minimum(state.lowest, 0.0)
    standard = (
        _lasting(state, floor, baseline, settings) if lasting else _standard(state, floor, baseline)
    )
    logs: np.ndarray = _logs(state, standard, floor) - np.log(standard)[:, None]
    return logs


def _logs(state: GuardState, standard: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Give the logs of the window's excesses, at least the standard's; [trial, window]."""
    logs: np.ndarray = np.log(np.maximum(state.recent - floor[:, None], standard[:, None]))
    return logs


def _rises(window: np.ndarray) -> np.ndarray:
    """Tell by how much the mean rose from each quarter of a window to the next; [trial, 3]."""
    return np.diff(window.reshape(len(window), 4, -1).mean(axis=2), axis=1)


def _steady(rises: np.ndarray) -> np.ndarray:
    """Tell whether rises [trial, 3] are all of one kind; bool [trial]."""
    steady: np.ndarray = rises.min(axis=1) >= STEADY * np.abs(rises).max(axis=1)
    return steady


def _standard(state: GuardState, floor: np.ndarray, baseline: float | None) -> np.ndarray:
    """Give the standard; [trial]."""
    started = _level(state.first, floor)
    return started if baseline is None else np.maximum(started, _level(baseline, floor))


def _lasting(
    state: GuardState, floor: np.ndarray, baseline: float | None, settings: GuardTable
) -> np.ndarray:
    """Give the lasting standard; [trial]."""
    known = 0.0 if baseline is None else _level(baseline, floor)
    begun = _level(state.begun, floor)
    may_be_luck = begun > settings.far * known
    own = np.where(may_be_luck, _level(state.first, floor), begun)
    measured = np.maximum(begun, _level(state.initial, floor))
    own = np.where(state.initial > -np.inf, measured, own)
    lasting: np.ndarray = np.maximum(own, known)
    return lasting


def _level(loss: float | np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Tell how high a loss that serves as a standard is: its excess, or its size if more."""
    return np.maximum(np.abs(loss), loss - floor)
