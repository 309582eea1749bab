"""What a train function gets: a trial with its rate, its schedule, and somebody to report to.

For people who have a loop of their own. A study file names the function under `[workload] train`;
it is called as `function(trial, **arguments)`, in a thread of its own while nothing else of the
trainer runs. A loop in PyTorch:

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

- every step from 0 to steps - 1 is reported, in order, with its `train_loss`;
- metrics may be reported at any step, once, before or together with that step's `train_loss`. They
  are always the same ones, the study's metric among them;
- the study's metric is reported at every rung (`trial.evaluates` says so, and of regular steps
  too) and at the end, `trial.steps`;
- a function that returns earlier completes its trial if it has reported the metric at the step that
  it reached; otherwise the trial fails;
- random numbers of torch, numpy and Python follow from the trial's seed while the function runs.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import operator
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from torch.optim import Optimizer

from tuner.config import ParameterValue, StudySpec
from tuner.core.text import is_metric_name
from tuner.training import optimizers
from tuner.training.lr_scheduler import TrialSchedule
from tuner.training.pace import Pace, planned
from tuner.training.trainer import Task

log = logging.getLogger(__name__)

OWN_NAMES = ("train_loss", "lr", "grad_norm")
"""Columns of every row, so a metric may not be called so."""


class StopTrial(BaseException):
    """Raised by `report` when the trial is over: pruned, diverged, out of time or interrupted.

    Let it pass; `finally` and context managers clean up on its way. It is no `Exception`, so that a
    loop's own `except Exception` does not hold it up. A function may raise it, too: that is the
    same as to return.
    """


class Recorder(Protocol):
    """Who a trial reports to."""

    first_step: int
    pace: Pace

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in metrics. Raises `StopTrial`."""

    def trained(self, step: int, loss: float, rate: float, grad_norm: float) -> None:
        """Take in a row, whose metrics, if any, have been taken in. Raises `StopTrial`."""

    def due(self) -> bool:
        """Tell whether it is time to save."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state, as of now."""

    def load(self) -> dict[str, Any] | None:
        """Give the state that was kept, if one was."""


