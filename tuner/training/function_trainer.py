"""The trainer of train functions: each runs in a thread of its own, in lockstep with the trainer.

Either the function's thread runs or the trainer's, never both: `report` blocks where `advance` must
return, so a function's curve does not depend on what happens in between.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
import torch

from tuner.config import StudySpec, settings_of
from tuner.core.errors import WorkloadError
from tuner.training import checkpoint, foreign_state, objective, out_of_memory, random_state
from tuner.training.branches import Branch, BranchPlan, seed_of_branch
from tuner.training.guard.monitor import GuardMonitor, SparseMonitor
from tuner.training.longer import steps_to_save
from tuner.training.objective import NO_EVALUATIONS, TIME_HINT, Progress
from tuner.training.rate_source import rate_source
from tuner.training.train_functions import TrainFunction
from tuner.training.trainer import (
    ENDED,
    TRAIN_COLUMNS,
    Evaluation,
    Event,
    Segment,
    Status,
    Task,
)
from tuner.training.trial import StopTrial, Trial

GRACE_SECONDS = 30.0
"""Seconds that an evicted function may take to clean up before its thread is abandoned."""

BranchEnd: TypeAlias = tuple[dict[str, float], BaseException | None]
"""The metrics of a branch, and what it raised."""

log = logging.getLogger(__name__)


class _Member:
    """The trial in training and the thread of its function; its `ReportSink`.

    The trainer's thread calls `advance` and `end`. The function's thread calls the methods of
    `ReportSink` while the trainer's thread waits.
    """

    def __init__(
        self,
        function: TrainFunction,
        task: Task,
        spec: StudySpec,
        clock: Callable[[], float],
        grace: float,
    ) -> None:
        self.task = task
        self.status = Status.TRAINING
        self.random = random_state.seeded_all(task.seed, _device(spec))
        self.saved: dict[str, Any] | None = None  # by the last call of `save`
        self.seconds = 0.0  # in training, before this call of `advance`
        self.first_step = 0
        self._function = function
        self._spec = spec
        self._clock = clock
        self._grace = grace
        self._settings = settings_of(spec, task.params, function.training_rows)
        self._rungs = self._settings.rungs
        self.rate_source = rate_source(task.params, self._settings.steps, spec.study.direction)
        self._monitor = GuardMonitor(
            spec, self._settings, task.params, self.rate_source, function.baseline_loss
        )
        self._judge = SparseMonitor(self._monitor)
        self._progress = NO_EVALUATIONS
        self._step = 0  # rows so far
        self._steps_to_save = steps_to_save(spec, task.params, self._settings)
        self._names: list[str] = []  # of metrics, from the first report of some
        self._segment = Segment(0)
        self._following: Segment | None = None  # with what was cut from the last one
        self._max_rows = 0  # of the segment
        self._began = self._saved_at = clock()
        self._error: BaseException | None = None
        self._reporting = False  # whether the function has made a report
        self._stopping = False  # whether the function must end
        self._returned = False
        self._trial: Trial | None = None
        self._branch_rates: list[float] | None = None  # while a branch is wanted
        self._branch_end: BranchEnd = {}, None
        self._function_turn, self._trainer_turn = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=f"trial {task.number}", daemon=True)

    # --- called by the trainer's thread

    def advance(self, rows: int) -> Event:
        """Run the function until it has reported `rows` rows or a decision is needed.

        An exception of the function is raised at once if nothing was measured in this call, else
        from the next call.
        """
        self._raise_error()
        self._max_rows, self._segment = rows, self._following or Segment(self._step)
        self._following = None
        self._began = self._clock()
        self.status = Status.TRAINING
        with random_state.swapped(self.random):
            self._hand_over()
        if self._reporting:
            self.seconds += self._clock() - self._began
        self._monitor.absorb_calm()
        if not self._segment.measured:
            self._raise_error()
        if self.status is Status.TRAINING and self._returned and self._error is None:
            self._conclude()
        value = objective.value_of(self._spec, self._progress)
        return self._segment.event(self.task.number, self.status, value, self._rungs)

    def _raise_error(self) -> None:
        """Raise the exception of the function, if any."""
        if self._error is not None:
            raise self._error

    def branch(self, plan: BranchPlan) -> Branch:
        """Let the function, which waits in a report, train a branch.

        Raise what it raised if memory was short; other errors are in the branch.
        """
        step, device = self._step, _device(self._spec)
        later = [one for one in self._settings.evaluation_steps if one > step]
        rates = plan.schedule(self.rate_source.ahead(step, later), plan.steps)
        seed = seed_of_branch(self.task.seed, step)
        self._branch_rates = rates
        with random_state.swapped(random_state.seeded_all(seed, device)):
            self._hand_over()
        metrics, error = self._branch_end
        self._branch_end = {}, None  # what was raised keeps the copy in memory
        if error is not None and out_of_memory.is_out_of_memory(error):
            raise error
        return Branch(
            number=self.task.number,
            step=step,
            losses=np.full(len(rates), math.nan),  # only the function knows them
            rates=np.array(rates, dtype=np.float64),
            time=self._clock(),
            metrics=metrics,
            error=error,
        )

    def end(self) -> None:
        """Make the function end with `StopTrial`, and wait for its thread."""
        self._stopping = True
        if not self._thread.is_alive():
            return
        with random_state.swapped(self.random):
            self._function_turn.release()
            self._thread.join(self._grace)
        if self._thread.is_alive():
            log.warning(
                "trial %d: %s did not end within %g seconds of StopTrial; its thread is abandoned",
                self.task.number,
                self._function.name,
                self._grace,
            )

    def _hand_over(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._function_turn.release()
        self._trainer_turn.acquire()

    def _conclude(self) -> None:
        """Set the status of a trial whose function returned."""
        steps, step = self._settings.steps, self._step
        last = self._progress.last_step  # `step`, or the one before if it had a loss and metrics
        if last > 0 and last >= step - 1:
            self.status = Status.FINISHED
            if step < steps:
                self._segment.reason = f"its function returned after {step} of {steps} steps"
            return
        self.status = Status.FAILED
        self._segment.reason = (
            f"its function returned after {step} of {steps} steps without reporting "
            f"{self._spec.study.metric} at its last reported step"
        )

    # --- called by the function's thread

    def _run(self) -> None:
        try:
            self._trial = Trial(self.task, self._spec, self._settings, self)
            self._function(self._trial)
        except StopTrial:
            pass
        except Exception as error:  # raised by the trainer's thread
            self._error = None if self._stopping else error
        except BaseException as error:
            self._error = RuntimeError(f"{self._function.name} raised {type(error).__name__}")
            self._error.__cause__ = error
        finally:
            self._returned = True
            self._trainer_turn.release()

    def _pause(self) -> None:
        """Let the trainer's thread run until it calls `advance` again; train branches meanwhile."""
        self._trainer_turn.release()
        self._function_turn.acquire()
        while self._branch_rates is not None:
            self._branch_end = self._train_branch(self._branch_rates)
            self._branch_rates = None
            self._trainer_turn.release()
            self._function_turn.acquire()
        self._check_running()

    def _train_branch(self, rates: Sequence[float]) -> BranchEnd:
        """Return the metrics of a branch, or nan and what was raised."""
        assert self._trial is not None
        try:  # the report may have been made where gradients are disabled
            with torch.inference_mode(mode=False), torch.enable_grad():
                return self._trial.train_branch(rates), None
        except BaseException as error:
            return {self._spec.study.metric: math.nan}, error

    def _check_running(self) -> None:
        if self._stopping:
            raise StopTrial
        if self._branch_rates is not None:
            raise self._error_of(
                "expected a branch to return its metrics, got a call of report or checkpoint in it"
            )
        if threading.current_thread() is not self._thread:
            raise RuntimeError(
                "expected the trial to be used by the thread of its train function, "
                f"got {threading.current_thread().name}"
            )

    def _stop(self, status: Status, reason: str, step: int | None = None) -> None:
        self.status, self._segment.reason, self._segment.stopped_step = status, reason, step
        self._pause()
        raise AssertionError("a trial that has ended was advanced")

    def _expect_step(self, step: int) -> None:
        """Raise `ValueError` unless `step` may be reported next."""
        self._check_running()
        if not self._reporting:  # the time before is startup: imports, data, a model
            self._reporting, self._began = True, self._clock()
        steps = self._settings.steps
        if not self._step <= step <= steps:
            what = f"one of steps {self._step} to {steps} next"
            hint = "steps increase, and metrics come before or with the train_loss of their step"
            if self._step == steps:
                what = f"metrics at step {steps}, the last"
            raise self._error_of(f"report: expected {what}, got step {step}; {hint}")

    def _skip_to(self, step: int) -> None:
        """Add a row without values for each step before `step` that was not reported."""
        while self._step < step:
            self._add_row(math.nan, math.nan, math.nan)
            self._judge.unjudged += 1

    def _add_row(self, loss: float, rate: float, grad_norm: float) -> None:
        if len(self._segment.times) >= self._max_rows:
            self._pause()
        self._segment.losses.append(loss)
        self._segment.rates.append(rate)
        self._segment.grad_norms.append(grad_norm)
        self._segment.times.append(self._clock())
        self._step += 1

    def _rung_settled_by(self, step: int) -> int | None:
        """Return the rung that an evaluation settles: the last one since the evaluation before."""
        passed = [rung for rung in self._rungs if self._progress.last_step < rung <= step]
        return max(passed) if passed and step < self._settings.steps else None

    def _error_of(self, message: str) -> ValueError:
        return ValueError(f"trial {self.task.number}: {message}")

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at a step. The first evaluation at or after a rung settles it."""
        self._expect_step(step)
        metric = self._spec.study.metric
        if metric not in metrics:
            raise self._error_of(
                f"report of step {step}: expected the study's metric {metric} among the metrics, "
                f"got {', '.join(metrics)}"
            )
        self._names = self._names or list(metrics)
        if set(metrics) != set(self._names):
            raise self._error_of(
                f"report of step {step}: expected the same metrics as before, "
                f"{', '.join(self._names)}, got {', '.join(metrics)}"
            )
        if self._progress.last_step == step:
            raise self._error_of(
                f"report of step {step}: expected its metrics once, got them twice"
            )
        self._skip_to(step)
        ordered = {name: metrics[name] for name in self._names}
        self._segment.evaluations.append(Evaluation(step=step, time=self._clock(), metrics=ordered))
        wrong = objective.non_finite(self._spec, ordered)
        if wrong:
            self._stop(Status.DIVERGED, f"{' and '.join(wrong)} at step {step}", step)
        rung = self._rung_settled_by(step)
        self.rate_source.evaluated(step, metrics[metric])
        self._progress = objective.with_evaluation(
            self._spec, self._progress, step, metrics[metric]
        )
        reason = objective.early_stop_reason(self._spec, self._progress, self._settings.steps)
        if reason:
            self._stop(Status.FINISHED, reason)
        if rung is not None:
            self.status, self._segment.passed_rung = Status.AT_RUNG, rung
            self._pause()

    def trained(self, step: int, loss: float, rate: float, grad_norm: float) -> None:
        """Record a row."""
        self._expect_step(step)
        steps, metric = self._settings.steps, self._spec.study.metric
        if step >= steps:
            raise self._error_of(
                f"report: expected train_loss at steps 0 to {steps - 1}, got step {step}"
            )
        self._skip_to(step)
        self._add_row(loss, rate, grad_norm)
        reason = self._judge.observe(loss, grad_norm)
        if reason:
            self._stop(Status.DIVERGED, reason, step)
        limit = self._spec.training.seconds
        if limit is not None and self.seconds + self._clock() - self._began >= limit:
            reason = f"its {limit:g} seconds were up at step {self._step} of {steps}"
            if self._progress.last_step > 0:
                at, hint = self._progress.last_step, TIME_HINT
                self._stop(
                    Status.FINISHED, f"{reason} and it was last evaluated at step {at}; {hint}"
                )
            hint = "raise seconds in [training], or lower evaluate_every"
            self._stop(
                Status.FAILED, f"{reason}, before {metric} was reported after step 0; {hint}"
            )

    def due(self) -> bool:
        """Return whether a checkpoint is due."""
        seconds = self._spec.training.checkpoint_seconds
        return self._step in self._steps_to_save or self._clock() - self._saved_at >= seconds

    def save(self, state: Mapping[str, Any]) -> None:
        """Save a state as of the current step."""
        self._check_running()
        self.saved = {
            "step": self._step,
            "pace": dict(self.rate_source.state()),
            "state": foreign_state.encode(dict(state)),
            "unjudged": {"loss": self._judge.loss, "steps": self._judge.unjudged},
            "guard": {key: tensor.clone() for key, tensor in self._monitor.state().items()},
            "progress": asdict(self._progress),
            "names": list(self._names),
            "random": foreign_state.encode(random_state.get_states(self.random)),
        }
        self._saved_at = self._clock()

    def yield_to_trainer(self) -> None:
        """Let `advance` return without a row or an evaluation.

        The last row is left to the next call, since metrics at its end may follow, and belong to
        the same event; and so are metrics before the first row. The row is not if a state was saved
        at its end, where a resumed trial would begin.
        """
        self._check_running()
        has_metrics = 0 < self._step == self._progress.last_step
        is_saved = self.saved is not None and self.saved["step"] == self._step
        if not has_metrics and not is_saved:
            self._segment, self._following = self._segment.without_last_row()
        self._pause()

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None, and continue from its step."""
        self._check_running()
        if self._step > self.first_step or self._segment.evaluations:
            raise ValueError(
                "checkpoint.load: expected a call before the first report, got one after it"
            )
        if self.saved is None:
            return None
        saved = foreign_state.decode(self.saved)
        self.first_step = self._step = saved["step"]
        self._segment.first_step = self._step
        self.rate_source.restore(saved.get("pace", {}))
        self._monitor.restore(saved["guard"])
        unjudged = saved.get("unjudged", {"loss": math.nan, "steps": 0})
        self._judge.loss, self._judge.unjudged = unjudged["loss"], unjudged["steps"]
        self._progress = Progress(**saved["progress"])
        self._names = saved["names"]
        random_state.set_states(saved["random"])
        state: dict[str, Any] = saved["state"]
        return state


