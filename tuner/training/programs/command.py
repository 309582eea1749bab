"""Commands as workloads: each trial is a program of its own, which reports to this process.

The program runs in a process group and a folder of its own. It is described in a JSON file and in
variables of its environment, and reports through a socket (`tuner.current_trial`), by JSON lines or
by patterns. `Program` is the train function that runs it, so guard, pruning and time limits hold as
for other train functions. A guardian ends the program's group when this process ends.
"""

from __future__ import annotations

import json
import logging
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tuner.config import StudySpec
from tuner.config.study import PLACEHOLDER, PROGRAM_VALUES, WorkloadTable
from tuner.core.commands import clean_environment
from tuner.core.errors import WorkloadError
from tuner.core.outputs import private_folder
from tuner.training import checkpoint_files
from tuner.training.programs import guardian, permission
from tuner.training.programs.limits import Limits, watched
from tuner.training.programs.lines import ROW, STEP, PatternReports, Report, of_json
from tuner.training.rate_source import initial_multipliers
from tuner.training.train_functions import TrainFunction
from tuner.training.trial import StopTrial, Trial

TRIAL = "TUNER_TRIAL"
"""The variable with the path of the JSON file that describes the trial."""
KEPT = "TUNER_COMMAND_ENVIRONMENT"
"""The worker's variable with names of further variables for programs, separated by spaces."""
STOP_SECONDS = 5.0
"""How long a program may take to end after it was asked to, and again after SIGTERM."""
LOOK_SECONDS = 0.2
LOG_BYTES = 16 << 20
"""The most output of a program that is kept."""
LINE_BYTES = 1 << 20
"""The longest line of its output that is read, and the longest request."""
CHECKPOINT_BYTES = 256 << 20
"""The most bytes of all files of a checkpoint."""
LAST_LINES = 20

_PLACE = re.compile(r'File "([^"]+)", line (\d+)')
_UNSAFE = re.compile(r"[^A-Za-z0-9_]")

log = logging.getLogger(__name__)


class ProgramError(RuntimeError):
    """A program that ended with an exit code other than 0; the message has its last lines."""

    def __init__(self, message: str, place: str) -> None:
        super().__init__(message)
        self.place = place  # file:line, for the reason of the trial


def load(spec: StudySpec, allowed: Sequence[str]) -> TrainFunction:
    """Return the train function that runs the command of a study. Nothing is run here.

    Raise `WorkloadError` if the command is not allowed, or the worker's limits cannot be read.
    """
    command = spec.workload.command
    assert command is not None
    permission.refuse_unless_allowed(command, allowed)
    name = spec.workload.function
    return TrainFunction(
        name=name, call=Program(spec), arguments={}, data_name=f"data of {name}", data_digest=""
    )