class Checkpoint:
    """Where a train function saves what it needs to go on after an interruption."""

    def __init__(self, recorder: Recorder, loaded: Callable[[], None]) -> None:
        self._recorder = recorder
        self._loaded = loaded  # called after a state was

    @property
    def due(self) -> bool:
        """Whether `[training] checkpoint_seconds` have passed since the last save."""
        return self._recorder.due()

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a copy of a state: the last one counts. Call it between an update and a report.

        A state has tensors, numpy arrays, numbers, strings, booleans, None, and dicts, lists and
        tuples of them. Random states and the guard's are kept with it. Raises `TypeError` for
        anything else.
        """
        self._recorder.save(state)

    def load(self) -> dict[str, Any] | None:
        """Give the state to go on from, tensors on the CPU; None at the beginning.

        Call it once all is built, before the first report. From here on, random numbers go on as
        they were when the state was saved, and `trial.first_step` is the step to report next.
        Without it an interrupted trial begins anew, and what it measures again is dropped.
        """
        state = self._recorder.load()
        self._loaded()
        return state


class Trial:
    """One trial, as its train function sees it."""

    def __init__(self, task: Task, spec: StudySpec, recorder: Recorder) -> None:
        self.number = task.number
        self.params: Mapping[str, ParameterValue] = dict(task.params)
        """All parameters by name: lr, schedule, optimizer, and theirs, such as sgd.momentum."""
        self.lr = float(task.params["lr"])
        """The rate that the schedule multiplies."""
        self.seed = task.seed
        self.steps = spec.training.steps
        """The horizon: how many steps there are."""
        self.device = spec.training.device
        self.checkpoint = Checkpoint(recorder, self._loaded)
        self._recorder = recorder
        self._evaluated = frozenset(spec.evaluation_steps())
        self._schedules: list[TrialSchedule] = []
        self._stretched: list[TrialSchedule] = []  # over updates that only the loop counts

    @property
    def first_step(self) -> int:
        """The step to begin with: 0, or where the checkpoint that was loaded was saved."""
        return self._recorder.first_step

    def rate(self, step: int) -> float:
        """Return the rate of the update that leads from a step to the next."""
        return self._recorder.pace.rate(min(step, self.steps - 1))

    def schedule(self, optimizer: Optimizer, total_steps: int | None = None) -> TrialSchedule:
        """Return the study's schedule for an optimizer, over the horizon or `total_steps` updates.

        It multiplies the initial rate of each parameter group, so groups keep their ratios. With
        `total_steps` (a loop with several updates a reported step), pass `lr=schedule.rate` to
        `report`, and keep the schedule's `state_dict` in the checkpoint.
        """
        pace = self._recorder.pace
        made = TrialSchedule(
            optimizer,
            lr=self.lr,
            multipliers=planned(self.params, total_steps or self.steps).tolist(),
            factor=(lambda _: pace.factor(self.steps)) if total_steps else pace.factor,
            pace=pace,
            update=0 if total_steps else self.first_step,
        )
        (self._stretched if total_steps else self._schedules).append(made)
        self._warn_of_default(optimizer)
        return made

    def optimizer(self, parameters: Any) -> Any:
        """Make torch's optimiser with this trial's parameters, as our own trainers would."""
        return optimizers.make(self.params, parameters)

    def evaluates(self, step: int) -> bool:
        """Tell whether a step is to be evaluated: regular ones, every rung, and the end."""
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
        """Report a step's training loss, or metrics at a step, or both; the module has the rules.

        `lr` is the schedule's unless it is given; `grad_norm` is for the curves and the guard.
        Raises `StopTrial` when the trial is over, and `ValueError` for what breaks the rules; it
        names the trial, the argument and its value. A loss that is infinite or nan is no mistake:
        the guard stops the trial.
        """
        try:
            step = _whole(step)
            loss = None if train_loss is None else _number("train_loss", train_loss)
            # of a loss that exploded, the norm may be infinite or none
            norm = math.nan if grad_norm is None else _at_least_0("grad_norm", grad_norm)
            rate = None if lr is None else _at_least_0("lr", lr, finite=True)
            numbers = {_named(name): _number(name, value) for name, value in metrics.items()}
        except ValueError as error:
            where = f"trial {self.number}: report of step {_shown(step)}"
            raise ValueError(f"{where}: {error}") from error.__cause__
        if loss is None and not numbers:
            where = f"trial {self.number}: report of step {step}"
            raise ValueError(f"{where}: expected train_loss or metrics, got neither")
        if numbers:
            self._recorder.evaluated(step, numbers)
            for schedule in (*self._schedules, *self._stretched):  # plateau's may have fallen
                schedule.refresh()
        if loss is not None:
            self._recorder.trained(step, loss, self.rate(step) if rate is None else rate, norm)

    def _loaded(self) -> None:
        for schedule in self._schedules:
            schedule.move_to(self.first_step)
        for schedule in self._stretched:
            schedule.refresh()

    def _warn_of_default(self, optimizer: Optimizer) -> None:
        """Warn of an optimizer whose rate was left at its class's default."""
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
    raise ValueError(f"expected step to be a whole number, got {_shown(step)}")


def _number(name: str, value: Any) -> float:
    """Return a number of any library as Python's; it may be infinite or nan."""
    got = f"{_shown(value)}, of type {type(value).__name__}"
    if isinstance(value, bool | np.bool_ | str | bytes | bytearray):
        raise ValueError(f"expected {name} to be one number, got {got}")  # noqa: TRY004
    try:
        return float(value.detach() if hasattr(value, "detach") else value)
    except OverflowError as error:
        raise ValueError(f"expected {name} to be a number that a float holds, got {got}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"expected {name} to be one number, got {got}") from error


def _at_least_0(name: str, value: Any, *, finite: bool = False) -> float:
    number = _number(name, value)
    if number < 0 or (finite and not math.isfinite(number)):
        kind = "a finite number" if finite else "a number"
        raise ValueError(f"expected {name} to be {kind} of 0 or more, got {_shown(value)}")
    return number


def _named(name: str) -> str:
    if name in OWN_NAMES or not is_metric_name(name):
        raise ValueError(
            "expected metrics named by letters, digits and _.-/: or spaces, as no path with dots "
            f"or to elsewhere, got {name!r}"
        )
    return name


def _shown(value: Any) -> str:
    """Return a value as a message may have it, however long it is."""
    try:
        return reprlib.repr(value)
    except Exception:  # such as of an integer that is too long to be written
        return f"a value of type {type(value).__name__}"
