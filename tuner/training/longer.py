"""Continue a trial to a longer horizon from a checkpoint of a shorter one.

That is possible where the trial's rates up to the checkpoint are the same under both horizons. What
else depends on the horizon, such as the state of the guard, is computed again from the curve, so
the longer trial is bit by bit the one that would have been trained from its first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from tuner.config import ParameterValue, StudySpec, TrialSettings, own, settings_of
from tuner.core.curves import Chunk
from tuner.training import checkpoint, objective
from tuner.training.guard.monitor import GuardMonitor, SparseMonitor
from tuner.training.objective import NO_EVALUATIONS
from tuner.training.rate_source import initial_multipliers, rate_source
from tuner.training.trainer import Status

WORTHWHILE = 0.1
"""The least share of a trial that a kept checkpoint saves; below it none is kept."""


STEMS = ("constant", "wsd")
"""Schedules that begin with a constant rate, of which decays at any horizon can branch."""


def shared_steps(
    params: Mapping[str, ParameterValue],
    horizon: int,
    longer: int,
    longer_params: Mapping[str, ParameterValue] | None = None,  # the same, unless given
) -> int:
    """Return how many first steps of a trial have the same rates under a longer horizon.

    Evaluations may reduce the rates of both, see `RateSource.factor`.
    """
    short = initial_multipliers(params, horizon).numpy()
    long = initial_multipliers(longer_params or params, longer).numpy()
    count = min(horizon, longer)
    same = short[:count] == long[:count]
    return count if same.all() else int(np.argmin(same))


def warmup_steps(params: Mapping[str, ParameterValue], horizon: int) -> int:
    """Return the steps of a trial's warm-up, which is a share of its horizon."""
    share = float(own(params, str(params["schedule"])).get("warmup", 0.0))
    return min(round(share * horizon), horizon - 1)


def step_to_keep(spec: StudySpec, params: Mapping[str, ParameterValue], horizon: int) -> int:
    """Return the last step whose checkpoint a longer trial can continue from; 0: keep none.

    A branch of a stem has as many steps of warm-up as the stem.
    """
    if not spec.training.keep_checkpoint:
        return 0
    longer, name = dict(params), params["schedule"]
    if name in STEMS:
        longer[f"{name}.warmup"] = warmup_steps(params, horizon) / (2 * horizon)
    step = shared_steps(params, horizon, 2 * horizon, longer)
    return step if step >= WORTHWHILE * horizon else 0


def steps_to_save(
    spec: StudySpec, params: Mapping[str, ParameterValue], settings: TrialSettings
) -> frozenset[int]:
    """Return the steps at which a train function has to save, so that a checkpoint can be kept.

    A function that is pruned at a rung does not come to save there, so it saves one step before.
    """
    kept = step_to_keep(spec, params, settings.steps)
    return frozenset({kept, *(rung - 1 for rung in settings.rungs if rung <= kept)} - {0})


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """Where a longer trial begins: a snapshot for its trainer, and the curve up to there."""

    snapshot: bytes
    curve: Chunk


def continue_from(
    snapshot: bytes,
    curve: Chunk,
    params: Mapping[str, ParameterValue],
    *,
    shorter: StudySpec,
    shorter_params: Mapping[str, ParameterValue],  # the same, but for the schedule
    longer: StudySpec,
    sizes: tuple[int | None, bool],  # see `tuner.ledger.records.sizes_of`
    baseline: float | None,  # training loss of the best constant predictor
) -> Continuation:
    """Convert the snapshot of a trial of one study for its trial of another study.

    The studies differ in the budget of a trial, their schedules and their pruners alone; `curve`
    is the trial's whole curve. Raise `ValueError` if the longer trial cannot continue from there.
    """
    state = checkpoint.from_bytes(snapshot)
    is_function = "saved" in state
    inner = state["saved"] if is_function else state
    if inner is None:
        raise ValueError("its train function saved no checkpoint")
    before = settings_of(shorter, shorter_params, *sizes)
    after = settings_of(longer, params, *sizes)
    if state["fingerprint"].get("steps") != before.steps:
        raise ValueError("its checkpoint is of another horizon")
    replay = _Replay(params, shorter_params, shorter, longer, before, after, baseline, is_function)
    # a function may save between an update and the evaluation after it, which it then repeats
    counted = inner["progress"]["last_step"] if is_function else inner["step"]
    replay.run(curve, inner["step"], counted)
    pace = replay.rate_source.state()
    if is_function and pace != inner.get("pace", {}):
        raise ValueError("its schedule has seen evaluations that a longer trial has not")
    inner["guard"] = replay.monitor.state()
    inner["progress"] = asdict(replay.progress)
    if not is_function:
        inner.get("trained", inner)["pace"] = pace
    state["status"] = Status.TRAINING.value
    common = {k: v for k, v in state["fingerprint"].items() if not k.startswith("params ")}
    own_params = {f"params {key}": value for key, value in params.items()}
    state["fingerprint"] = {**common, **own_params, "steps": after.steps}
    begun = _first(curve, inner["step"], replay.kept)
    return Continuation(snapshot=checkpoint.to_bytes(state), curve=begun)