class Program:
    """The train function of a study's command."""

    def __init__(self, spec: StudySpec) -> None:
        assert spec.workload.command is not None
        self._spec, self._table, self._command = spec, spec.workload, spec.workload.command
        self._limits = Limits.of()

    def __call__(self, trial: Trial) -> None:
        """Run the program for a trial until it ends. Raise `ProgramError` and `StopTrial`."""
        saved = trial.checkpoint.load() or {"files": {}, "evaluated": -1}
        folder = self._new_folder(trial)
        checkpoints = folder / "checkpoint"
        private_folder(checkpoints)
        checkpoint_files.restore(saved["files"], checkpoints)
        with ExitStack() as stack:
            short = stack.enter_context(tempfile.TemporaryDirectory(prefix="tuner-"))
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(Path(short) / "socket"))
            listener.listen(1)
            values = self._describe(trial, folder, checkpoints, listener.getsockname())
            output = stack.enter_context((folder / "output.log").open("wb"))
            process = stack.enter_context(
                running(self._arguments(values), self._cwd(folder), self._environment(values))
            )
            watch = stack.enter_context(watched(process.pid, self._limits))
            conversation = Conversation(
                trial, self._table, checkpoints, output, evaluated=saved["evaluated"]
            )
            stack.callback(conversation.close)
            try:
                conversation.hold(process, listener)
            except StopTrial:
                conversation.stop(process)
                raise
        if watch.exceeded is not None:
            raise ProgramError(watch.exceeded, "limit:0")
        if process.returncode:
            raise self._failure(process.returncode, conversation.last_lines, folder)
        shutil.rmtree(checkpoints, ignore_errors=True)

    def _new_folder(self, trial: Trial) -> Path:
        study = _UNSAFE.sub("_", self._spec.study.name)[:40]
        parent = Path.cwd() / ".tuner" / "programs" / f"{study}-{self._spec.digest()[:8]}"
        private_folder(parent)
        return Path(tempfile.mkdtemp(prefix=f"trial-{trial.number}-", dir=parent))

    def _cwd(self, folder: Path) -> Path:
        return folder if self._table.folder == "trial" else Path.cwd()

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
            "batch_size": self._spec.training.batch_size,
            **trial.params,
            "rates": str(rates),
            "folder": str(folder),
            "checkpoint_dir": str(checkpoints),
        }
        described = {
            **about,
            "params": dict(trial.params),
            "socket": address,
            "spec": self._spec.model_dump(mode="json"),
        }
        (folder / "trial.json").write_text(json.dumps(described, indent=2))
        return about

    def _arguments(self, values: Mapping[str, Any]) -> list[str]:
        words = [render(word, values) for word in self._command]
        if words[0] in ("python", "python3"):
            words[0] = sys.executable
        # relative to this folder; the program has another one
        return [
            str(Path(word).resolve()) if word == given and word and Path(word).exists() else word
            for word, given in zip(words, self._command, strict=True)
        ]

    def _environment(self, values: Mapping[str, Any]) -> dict[str, str]:
        found = clean_environment(keep=os.environ.get(KEPT, "").split())
        threads = self._spec.training.threads
        if threads != "auto":
            found["OMP_NUM_THREADS"] = str(threads)
        named = {_variable(key): str(value) for key, value in values.items()}
        trial = str(Path(values["folder"]) / "trial.json")
        return found | named | {TRIAL: trial, "PYTHONUNBUFFERED": "1"}

    def _failure(self, code: int, lines: Sequence[str], folder: Path) -> ProgramError:
        program = Path(self._command[-1 if len(self._command) == 1 else 1]).name
        place = f"{program}:{code}"
        for line in lines:
            if (found := _PLACE.search(line)) is not None:
                place = f"{Path(found[1]).name}:{found[2]}"
        ended = f"exit code {code}"
        if code > 128 and code - 128 in {one.value for one in signal.Signals}:
            ended = f"ended by {signal.Signals(code - 128).name}"
        said = [line for line in lines if line.strip()]
        message = f"{ended}: {said[-1].strip()}" if said else ended
        return ProgramError(
            "\n".join([message, *lines, f"Its output is in {folder / 'output.log'}"]), place
        )


def _variable(key: str) -> str:
    kind = "" if key in PROGRAM_VALUES else "PARAM_"
    return f"TUNER_{kind}{_UNSAFE.sub('_', key).upper()}"


def render(word: str, values: Mapping[str, Any]) -> str:
    """Return a word of a command with its placeholders replaced; `{{` and `}}` are braces."""

    def value_of(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] not in values:
            raise WorkloadError(
                f"[workload] command: expected {{{match[1]}}} to be a parameter of the trial, or "
                f"one of {', '.join(values)}"
            )
        return str(values[match[1]])

    return PLACEHOLDER.sub(value_of, word)


