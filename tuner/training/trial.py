"""The interface of a train function: a trial with its rate, schedule, checkpoint and `report`.

For training loops of your own. A study file names the function under `[workload] train`. It is
called as `function(trial, **arguments)` in a thread of its own, while the trainer waits. A loop in
PyTorch:

    def train(trial):
        model = make_model(trial.seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=trial.lr)
        schedule = trial.schedule(optimizer)
        if saved := trial.checkpoint.load():
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
        for step in range(trial.first_step, trial.steps):
            loss = loss_of(model, batch(step))
            optimizer.zero_grad()
            loss.backward()
            trial.report(step, train_loss=loss)
            optimizer.step()
            schedule.step()
            if trial.evaluates(step + 1):
                trial.report(step + 1, val_loss=evaluate(model))
            if trial.checkpoint.due:
                trial.checkpoint.save(
                    {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                )

*At step t* means after t updates, for rows and evaluations alike. The rules:

- report steps from 0 to steps - 1 with their `train_loss`, in increasing order: each, or only some;
- metrics may be reported at any step, once, before or together with that step's `train_loss`. All
  such reports have the same metrics, the study's metric among them;
- `trial.evaluates(step)` is true at regular steps, at every rung, and at the end, `trial.steps`.
  The first metrics at or after a rung settle it;
- a function that returns completes its trial if it has reported the metric at its last reported
  step; otherwise the trial fails;
- the random numbers of torch, numpy and Python are seeded by the trial while the function runs;
- a function may let its trials be judged by branches, see `Trial.branch`.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import operator
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from torch.optim import Optimizer

from tuner.config import ParameterValue, StudySpec, TrialSettings
from tuner.core.text import is_metric_name
from tuner.training import optimizers
from tuner.training.lr_scheduler import TrialSchedule
from tuner.training.rate_source import RateSource, initial_multipliers
from tuner.training.trainer import TRAIN_COLUMNS, Task

log = logging.getLogger(__name__)

BranchFunction = TypeVar("BranchFunction", bound=Callable[[list[float]], Mapping[str, Any]])
"""Trains a copy of model and optimizer for an update with each rate; returns its metrics."""


class StopTrial(BaseException):
    """Raised by `report` when the trial is over: pruned, diverged, out of time or interrupted.

    Do not catch it; clean up in `finally` or context managers. It is a `BaseException`, so that
    `except Exception` in a loop does not catch it. A function that raises it itself returns.
    """


class ReportSink(Protocol):
    """Receiver of a trial's reports and checkpoints."""

    first_step: int
    rate_source: RateSource

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at a step. Raise `StopTrial`."""

    def trained(self, step: int, loss: float, rate: float, grad_norm: float) -> None:
        """Record a row, after the metrics of its step. Raise `StopTrial`."""

    def due(self) -> bool:
        """Return whether a checkpoint is due."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Save a state as of the current step."""

    def yield_to_trainer(self) -> None:
        """Let the trainer look for a stop, between reports. Raise `StopTrial`."""

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, or None."""


class Checkpoint:
    """The checkpoint of a train function, to resume from after an interruption."""

    def __init__(self, sink: ReportSink, after_load: Callable[[], None]) -> None:
        self._sink = sink
        self._after_load = after_load  # called after loading

    @property
    def due(self) -> bool:
        """Whether `[training] checkpoint_seconds` have passed since the last save."""
        return self._sink.due()

    def save(self, state: Mapping[str, Any]) -> None:
        """Save a copy of a state in place of the last one. Call it between an update and a report.

        A state consists of tensors, numpy arrays, numbers, strings, booleans, None, and dicts,
        lists and tuples of them. The random states and the guard's state are saved with it.
        Raise `TypeError` for anything else.
        """
        self._sink.save(state)

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, with tensors on the CPU, or None at the first start.

        Call it after building the model, before the first report. It restores the random states
        and sets `trial.first_step`, the step to report next. A function that does not call it
        restarts from step 0 after an interruption; steps that it repeats are not recorded again.
        """
        state = self._sink.load()
        self._after_load()
        return state


