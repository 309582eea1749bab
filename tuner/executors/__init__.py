"""Executors: where workers are started. `tuner.executors.local` starts processes of this machine.

An executor knows nothing of studies: the state of the work is in the database. When this process
ends, an executor forgets only which workers it has started.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Executor(Protocol):
    """Starts workers.

    Invariants: a handle names one worker for good; `poll` never blocks; the first `cancel` asks a
    worker to save its trials and end, the second one to end at once.
    """

    def launch(self, arguments: Sequence[str]) -> str:
        """Start `tuner worker` with arguments; return its handle."""

    def poll(self, handle: str) -> int | None:
        """Return a worker's exit code; None while it runs."""

    def cancel(self, handle: str) -> None:
        """Ask a worker to end."""