@contextmanager
def running(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program under its guardian within the context, and end its group after it."""
    read, write = os.pipe()
    started = [sys.executable, "-I", "-S", guardian.__file__, str(read), str(STOP_SECONDS)]
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
    assert process.stdout is not None
    try:
        yield process
    finally:
        os.close(write)
        process.wait()
        process.stdout.close()


@dataclass(kw_only=True)
class _Peer:
    """The program's end of the socket."""

    connection: socket.socket
    received: bytes = b""


class Conversation:
    """What a program prints and asks, and the answers, until it ends."""

    def __init__(
        self,
        trial: Trial,
        table: WorkloadTable,
        checkpoints: Path,
        output: BinaryIO,
        *,
        evaluated: int,  # the last step with metrics before the checkpoint
    ) -> None:
        self._trial, self._checkpoints, self._output = trial, checkpoints, output
        self._patterns = (
            PatternReports(table.patterns, table.counts_from) if table.patterns else None
        )
        self._peer: _Peer | None = None
        self._was_connected = False  # then lines of the output are no reports
        self._line = b""
        self._written = 0
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._evaluated = evaluated
        self._selector = selectors.DefaultSelector()

    @property
    def last_lines(self) -> list[str]:
        """The last lines of the output."""
        return list(self._lines)

    def hold(self, process: subprocess.Popen[bytes], listener: socket.socket) -> None:
        """Answer a program until it has ended. Raise `StopTrial` when it must end."""
        assert process.stdout is not None
        self._selector.register(process.stdout, selectors.EVENT_READ, self._read_output)
        self._selector.register(listener, selectors.EVENT_READ, self._connect)
        looked, printing = time.monotonic(), True
        while printing or process.poll() is None:
            ready = self._selector.select(LOOK_SECONDS)
            for key, _ in ready:
                if key.data(key.fileobj) is False and key.fileobj is process.stdout:
                    printing = False
            if not ready and process.poll() is not None:
                break  # a process that left the group holds the output open
            if time.monotonic() - looked >= LOOK_SECONDS:
                self._trial.yield_to_trainer()
                looked = time.monotonic()
        process.wait()
        self._end_of_line()
        for report in self._patterns.flush() if self._patterns and process.returncode == 0 else ():
            self._report(report)

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """Ask a connected program to end, and wait a little for it."""
        if self._peer is None:
            return
        self._send({"stop": True})
        for key in [*self._selector.get_map().values()]:
            if key.fileobj is not process.stdout:
                self._selector.unregister(key.fileobj)
        deadline = time.monotonic() + STOP_SECONDS
        while process.poll() is None and (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(min(left, LOOK_SECONDS)):
                if key.fileobj is process.stdout:
                    self._drain(process.stdout)

    def close(self) -> None:
        """Close the socket."""
        self._selector.close()
        if self._peer is not None:
            self._peer.connection.close()

    # --- output

    def _read_output(self, stream: Any) -> bool:
        part = self._drain(stream)
        *whole, self._line = re.split(rb"[\r\n]", self._line + part)
        self._line = self._line[:LINE_BYTES]
        for line in whole:
            self._read_line(line)
        return bool(part)

    def _drain(self, stream: Any) -> bytes:
        part: bytes = os.read(stream.fileno(), 1 << 16)
        if not part:
            self._selector.unregister(stream)
        kept = part[: max(0, LOG_BYTES - self._written)]
        self._output.write(kept)
        self._output.flush()
        self._written += len(kept)
        return part

    def _end_of_line(self) -> None:
        line, self._line = self._line, b""
        if line:
            self._read_line(line)

    def _read_line(self, line: bytes) -> None:
        text = line.decode(errors="replace")
        if text.strip():
            self._lines.append(text[:1000])
        if self._was_connected:
            return
        if self._patterns is not None:
            for report in self._patterns.read(text):
                self._report(report)
        elif (found := of_json(text)) is not None:
            self._report(found)

    def _report(self, report: Report) -> None:
        """Report a line of the output, and save the checkpoint that it mentions."""
        save = report.pop("checkpoint", None)
        try:
            if len(report) > 1:
                self._pass_on(report)
        except (ValueError, TypeError) as error:
            hint = ""
            if self._patterns is not None:
                hint = "; counts_from in [workload] is the number of the program's first step"
            raise ProgramError(f"{error}{hint}", "output:0") from error
        if save:
            self._save()

    def _pass_on(self, report: Mapping[str, Any]) -> None:
        """Report to the trial, unless it is of a step before the checkpoint and known already."""
        step, has_metrics = report["step"], bool(report.keys() - {*ROW, STEP})
        known = self._trial.first_step
        if isinstance(step, int) and (step < known or (has_metrics and step <= self._evaluated)):
            return
        if has_metrics:
            self._evaluated = step
        self._trial.report(**report)

    # --- socket

    def _connect(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        if self._peer is not None:
            connection.sendall(b'{"error": "the trial is used by another process already"}\n')
            connection.close()
            return
        self._peer, self._was_connected = _Peer(connection=connection), True
        self._selector.register(connection, selectors.EVENT_READ, self._read_request)

    def _read_request(self, connection: socket.socket) -> None:
        assert self._peer is not None
        try:
            part = connection.recv(1 << 16)
        except ConnectionError:
            part = b""
        if not part:
            self._selector.unregister(connection)
            connection.close()
            self._peer = None
            return
        *whole, self._peer.received = (self._peer.received + part).split(b"\n")
        if len(self._peer.received) > LINE_BYTES:
            raise ProgramError(f"a request is longer than {LINE_BYTES} bytes", "socket:0")
        for line in whole:
            self._send(self._answer(json.loads(line)))

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if "save" in request:
                self._save()
            else:
                self._pass_on(request)
        except (ValueError, TypeError) as error:
            return {"error": str(error)}
        return {}

    def _send(self, answer: Mapping[str, Any]) -> None:
        if self._peer is not None:
            try:
                self._peer.connection.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:  # it has ended; its exit code says why
                log.debug("a program ended before its answer")

    # --- checkpoints

    def _save(self) -> None:
        size = sum(one.stat().st_size for one in self._checkpoints.rglob("*") if one.is_file())
        if size > CHECKPOINT_BYTES:
            log.warning(
                "trial %d: its checkpoint has %d bytes, more than %d, and is not kept",
                self._trial.number,
                size,
                CHECKPOINT_BYTES,
            )
            return
        files = checkpoint_files.read(self._checkpoints)
        self._trial.checkpoint.save({"files": files, "evaluated": self._evaluated})
