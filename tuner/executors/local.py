"""Workers as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tuner.core import importing
from tuner.core.outputs import private_folder


class LocalExecutor:
    """An `Executor` of processes on this machine.

    Each worker logs into a file named after its handle, and ends when this process ends.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def launch(self, arguments: Sequence[str]) -> str:
        """Start a worker in a session of its own, which Ctrl-C in the terminal does not reach."""
        private_folder(self._logs)
        parent = ("--parent", str(os.getpid()))
        command = importing.command("tuner", "worker", *parent, *arguments)
        handle = f"worker-{len(self._processes) + 1}"
        # the first worker would take the port from the others
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
        """Return a worker's exit code; None while it runs."""
        return self._processes[handle].poll()

    def cancel(self, handle: str) -> None:
        """Send SIGTERM if the worker runs."""
        process = self._processes[handle]
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)

    def log_of(self, handle: str) -> Path:
        """Return the file that a worker logs into."""
        return self._logs / f"{handle}.jsonl"
