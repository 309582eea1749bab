"""Fork a process for each trial of a train function: `python -P -m ... DESCRIPTOR FUNCTION`.

The socket at DESCRIPTOR gets "1" once the function's module is imported, or "0" if this process
must not be forked: it then has threads, which a forked process would lack, or uses a GPU. Each
message has the variables of a trial, with descriptors for its output, its status and its guardian's
pipe. The status is the id of the guardian, a line end, and the exit code of the trial's process.
This process ends with the other end of the socket.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import torch

from tuner.training import random_state
from tuner.training.programs import child, guardian
from tuner.training.programs.conversation import STOP_SECONDS

MESSAGE_BYTES = 1 << 20


def main() -> None:
    """Import the function's module and fork until the socket ends."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.sendall(b"1" if _is_prepared(json.loads(sys.argv[2])) else b"0")
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 3)
        if not message:
            return
        if os.fork() == 0:
            connection.close()
            _guard(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _reap(_number: int, _frame: FrameType | None) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _is_prepared(about: Mapping[str, Any]) -> bool:
    """Import the function's module, and return whether this process may be forked then."""
    random_state.seeded_all(0, torch.device("cpu"))  # it imports numpy.random
    before = _threads()
    try:
        child.function_of(about)
    except BaseException:
        return False
    uses_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return before == _threads() is not None and not uses_gpu


def _threads() -> int | None:
    """Return the number of threads of this process, where it may be forked."""
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else None  # noqa: PTH208


def _guard(variables: Mapping[str, str], output: int, status: int, pipe: int) -> NoReturn:
    """Fork the trial's process, and end with it."""
    code = 1
    try:
        os.write(status, f"{os.getpid()}\n".encode())
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        guardian.adopt_orphans()
        pid = os.fork()
        if pid == 0:
            os.close(status)
            os.close(pipe)
            _train(variables, output)
        os.close(output)
        code = guardian.guard(pid, pipe, STOP_SECONDS)
    finally:
        os.write(status, str(code).encode())
        os._exit(0)


def _train(variables: Mapping[str, str], output: int) -> NoReturn:
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(variables)
        child.main()
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
