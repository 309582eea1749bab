"""Executors: where workers are started. Today as processes of this machine; others can follow.

An executor knows nothing of studies. All that is worth keeping of the work is in the database, so
what it forgets when this process ends is only which workers were its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tuner.core import importing
from tuner.core.outputs import private_folder


class Executor(Protocol):
    """Starts workers.

    Invariants: a handle names one worker for good; `poll` never blocks; `cancel` asks a worker to
    save its trials and go, and a second time to go at once.
    """

    def launch(self, arguments: Sequence[str]) -> str:
        """Start `tuner worker` with arguments; give its handle."""

    def poll(self, handle: str) -> int | None:
        """Give a worker's exit code; None while it runs."""

    def cancel(self, handle: str) -> None:
        """Tell a worker to stop."""


class LocalExecutor:
    """Starts workers as processes of this machine; an `Executor`.

    Each logs into a file of its own, named after its handle, and ends when this process does.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def launch(self, arguments: Sequence[str]) -> str:
        """Start a worker. Its session is its own: Ctrl-C in the terminal reaches us alone."""
        private_folder(self._logs)
        ours = ("--parent", str(os.getpid()))
        command = importing.command("tuner", "worker", *ours, *arguments)
        handle = f"worker-{len(self._processes) + 1}"
        # one port for all of them would be taken by the first
        inherited = {k: v for k, v in os.environ.items() if k != "TUNER_METRICS_PORT"}
        with self.log_of(handle).open("ab") as log:
            self._processes[handle] = subprocess.Popen(  # noqa: S603 - our own program
                command,
                env=inherited,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        return handle

    def poll(self, handle: str) -> int | None:
        """Give a worker's exit code; None while it runs."""
        return self._processes[handle].poll()

    def cancel(self, handle: str) -> None:
        """Send SIGTERM, if the worker still runs."""
        process = self._processes[handle]
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)

    def log_of(self, handle: str) -> Path:
        """Give the file that a worker logs into."""
        return self._logs / f"{handle}.jsonl"