class Trial:
    """One trial, as passed to its train function."""

    alone = False
    """Whether no worker trains it: `tuner.current_trial()` of a program that was run by hand."""

    def __init__(
        self, task: Task, spec: StudySpec, settings: TrialSettings, sink: ReportSink
    ) -> None:
        self.number = task.number
        self.params: Mapping[str, ParameterValue] = dict(task.params)
        """All parameters by name, such as lr, sgd.momentum and the searched arguments."""
        self.lr = float(task.params["lr"])
        """The rate that the schedule multiplies."""
        self.seed = task.seed
        self.steps = settings.steps
        """The horizon: the number of steps."""
        self.device = spec.training.device
        self.checkpoint = Checkpoint(sink, self._after_load)
        self._sink = sink
        self._branch: Callable[[list[float]], Mapping[str, Any]] | None = None
        self._metric = spec.study.metric
        self._evaluated = frozenset(settings.evaluation_steps)
        self._schedules: list[TrialSchedule] = []
        self._independent: list[TrialSchedule] = []  # with their own `total_steps`

    @property
    def first_step(self) -> int:
        """The step to begin with: 0, or the step of the loaded checkpoint."""
        return self._sink.first_step

    def rate(self, step: int) -> float:
        """Return the rate of the update that leads from a step to the next."""
        return self._sink.rate_source.rate(min(step, self.steps - 1))

    def schedule(self, optimizer: Optimizer, total_steps: int | None = None) -> TrialSchedule:
        """Return the study's schedule for an optimizer, over the horizon or `total_steps` updates.

        It multiplies the initial rate of each parameter group, so groups keep their ratios. With
        `total_steps` (a loop with several updates per reported step), pass `lr=schedule.rate` to
        `report`, and keep the schedule's `state_dict` in the checkpoint.
        """
        source = self._sink.rate_source
        made = TrialSchedule(
            optimizer,
            lr=self.lr,
            multipliers=initial_multipliers(self.params, total_steps or self.steps).tolist(),
            factor=(lambda _: source.factor(self.steps)) if total_steps else source.factor,
            rate_source=source,
            update=0 if total_steps else self.first_step,
        )
        (self._independent if total_steps else self._schedules).append(made)
        if not total_steps:
            # a state that is loaded has the rate of its own horizon, which may be a shorter one
            optimizer.register_load_state_dict_post_hook(lambda _: made.refresh())
        self._warn_of_default(optimizer)
        return made

    def optimizer(self, parameters: Any) -> Any:
        """Return the torch optimizer that our own trainers would use for this trial."""
        return optimizers.make(self.params, parameters)

    def evaluates(self, step: int) -> bool:
        """Return whether to evaluate at a step: regular ones, every rung, and the end."""
        return step in self._evaluated

    def report(
        self,
        step: int,
        *,
        train_loss: Any = None,
        grad_norm: Any = None,
        lr: Any = None,
        **metrics: Any,
    ) -> None:
        """Report a step's training loss, or metrics at a step, or both; see the module's rules.

        `lr` defaults to the schedule's rate; `grad_norm` is for the curves and the guard. Raise
        `StopTrial` when the trial is over, and `ValueError` for a report against the rules, with
        the trial, the argument and its value. A non-finite loss is valid: the guard stops the
        trial.
        """
        try:
            step = _whole(step)
            loss = None if train_loss is None else _number("train_loss", train_loss)
            # the norm of an exploded loss may be infinite or nan
            norm = math.nan if grad_norm is None else _non_negative("grad_norm", grad_norm)
            rate = None if lr is None else _non_negative("lr", lr, finite=True)
            numbers = {_metric_name(name): _number(name, value) for name, value in metrics.items()}
        except ValueError as error:
            where = f"trial {self.number}: report of step {_short_repr(step)}"
            raise ValueError(f"{where}: {error}") from error.__cause__
        if loss is None and not numbers:
            where = f"trial {self.number}: report of step {step}"
            raise ValueError(f"{where}: expected train_loss or metrics, got neither")
        if numbers:
            self._sink.evaluated(step, numbers)
            for schedule in (
                *self._schedules,
                *self._independent,
            ):  # plateau may have reduced the rate
                schedule.refresh()
        if loss is not None:
            self._sink.trained(step, loss, self.rate(step) if rate is None else rate, norm)

    def branch(self, train: BranchFunction) -> BranchFunction:
        """Register the function that trains a branch of this trial, and return it: a decorator.

        With `[search] judge = "fast_forward"` it is called in the report that settles a rung, with
        the rates of the rest of the schedule, compressed. It copies model and optimizer, makes an
        update with each rate, and returns the metrics of the copy; the originals must stay as they
        are. It gets random numbers of its own, and does not report. Otherwise it is not called.
        """
        self._branch = train
        return train

    def train_branch(self, rates: Sequence[float]) -> dict[str, float]:
        """Call the registered function for its trainer. Raise `ValueError` if there is none."""
        where = f"trial {self.number}"
        if self._branch is None:
            raise ValueError(
                f"{where}: expected a function registered by trial.branch, as [search] judge is "
                '"fast_forward", got none before the rung; register one, or let judge be "raw"'
            )
        found = self._branch(list(rates))
        if not isinstance(found, Mapping) or self._metric not in found:
            got = ", ".join(map(str, found)) if isinstance(found, Mapping) else _short_repr(found)
            raise ValueError(
                f"{where}: expected its branch to return metrics, {self._metric} among them, got "
                f"{got or 'none'}"
            )
        try:
            return {_metric_name(name): _number(name, value) for name, value in found.items()}
        except ValueError as error:
            raise ValueError(f"{where}: its branch: {error}") from error.__cause__

    def yield_to_trainer(self) -> None:
        """Let the worker look for a stop, in a loop that waits long for the next report.

        Raise `StopTrial` when the trial is over.
        """
        self._sink.yield_to_trainer()

    def _after_load(self) -> None:
        for schedule in self._schedules:
            schedule.move_to(self.first_step)
        for schedule in self._independent:
            schedule.refresh()

    def _warn_of_default(self, optimizer: Optimizer) -> None:
        """Warn if an optimizer still has the default rate of its class."""
        default = inspect.signature(type(optimizer)).parameters.get("lr")
        rates = {float(group["initial_lr"]) for group in optimizer.param_groups}
        if default is not None and rates == {default.default} != {self.lr}:
            log.warning(
                "trial %d: the schedule multiplies %g, the default rate of %s, and not the trial's "
                "rate, %g; make the optimizer with lr=trial.lr",
                self.number,
                default.default,
                type(optimizer).__name__,
                self.lr,
            )


