"""Starts `tuner` without the seconds that its imports take: forks of a process that has them.

What is forked is a process of its own as any other, and has nothing of ours imported yet: what our
modules read of their environment at their import is what they were started with.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
IMPORTED = "torch.func mlflow optuna alembic.command structlog prometheus_client psycopg"
FORKS.set_forkserver_preload([*IMPORTED.split(), "sqlalchemy.dialects.postgresql.psycopg"])


@dataclass
class Forked:
    """A process, with what is used here of `subprocess.Popen`."""

    process: ForkServerProcess

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"waited {timeout} s for process {self.pid}"
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(arguments: Sequence[str], folder: Path, env: Mapping[str, str], log: Path) -> Forked:
    """Start `tuner` in a folder, with this environment and no other."""
    process = FORKS.Process(target=_run, args=(arguments, folder, env, log))
    process.start()
    return Forked(process)


def _run(arguments: Sequence[str], folder: Path, env: Mapping[str, str], log: Path) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = env["PYTHONPATH"].split(os.pathsep)
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    assert "tuner" not in sys.modules, "it has read another environment already"
    sys.argv[1:] = arguments
    runpy.run_module("tuner", run_name="__main__", alter_sys=True)