class FunctionTrainer:
    """A `Trainer` of one trial at a time by a train function.

    Unlike with other trainers, a trial resumes where its function saved last, which may be before
    the snapshot, so it may repeat steps and rungs that it has reported already.
    """

    capacity = 1

    def __init__(
        self,
        function: TrainFunction,
        spec: StudySpec,
        clock: Callable[[], float] = time.monotonic,
        grace: float = GRACE_SECONDS,
    ) -> None:
        """Raise `WorkloadError` if the study's metric is a column of rows, not of evaluations."""
        if spec.study.metric in TRAIN_COLUMNS:
            raise WorkloadError(
                f"[study] metric: expected one that {function.name} reports at evaluations, such "
                f"as val_loss, got {spec.study.metric}, a column of every row"
            )
        self._function = function
        self._spec = spec
        self._clock = clock
        self._grace = grace
        self._member: _Member | None = None

    def admit(self, task: Task) -> None:
        """Put a trial in the slot. Raise `ValueError` if its snapshot does not match the task."""
        if self._member is not None:
            raise ValueError(
                f"expected a free slot for trial {task.number}, got trial "
                f"{self._member.task.number} in the only one; evict it first"
            )
        member = _Member(self._function, task, self._spec, self._clock, self._grace)
        if task.snapshot is not None:
            state = checkpoint.matching(task.snapshot, self._fingerprint(task), task.number)
            member.saved, member.seconds = state["saved"], state["seconds"]
            member.status = Status(state["status"])
        self._member = member

    def advance(self, max_steps: int) -> list[Event]:
        """Train by up to `max_steps` rows; a trial that has ended produces no event."""
        assert max_steps >= 1, max_steps
        member = self._member
        if member is None or member.status in ENDED:
            return []
        return [member.advance(max_steps)]

    def evict(self, number: int) -> None:
        """Free the slot, and end a running function by `StopTrial`."""
        self._member_of(number).end()
        self._member = None

    def snapshot(self, number: int) -> bytes:
        """Return the state that the function saved last, and what is needed to resume from it."""
        member = self._member_of(number)
        return checkpoint.to_bytes(
            {
                "fingerprint": self._fingerprint(member.task),
                "status": member.status.value,
                "saved": member.saved,
                "seconds": member.seconds,
            }
        )

    def branch(
        self, numbers: Sequence[int], plan: BranchPlan, goes_on: Callable[[], bool]
    ) -> list[Branch] | None:
        """Let the function train a copy of its model; see `Trainer.branch`."""
        branches = []
        for number in numbers:
            if not goes_on():
                return None
            branches.append(self._member_of(number).branch(plan))
        return branches

    def _member_of(self, number: int) -> _Member:
        """Return the member of a trial. Raise `ValueError` if it has no slot."""
        if self._member is None or self._member.task.number != number:
            raise ValueError(f"trial {number} has no slot; admit it first")
        return self._member

    def _fingerprint(self, task: Task) -> dict[str, Any]:
        """Return what a snapshot depends on."""
        return {
            "trainer": "own",
            "function": self._function.name,
            "device": _device(self._spec).type,
            "steps": self._steps(task),
            "seed": task.seed,
            **{f"params {key}": value for key, value in sorted(task.params.items())},
        }

    def _steps(self, task: Task) -> int:
        return settings_of(self._spec, task.params, self._function.training_rows).steps


def _device(spec: StudySpec) -> torch.device:
    return torch.device(spec.training.device)
