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

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tuner.spec import ParameterValue, StudySpec
from tuner.texts import is_metric_name
from tuner.training import optimizers, schedules
from tuner.training.trainer import Task

OWN_NAMES = ("train_loss", "lr", "grad_norm")
"""Columns of every row, so a metric may not be called so."""


class StopTrial(BaseException):
    """Raised by `report` when the trial is over: pruned, diverged, out of time or interrupted.

    Let it pass; `finally` and context managers clean up on its way. It is no `Exception`, so that a
    loop's own `except Exception` does not hold it up. A function may raise it, too: that is the
    same as to return.
    """


class HasGroups(Protocol):
    """An optimiser as far as a schedule knows it: torch's, or anything with such groups."""

    param_groups: list[dict[str, Any]]


class Recorder(Protocol):
    """Who a trial reports to."""

    first_step: int

    def report(
        self, step: int, row: tuple[float, float, float] | None, metrics: Mapping[str, float]
    ) -> None:
        """Take in metrics, then a row (train_loss, lr, grad_norm). Raises `StopTrial`."""

    def due(self) -> bool:
        """Tell whether it is time to save."""

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep a state, as of now."""

    def load(self) -> dict[str, Any] | None:
        """Give the state that was kept, if one was."""


class Schedule:
    """The study's schedule at work on an optimiser: all its groups have the rate of now."""

    def __init__(
        self, rate: Callable[[int], float], start: Callable[[], int], optimizer: HasGroups | None
    ) -> None:
        self._rate = rate
        self._start = start  # asked each time: a checkpoint may be loaded after this is made
        self._optimizer = optimizer
        self._taken = 0
        self._apply()

    @property
    def rate(self) -> float:
        """The rate of the next update."""
        return self._rate(self._start() + self._taken)

    def step(self) -> None:
        """Move on, after an update."""
        self._taken += 1
        self._apply()

    def state_dict(self) -> dict[str, int]:
        """Give the number of updates so far, for a checkpoint."""
        return {"updates": self._start() + self._taken}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from what `state_dict` gave."""
        self._taken = state["updates"] - self._start()
        self._apply()

    def _apply(self) -> None:
        if self._optimizer is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = self.rate


class Checkpoint:
    """Where a train function saves what it needs to go on after an interruption."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

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
        return self._recorder.load()


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
        self.checkpoint = Checkpoint(recorder)
        self._recorder = recorder
        self._evaluated = frozenset(spec.evaluation_steps())
        self._rates = self._all_rates(self.steps)

    @property
    def first_step(self) -> int:
        """The step to begin with: 0, or where the checkpoint that was loaded was saved."""
        return self._recorder.first_step

    def rate(self, step: int) -> float:
        """Give the learning rate of the update that leads from a step to the next."""
        return self._rates[min(step, self.steps - 1)]

    def schedule(
        self, optimizer: HasGroups | None = None, total_steps: int | None = None
    ) -> Schedule:
        """Make the study's schedule, over the horizon or over `total_steps` updates.

        With `total_steps` (a loop with several updates a reported step), give `report` the rate,
        as `lr=schedule.rate`, and keep the schedule's `state_dict` with a checkpoint.
        """
        if total_steps is None:
            return Schedule(self.rate, lambda: self.first_step, optimizer)
        rates = self._all_rates(total_steps)
        return Schedule(lambda step: rates[min(step, total_steps - 1)], lambda: 0, optimizer)

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
        Raises `StopTrial` when the trial is over, and `ValueError` for what breaks the rules.
        """
        for name in metrics:
            if name in OWN_NAMES or not is_metric_name(name):
                raise ValueError(
                    f"report of step {step}: expected metrics named by letters, digits and _.-/: "
                    f"or spaces, as no path with dots or to elsewhere, got {name!r}"
                )
        if train_loss is None and not metrics:
            raise ValueError(f"report of step {step}: expected train_loss or metrics, got neither")
        row = None
        if train_loss is not None:
            row = (
                _number("train_loss", train_loss),
                self.rate(step) if lr is None else _number("lr", lr),
                math.nan if grad_norm is None else _number("grad_norm", grad_norm),
            )
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        self._recorder.report(step, row, numbers)

    def _all_rates(self, horizon: int) -> list[float]:
        return [self.lr * float(m) for m in schedules.multipliers(self.params, horizon)]


def _number(name: str, value: Any) -> float:
    try:
        return float(value.detach() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected one number, got {type(value).__name__}") from error