class _Replay:
    """What a longer trial has observed at the step of a checkpoint, computed from the curve."""

    def __init__(
        self,
        params: Mapping[str, ParameterValue],
        shorter_params: Mapping[str, ParameterValue],
        shorter: StudySpec,
        longer: StudySpec,
        before: TrialSettings,
        after: TrialSettings,
        baseline: float | None,
        is_function: bool,
    ) -> None:
        self._schedule = str(params["schedule"])
        self._spec, self._is_function = longer, is_function
        self._before, self._after = before, after
        self._shorter = rate_source(shorter_params, before.steps, shorter.study.direction)
        self.rate_source = rate_source(params, after.steps, longer.study.direction)
        self.monitor = GuardMonitor(longer, after, params, self.rate_source, baseline)
        self._judge = SparseMonitor(self.monitor)
        self.progress = NO_EVALUATIONS
        # the shorter trial has evaluations at its rungs and its end beside the regular ones
        self._extra = frozenset(before.evaluation_steps) - frozenset(after.evaluation_steps)

    def kept(self, step: int) -> bool:
        """Return whether the longer trial has an evaluation of the shorter one, too."""
        return step not in self._extra

    def run(self, curve: Chunk, step: int, counted: int) -> None:
        """Repeat the first `step` rows, and the evaluations up to step `counted`.

        Raise `ValueError` if the rates are not the same, or if the longer trial ends before.
        """
        if curve.first_step > 0 or curve.next_step < step:
            raise ValueError(f"its curve does not have all rows up to step {step}")
        evaluated = [one for one in curve.eval_steps.tolist() if one <= counted]
        missing = {one for one in self._after.evaluation_steps if one <= step} - {*evaluated}
        if missing and not self._is_function:
            raise ValueError(f"it was not evaluated at step {min(missing)}")
        names, columns, at = curve.metrics, curve.columns, 0
        for index, evaluation in enumerate([*evaluated, step]):
            self._compare_rates(at, evaluation)
            rows = zip(
                columns["train_loss"][at:evaluation].tolist(),
                columns["grad_norm"][at:evaluation].tolist(),
                curve.reported[at:evaluation].tolist(),
                strict=True,
            )
            for loss, grad_norm, reported in rows:
                self._observe(loss, grad_norm, reported)
            at = evaluation
            if index < len(evaluated):
                values = {name: float(column[index]) for name, column in names.items()}
                self._evaluate(evaluation, values)

    def _compare_rates(self, step: int, end: int) -> None:
        short, long = (s.rates(step, end - step) for s in (self._shorter, self.rate_source))
        if short != long:
            raise ValueError(f"{self._schedule} depends on the horizon")

    def _observe(self, loss: float, grad_norm: float, reported: bool) -> None:
        if not reported:
            self._judge.unjudged += 1
            return
        # mixed precision has skipped a step with a gradient that is not finite
        skipped = math.isfinite(loss) and not math.isfinite(grad_norm)
        if reason := self._judge.observe(loss, 0.0 if skipped else grad_norm):
            raise ValueError(f"the guard would have stopped it before: {reason}")

    def _evaluate(self, step: int, metrics: Mapping[str, float]) -> None:
        value = metrics[self._spec.study.metric]
        self._shorter.evaluated(step, value)
        if not self.kept(step):
            return
        if step == 0 and not self._is_function:
            self.monitor.set_initial_loss(metrics["val_loss"])
        self.rate_source.evaluated(step, value)
        self.progress = objective.with_evaluation(self._spec, self.progress, step, value)
        if reason := objective.early_stop_reason(self._spec, self.progress, self._after.steps):
            raise ValueError(reason)


def _first(curve: Chunk, step: int, kept: Callable[[int], bool]) -> Chunk:
    """Return the first `step` rows of a curve, with the evaluations up to there that are kept."""
    evaluations = [n for n, at in enumerate(curve.eval_steps.tolist()) if at <= step and kept(at)]
    return replace(
        curve,
        columns={name: values[:step] for name, values in curve.columns.items()},
        times=curve.times[:step],
        eval_steps=curve.eval_steps[evaluations],
        eval_times=curve.eval_times[evaluations],
        metrics={name: values[evaluations] for name, values in curve.metrics.items()},
        branches=(),
    )
