"""Trials in processes of their own, which report to this process.

A program runs in a process group and a folder of its own. It is described in a JSON file and in
variables of its environment. `Program` is the train function that runs it, so guard, pruning and
time limits hold as for other train functions. A guardian ends the program when this process ends.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from tuner.config import StudySpec
from tuner.config.study import PROGRAM_VALUES
from tuner.core import importing
from tuner.core.errors import WorkloadError
from tuner.core.forking import keep_from_children
from tuner.core.outputs import private_folder
from tuner.training import checkpoint_files
from tuner.training.programs import guardian
from tuner.training.programs.conversation import (
    STOP_SECONDS,
    Conversation,
    ProgramError,
    Running,
)
from tuner.training.programs.limits import Limits, watched
from tuner.training.programs.other_user import SEARCHABLE, OtherUser
from tuner.training.rate_source import initial_multipliers
from tuner.training.trial import StopTrial, Trial

TRIAL = "TUNER_TRIAL"
"""The variable with the path of the JSON file that describes the trial."""

UNSAFE = re.compile(r"[^A-Za-z0-9_]")
_PLACE = re.compile(r'File "([^"]+)", line (\d+)')
_LIBRARY = re.compile(r"/lib/python\d|[/\\](site|dist)-packages[/\\]|tuner/training/programs/")
_RANK = re.compile(r"\[rank(\d+)\]: ")
_RANK_ENDED = re.compile(r"rank (\d+): (.*)")


class Program(ABC):
    """A train function that runs each trial in a process of its own, or in one for each rank."""

    def __init__(self, spec: StudySpec, limits: Limits, user: OtherUser | None = None) -> None:
        self.spec, self.table, self.limits, self.user = spec, spec.workload, limits, user

    @abstractmethod
    def start(self, values: Mapping[str, Any]) -> AbstractContextManager[Running]:
        """Run a trial's program within the context; `values` are those of its placeholders."""

    @abstractmethod
    def described(self) -> Mapping[str, Any]:
        """Return what the trial's file has besides what all programs need."""

    @abstractmethod
    def failure(self, code: int, lines: Sequence[str], conversation: Conversation) -> Exception:
        """Return the exception for a program that failed with an exit code."""

    def __call__(self, trial: Trial) -> None:
        """Run the program for a trial until it ends. Raise its failure, or `StopTrial`."""
        saved = trial.checkpoint.load() or {"files": {}, "evaluated": -1}
        folder = self._new_folder(trial)
        checkpoints = folder / "checkpoint"
        private_folder(checkpoints)
        checkpoint_files.restore(saved["files"], checkpoints)
        with ExitStack() as stack:
            short = stack.enter_context(tempfile.TemporaryDirectory(prefix="tuner-"))
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(Path(short) / "socket"))
            listener.listen(self.ranks)
            values = self._describe(trial, folder, checkpoints, listener.getsockname())
            output = stack.enter_context((folder / "output.log").open("wb"))
            if self.user is not None:
                self.user.take_over(folder)
                self.user.take_over(Path(short))
            process = stack.enter_context(self.start(values))
            watch = stack.enter_context(watched(process.pid, self.limits))
            conversation = Conversation(
                trial,
                self.table,
                checkpoints,
                output,
                evaluated=saved["evaluated"],
                metric=self.spec.study.metric,
                ranks=self.ranks,
            )
            stack.callback(conversation.close)
            try:
                conversation.hold(process, listener)
            except StopTrial:
                conversation.stop(process)
                raise
        if watch.exceeded is not None:
            raise ProgramError(watch.exceeded, "limit:0")
        if process.returncode or not self.is_complete(conversation):
            where = f"Its output is in {folder / 'output.log'}"
            lines = [*conversation.last_lines, where]
            raise self.failure(process.returncode, lines, conversation)
        shutil.rmtree(checkpoints, ignore_errors=True)

    @property
    def ranks(self) -> int:
        """The number of ranks of a trial. Raise `WorkloadError` where there is no GPU for them."""
        if self.table.processes != "gpus":
            return self.table.processes
        found = torch.cuda.device_count()
        if not found:
            raise WorkloadError('[workload] processes = "gpus": expected a GPU here, found none')
        return found

    def is_complete(self, _conversation: Conversation) -> bool:
        """Return whether a program that ended with exit code 0 has done its work."""
        return True

    def launched(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs a command on all ranks."""
        if self.ranks == 1:
            return list(command)
        launch = importing.command("tuner.training.programs.launch", str(self.ranks))
        return [*launch, *command]

    def _new_folder(self, trial: Trial) -> Path:
        study = UNSAFE.sub("_", self.spec.study.name)[:40]
        parent = Path.cwd() / ".tuner" / "programs" / f"{study}-{self.spec.digest()[:8]}"
        private_folder(parent)
        for one in (parent, *parent.parents[:2]) if self.user is not None else ():
            one.chmod(SEARCHABLE)
        return Path(tempfile.mkdtemp(prefix=f"trial-{trial.number}-", dir=parent))

    def _describe(
        self, trial: Trial, folder: Path, checkpoints: Path, address: str
    ) -> Mapping[str, Any]:
        """Write the trial's file and its rates. Return the values of placeholders by name."""
        rates = folder / "rates.json"
        multipliers = initial_multipliers(trial.params, trial.steps)
        rates.write_text(json.dumps((trial.lr * multipliers).tolist()))
        about = {
            "number": trial.number,
            "seed": trial.seed,
            "steps": trial.steps,
            "first_step": trial.first_step,
            "device": trial.device,
            "batch_size": self.spec.training.batch_size,
            **trial.params,
            "rates": str(rates),
            "folder": str(folder),
            "checkpoint_dir": str(checkpoints),
        }
        content = {
            **about,
            "params": dict(trial.params),
            "socket": address,
            "spec": self.spec.model_dump(mode="json"),
            **self.described(),
        }
        (folder / "trial.json").write_text(json.dumps(content, indent=2))
        return about


def variables(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of a trial: the values of placeholders, and the trial's file."""
    named = {_variable(key): str(value) for key, value in values.items()}
    trial = str(Path(values["folder"]) / "trial.json")
    return named | {TRIAL: trial, "PYTHONUNBUFFERED": "1"}


def _variable(key: str) -> str:
    kind = "" if key in PROGRAM_VALUES else "PARAM_"
    return f"TUNER_{kind}{UNSAFE.sub('_', key).upper()}"


@contextmanager
def running(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    user: OtherUser | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program under its guardian within the context, and end all of it after it.

    The guardian is the worker's user also where the program is another's, who cannot end it.
    """
    read, write = os.pipe()
    started = [sys.executable, "-I", "-S", guardian.__file__, str(read), str(STOP_SECONDS)]
    started.append("-" if user is None else user.numbers)
    try:
        process = subprocess.Popen(  # noqa: S603 - the worker was started to run it
            [*started, *command],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(read,),
            start_new_session=True,
        )
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)
    pipe = os.fdopen(write, "wb", buffering=0)
    keep_from_children(pipe)  # else it would not end with this process
    assert process.stdout is not None
    try:
        yield process
    finally:
        pipe.close()
        process.wait()
        process.stdout.close()


def failure(code: int, lines: Sequence[str], name: str) -> ProgramError:
    """Return the failure of a program: its exit code and the last line of its output that says why.

    With several ranks it is that of the rank that failed first. `name` is the place of a program
    that names no file and line itself. The last of the lines says where the output is.
    """
    *printed, where = lines
    ended, said = _ended(code), printed
    if printed and (rank := _RANK_ENDED.fullmatch(printed[-1])) is not None:
        *said, ended = printed
        first = next((found[1] for line in said if (found := _RANK.match(line))), rank[1])
        if code > 128:  # a signal; what the other ranks print follows from it
            said = []
        elif own := [line for line in said if line.startswith(f"[rank{first}]: ")]:
            ended, said = f"rank {first}: {_ended(code)}", [_RANK.sub("", line) for line in own]
    places = [found for line in said if (found := _PLACE.search(line))]
    places = [one for one in places if not _LIBRARY.search(one[1])] or places
    said = [line.strip() for line in said if line.strip()]
    fatal = next((line for line in said if line.startswith("Fatal Python error")), None)
    # a dump after a fatal error begins with the innermost line, a traceback ends with it
    innermost = next(iter(places if fatal else reversed(places)), None)
    place = f"{name}:{code}" if innermost is None else f"{Path(innermost[1]).name}:{innermost[2]}"
    reason = fatal or (said[-1] if said else "")
    message = f"{ended}: {reason}" if reason else ended
    return ProgramError("\n".join([message, *printed, where]), place)


def _ended(code: int) -> str:
    if code > 128 and code - 128 in {one.value for one in signal.Signals}:
        return f"ended by {signal.Signals(code - 128).name}"
    return f"exit code {code}"