def _whole(step: Any) -> int:
    """Return a step as Python's integer."""
    if not isinstance(step, bool | np.bool_):
        with contextlib.suppress(TypeError):
            return operator.index(step)
    raise ValueError(f"expected step to be a whole number, got {_short_repr(step)}")


def _number(name: str, value: Any) -> float:
    """Return a number of any library as a float, which may be infinite or nan."""
    got = f"{_short_repr(value)}, of type {type(value).__name__}"
    if isinstance(value, bool | np.bool_ | str | bytes | bytearray):
        raise ValueError(f"expected {name} to be one number, got {got}")  # noqa: TRY004
    try:
        return float(value.detach() if hasattr(value, "detach") else value)
    except OverflowError as error:
        raise ValueError(f"expected {name} to be a number that a float holds, got {got}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"expected {name} to be one number, got {got}") from error


def _non_negative(name: str, value: Any, *, finite: bool = False) -> float:
    number = _number(name, value)
    if number < 0 or (finite and not math.isfinite(number)):
        kind = "a finite number" if finite else "a number"
        raise ValueError(f"expected {name} to be {kind} of 0 or more, got {_short_repr(value)}")
    return number


def _metric_name(name: str) -> str:
    if name in TRAIN_COLUMNS or not is_metric_name(name):
        raise ValueError(
            "expected metrics named by letters, digits and _.-/: or spaces, as no path with dots "
            f"or to elsewhere, got {name!r}"
        )
    return name


def _short_repr(value: Any) -> str:
    """Return a short representation of a value for a message."""
    try:
        return reprlib.repr(value)
    except Exception:  # such as an integer too long to be printed
        return f"a value of type {type(value).__name__}"
