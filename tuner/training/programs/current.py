"""The trial of this program: `tuner.current_trial()`, for programs that a worker runs.

The trial has the interface of a train function's (`tuner.training.trial.Trial`). Each report is a
line of JSON to the worker. The worker answers metrics when the program may go on. Rows wait for
their judgment only where steps are slow; else the program runs a little ahead, up to the step that
the worker has ordered. Without a worker the trial is inert: reports and checkpoints do nothing, and
the schedule is constant.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from tuner.config import ParameterValue, StudySpec, settings_of
from tuner.core.file_stores import FolderStore
from tuner.training import checkpoint, foreign_state, random_state
from tuner.training.longer import steps_to_save
from tuner.training.programs.conversation import file_of_rank
from tuner.training.rate_source import RateSource, rate_source
from tuner.training.trainer import Task
from tuner.training.trial import StopTrial, Trial

TRIAL = "TUNER_TRIAL"
FILE = "trial.pt"
"""The name of the state of `trial.checkpoint.save` in the folder of checkpoints."""

_CURRENT: list[Trial] = []


class ProgramStopped(StopTrial, SystemExit):
    """Raised by `report` when the trial is over; uncaught it ends the program without a message."""


def current_trial(
    *, lr: float = 1e-3, steps: int = 100, seed: int = 0, **params: ParameterValue
) -> Trial:
    """Return the trial that this program trains, the same one at each call.

    If no worker runs the program, the trial is inert, with these values; `params` are further
    parameters, such as a second rate.
    """
    if not _CURRENT:
        file = os.environ.get(TRIAL)
        _CURRENT.append(
            _alone(lr, steps, seed, params) if file is None else connected(Path(file))[0]
        )
    return _CURRENT[0]


def use(trial: Trial) -> None:
    """Make a trial the one of this program."""
    _CURRENT[:] = [trial]


def connected(file: Path) -> tuple[Trial, Worker]:
    """Return the trial that a file describes, and its connection to the worker."""
    about = json.loads(file.read_text())
    spec = StudySpec.model_validate_json(json.dumps(about["spec"]))
    if spec.training.device == "cuda" and (local := os.environ.get("LOCAL_RANK")):
        training = spec.training.model_copy(update={"device": f"cuda:{local}"})
        spec = spec.model_copy(update={"training": training})
    task = Task(number=about["number"], seed=about["seed"], params=about["params"])
    states = random_state.seeded_all(task.seed, torch.device(spec.training.device))
    random_state.set_states(states)
    settings = settings_of(spec, task.params, about.get("training_rows"))
    rates = rate_source(task.params, settings.steps, spec.study.direction)
    rank = int(os.environ.get("RANK", "0"))
    worker = Worker(
        about, rates, states, rank, settings.steps, steps_to_save(spec, task.params, settings)
    )
    return Trial(task, spec, settings, worker), worker


class Worker:
    """A `ReportSink` in the worker, through its socket; every rank has one."""

    def __init__(
        self,
        about: Mapping[str, Any],  # the trial's file
        rates: RateSource,
        states: dict[str, Any],  # random ones
        rank: int,
        steps: int,  # the horizon
        steps_to_save: Collection[int],
    ) -> None:
        self.first_step = 0
        self.rate_source = rates
        self._first_step, self._states, self._rank = about["first_step"], states, rank
        self._steps, self._steps_to_save = steps, steps_to_save
        self._has_ranks = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._files = FolderStore(Path(about["checkpoint_dir"]))
        self._due = False  # as of the last report, so that it is the same on all ranks
        self._saves = 0
        self._step = 0  # that may be reported next
        self._until = -1  # the last step whose row does not wait
        self._stop_from = sys.maxsize  # the step whose row ends the program
        self._save_from: list[int] = []  # steps from which on a checkpoint is due
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(about["socket"])
        self._send({"rank": rank})

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report metrics, and wait until the program may go on."""
        answer = self.ask({"step": step, **metrics})
        self._step = max(self._step, step)
        if not self._has_ranks:  # of several, some may be told before this report, some after it
            self._note_saves(step)
        if (value := answer.get("value")) is not None:
            self.rate_source.evaluated(step, value)

    def trained(self, step: int, loss: float, rate: float, grad_norm: float) -> None:
        """Report a row, and go on as far as was ordered."""
        row = {"step": step, "train_loss": loss, "lr": rate, "grad_norm": grad_norm}
        # what is wrong or ends the trial by itself has its answer here; ranks may differ in that
        ends = not self._has_ranks and not (math.isfinite(loss) and not math.isinf(grad_norm))
        if ends or not self._step <= step < self._steps:
            self.ask(row)
        else:
            self._send(row | {"ahead": True})
            self._go_on(step)
        self._step = step + 1

    def _go_on(self, step: int) -> None:
        """Wait for the order to go on after a step, if it is still to come. Raise as it says."""
        self._receive(socket.MSG_DONTWAIT)
        self._take_orders()
        while step > self._until and step < self._stop_from:
            self._receive()
            self._take_orders()
        if step >= self._stop_from:
            raise ProgramStopped
        self._note_saves(step)

    def _note_saves(self, step: int) -> None:
        """Let a checkpoint be due if that was ordered from this step or an earlier one on."""
        self._due = self._due or any(one <= step for one in self._save_from)
        self._save_from = [one for one in self._save_from if one > step]

    def due(self) -> bool:
        """Return whether a checkpoint is due."""
        return self._due or self._step in self._steps_to_save

    def save(self, state: Mapping[str, Any]) -> None:
        """Save a state in the folder of checkpoints, which the worker keeps a copy of.

        Of ranks other than 0 only the random states are saved.
        """
        self._saves += 1
        self._due = False
        random = foreign_state.encode(random_state.get_states(self._states))
        if self._rank > 0:
            self._files.write(self._name(self._saves), checkpoint.to_bytes({"random": random}))
            self._files.remove(self._name(self._saves - 2))  # the worker may read the last one
            return
        content = {
            "state": foreign_state.encode(dict(state)),
            "pace": dict(self.rate_source.state()),
            "random": random,
            "saves": self._saves,
        }
        self._files.write(FILE, checkpoint.to_bytes(content))
        self.ask({"save": self._saves})

    def load(self) -> dict[str, Any] | None:
        """Return the saved state and continue from its step."""
        if not self._files.exists(FILE):
            return None
        saved = foreign_state.decode(checkpoint.from_bytes(self._files.read(FILE)))
        self.first_step = self._first_step
        self.rate_source.restore(saved["pace"])
        self._saves = saved.get("saves", 0)
        if self._rank == 0:
            random_state.set_states(saved["random"])
        elif self._files.exists(own := self._name(self._saves)):
            others = foreign_state.decode(checkpoint.from_bytes(self._files.read(own)))
            random_state.set_states(others["random"])
        state: dict[str, Any] = saved["state"]
        return state

    def yield_to_trainer(self) -> None:
        """Do nothing: the worker is another process."""

    def ask(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send a request and return the answer. Raise `ProgramStopped` and `ValueError`."""
        self._send(request)
        while (answer := self._take_orders()) is None:
            self._receive()
        if "error" in answer:
            raise ValueError(answer["error"])
        if "stop" in answer:
            raise ProgramStopped
        self._due = self._due or answer.get("due", False)
        return answer

    def _send(self, request: Mapping[str, Any]) -> None:
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError:  # without a worker there is no trial
            raise ProgramStopped from None

    def _receive(self, flags: int = 0) -> None:
        """Receive messages; raise `ProgramStopped` if there is no worker any more."""
        try:
            part = self._socket.recv(1 << 16, flags)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:
            raise ProgramStopped
        self._received += part

    def _take_orders(self) -> Mapping[str, Any] | None:
        """Take orders from what was received, up to the first answer, and return that."""
        while b"\n" in self._received:
            line, _, self._received = self._received.partition(b"\n")
            message: dict[str, Any] = json.loads(line)
            match message.get("order"):
                case "go on":
                    self._until = message["step"]
                case "save":
                    self._save_from.append(message["step"])
                case "stop":
                    self._stop_from = message["step"]
                case "fail":
                    raise ValueError(message["error"])
                case _:
                    return message
        return None

    def _name(self, number: int) -> str:
        return file_of_rank(self._rank, number)


class _Nobody:
    """A `ReportSink` that receives nothing."""

    first_step = 0

    def __init__(self, params: Mapping[str, ParameterValue], steps: int) -> None:
        self.rate_source = rate_source(params, steps, "minimize")

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def trained(self, step: int, loss: float, rate: float, grad_norm: float) -> None:
        """Do nothing."""

    def due(self) -> bool:
        """Return False."""
        return False

    def save(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""

    def load(self) -> None:
        """Return None."""

    def yield_to_trainer(self) -> None:
        """Do nothing."""


def _alone(lr: float, steps: int, seed: int, more: Mapping[str, ParameterValue]) -> Trial:
    spec = StudySpec.model_validate_json(
        json.dumps(
            {
                "study": {"name": "alone"},
                "workload": {"command": [Path(sys.argv[0]).name or "python"]},
                "training": {"steps": steps},
                "space": {"lr": lr, "schedule": "constant", "optimizer": "adamw"},
                "search": {"pruner": "none"},
                "budget": {"trials": 1},
            }
        )
    )
    params = {one.name: one.lowest for one in spec.space.parameters()} | dict(more)
    task = Task(number=0, seed=seed, params=params)
    trial = Trial(task, spec, settings_of(spec, params, None), _Nobody(params, steps))
    trial.alone = True
    return trial
