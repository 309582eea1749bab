"""Train functions in processes of their own: one for each trial, or for each rank of a trial.

A crash, a leak or a changed global state ends with the process. The processes of one rank are
forked from a server that has imported torch and the function's module, so that starting one is
quick. Ranks are launched, and so is the process of a function whose module cannot be forked safely.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch

from tuner.config import StudySpec
from tuner.core import importing
from tuner.core.forking import keep_from_children
from tuner.training import workloads
from tuner.training.programs.conversation import Conversation, ProgramError, Running
from tuner.training.programs.limits import Limits
from tuner.training.programs.program import Program, failure, running, variables
from tuner.training.train_functions import TrainFunction

CHILD, SERVER = "tuner.training.programs.child", "tuner.training.programs.fork_server"
SECRET_PREFIXES = ("TUNER_", "MLFLOW_", "PG")
"""Prefixes of variables with addresses and passwords, which the function does not need."""

log = logging.getLogger(__name__)


def isolated(function: TrainFunction, spec: StudySpec, prefixes: Sequence[str]) -> TrainFunction:
    """Return a train function that runs another one in processes of their own."""
    program = FunctionProgram(function, spec, prefixes)
    return replace(function, call=program, arguments={}, searched=())


class RemoteTracebackError(Exception):
    """The traceback of an exception in another process; the cause of its copy here."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}\n"""'


class FunctionProgram(Program):
    """The train function that runs another one, which is named by a study, in a process."""

    def __init__(self, function: TrainFunction, spec: StudySpec, prefixes: Sequence[str]) -> None:
        super().__init__(spec, Limits.of())
        self._function = function
        self._about = {
            "name": function.name,
            "arguments": dict(function.arguments),
            "searched": list(function.searched),
            "prefixes": list(prefixes),
            "path": list(sys.path),
            "code": workloads.code_digest(function.name, prefixes),
        }
        self._server: ForkServer | None = None

    @contextmanager
    def start(self, values: Mapping[str, Any]) -> Iterator[Running]:
        """Run the function within the context."""
        if self.ranks == 1 and self._forks() and self._server is not None:
            with self._server.forked(variables(values)) as forked:
                yield forked
            return
        command = self.launched(importing.command(CHILD))
        with running(command, Path.cwd(), environment() | variables(values)) as process:
            yield process

    def described(self) -> Mapping[str, Any]:
        """Return how to find and call the function."""
        about = self._about | {"threads": torch.get_num_threads()}
        return {"function": about, "training_rows": self._function.training_rows}

    def is_complete(self, conversation: Conversation) -> bool:
        """Return whether the function has returned: `os._exit(0)` is no success."""
        return conversation.returned == self.ranks

    def failure(self, code: int, lines: Sequence[str], conversation: Conversation) -> Exception:
        """Return what the function raised, else how its process ended."""
        if conversation.raised and code < 128:  # else that follows from the end of another rank
            return _copy_of(conversation.raised)
        module = self._function.name.partition(":")[0].rpartition(".")[2]
        if code == 0:
            message = "its process ended with exit code 0 before it returned"
            return ProgramError("\n".join([message, *lines]), f"{module}.py:0")
        return failure(code, lines, f"{module}.py")

    def _forks(self) -> bool:
        """Return whether the server forks; start it, or another one if it has died."""
        if self._server is None or not self._server.is_alive():
            self._server = ForkServer(self._about)
            if not self._server.forks:
                log.warning(
                    "%s: each trial starts an interpreter, which takes seconds, since its module "
                    "cannot be imported in another process, or starts threads or uses a GPU then",
                    self._function.name,
                )
        return self._server.forks


def environment() -> dict[str, str]:
    """Return this process's environment without addresses and passwords of databases and MLflow."""
    return {k: v for k, v in os.environ.items() if not k.startswith(SECRET_PREFIXES)}


def _copy_of(raised: Mapping[str, Any]) -> Exception:
    """Return an exception like the one that was raised in another process."""
    bases = (MemoryError,) if raised["out_of_memory"] else (RuntimeError,)
    error: Exception = type(raised["type"], bases, {"place": raised["place"]})(raised["message"])
    error.__cause__ = RemoteTracebackError(raised["traceback"])
    return error


class ForkServer:
    """A process that has imported a function's module, and forks one for each trial."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        keep_from_children(ours)
        threads = str(torch.get_num_threads())
        command = importing.command(SERVER, str(theirs.fileno()), json.dumps(about))
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                command,
                env={"OPENBLAS_NUM_THREADS": threads} | environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._socket = ours
        weakref.finalize(self, _end, self._process, ours)
        self.forks = ours.recv(1) == b"1"  # empty: it could not import the module
        """Whether it forks: it has no threads that a forked process would lack."""

    def is_alive(self) -> bool:
        """Return whether the server can be asked for a process, or has refused to fork."""
        return not self.forks or self._process.poll() is None

    @contextmanager
    def forked(self, variables: Mapping[str, str]) -> Iterator[Running]:
        """Run the function in a forked process within the context, and end all of it after it."""
        output, their_output = os.pipe()
        status, their_status = os.pipe()
        their_guard, guard = os.pipe()
        theirs = [their_output, their_status, their_guard]
        with (
            os.fdopen(output, "rb", buffering=0) as stdout,
            os.fdopen(status, "rb", buffering=0) as codes,
        ):
            pipe = os.fdopen(guard, "wb", buffering=0)
            keep_from_children(pipe)  # else it would not end with this process
            process = None
            try:
                socket.send_fds(self._socket, [json.dumps(dict(variables)).encode()], theirs)
                while theirs:
                    os.close(theirs.pop())
                process = _Forked(self._process.pid, stdout, codes)
                yield process
            finally:
                while theirs:
                    os.close(theirs.pop())
                pipe.close()
                if process is not None:
                    process.wait()


class _Forked:
    """A forked process, like a `subprocess.Popen`."""

    def __init__(self, server: int, stdout: IO[bytes], codes: IO[bytes]) -> None:
        guardian = codes.readline()  # empty: the server has died before it forked
        self.pid = int(guardian or server)  # of the guardian, under which the process runs
        self.stdout: IO[bytes] | None = stdout
        self.returncode: int | None = None
        self._codes = codes

    def poll(self) -> int | None:
        """Return its exit code, or None if it still runs."""
        if self.returncode is None and select.select([self._codes], [], [], 0)[0]:
            return self.wait()
        return self.returncode

    def wait(self) -> int:
        """Return its exit code when it has ended."""
        if self.returncode is None:
            text = self._codes.read(16)
            self.returncode = int(text) if text else 137  # its guardian was killed
        return self.returncode


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    process.kill()
    process.wait()
