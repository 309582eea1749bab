"""The trial of this program: `tuner.current_trial()`, for programs that a worker runs.

The trial has the interface of a train function's (`tuner.training.trial.Trial`). Each report is a
line of JSON to the worker, which answers when the program may go on. Without a worker the trial is
inert: reports and checkpoints do nothing, and the schedule is constant.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tuner.config import ParameterValue, StudySpec, TrialSettings, settings_of
from tuner.training import checkpoint, foreign_state, random_state
from tuner.training.longer import steps_to_save
from tuner.training.rate_source import rate_source
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
        _CURRENT.append(_alone(lr, steps, seed, params) if file is None else _connected(Path(file)))
    return _CURRENT[0]


def _connected(file: Path) -> Trial:
    about = json.loads(file.read_text())
    spec = StudySpec.model_validate_json(json.dumps(about["spec"]))
    task = Task(number=about["number"], seed=about["seed"], params=about["params"])
    states = random_state.seeded_all(task.seed, torch.device(spec.training.device))
    random_state.set_states(states)
    settings = settings_of(spec, task.params, None)
    folder = Path(about["checkpoint_dir"])
    sink = _Worker(spec, task, settings, states, folder, about["socket"])
    return Trial(task, spec, settings, sink)


class _Worker:
    """A `ReportSink` in the worker, through its socket."""

    def __init__(
        self,
        spec: StudySpec,
        task: Task,
        settings: TrialSettings,
        states: dict[str, Any],
        folder: Path,
        address: str,
    ) -> None:
        self.first_step = 0
        self.rate_source = rate_source(task.params, settings.steps, spec.study.direction)
        self._spec, self._states, self._file = spec, states, folder / FILE
        self._saved_at = time.monotonic()
        self._step, self._steps_to_save = 0, steps_to_save(spec, task.params, settings)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        self._answers = self._socket.makefile("rb")

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report metrics."""
        self._ask({"step": step, **metrics})
        self.rate_source.evaluated(step, metrics[self._spec.study.metric])

    def trained(self, step: int, loss: float, rate: float, grad_norm: float) -> None:
        """Report a row."""
        self._ask({"step": step, "train_loss": loss, "lr": rate, "grad_norm": grad_norm})
        self._step = step + 1

    def due(self) -> bool:
        """Return whether a checkpoint is due."""
        seconds = self._spec.training.checkpoint_seconds
        timely = time.monotonic() - self._saved_at >= seconds
        return timely or self._step in self._steps_to_save

    def save(self, state: Mapping[str, Any]) -> None:
        """Save a state in the folder of checkpoints, which the worker keeps a copy of."""
        content = {
            "state": foreign_state.encode(dict(state)),
            "pace": dict(self.rate_source.state()),
            "random": foreign_state.encode(random_state.get_states(self._states)),
        }
        checkpoint.write(self._file, checkpoint.to_bytes(content))
        self._ask({"save": True})
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the saved state and continue from its step."""
        if not self._file.exists():
            return None
        saved = foreign_state.decode(checkpoint.from_bytes(self._file.read_bytes()))
        about = json.loads(Path(os.environ[TRIAL]).read_text())
        self.first_step = about["first_step"]
        self.rate_source.restore(saved["pace"])
        random_state.set_states(saved["random"])
        state: dict[str, Any] = saved["state"]
        return state

    def yield_to_trainer(self) -> None:
        """Do nothing: the worker is another process."""

    def _ask(self, request: Mapping[str, Any]) -> None:
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._answers.readline()
        except OSError:
            line = b""
        answer = json.loads(line) if line else {"stop": True}  # without a worker there is no trial
        if "error" in answer:
            raise ValueError(answer["error"])
        if "stop" in answer:
            raise ProgramStopped


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
