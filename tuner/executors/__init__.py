"""Executors: where workers are started, on this machine or by an engine of a cluster.

An executor starts workers, never trials: the state of the work is in the ledger, and a worker is
lost without harm. What was started is kept in the ledger too (`tuner.ledger.launches`), so that
another process, on another machine, can list and cancel it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from tuner.config.cluster import WorkerTable
from tuner.ledger.launches import Launch

Phase: TypeAlias = Literal["waiting", "running", "ended", "failed", "unknown"]


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """What an engine says of one worker."""

    handle: str
    phase: Phase
    code: int | None = None  # exit code of one that has failed, where it is known
    where: str = ""  # the machine
    detail: str = ""  # why, in the engine's words

    @property
    def is_over(self) -> bool:
        """Return whether the worker has ended for good."""
        return self.phase in ("ended", "failed")


class Executor(Protocol):
    """Starts workers.

    Invariants: a handle names one worker for good, also after its engine has started it again;
    `poll` does not wait for a worker; a `Launch` may name any process or job, as anybody with a
    login of the database may have written it, so nothing is cancelled that is not a worker of it.
    All raise `UnavailableError` if the engine cannot be reached.
    """

    name: str
    poll_seconds: float
    """How often the engine may be asked for states."""

    def launch(
        self, key: str, workers: int, resources: WorkerTable, arguments: Sequence[str]
    ) -> tuple[str, ...]:
        """Start so many `tuner worker` with arguments, in a job named by `key`; return handles.

        Raise `UsageError` if the engine refuses the request: nothing was started then.
        """

    def poll(self, launches: Sequence[Launch]) -> Mapping[str, Sequence[WorkerState]]:
        """Return the states of the workers of each launch, by its key."""

    def cancel(self, launch: Launch) -> None:
        """Ask the workers of a launch to save their trials and end; those that wait never start."""

    def logs(self, launch: Launch, handle: str) -> str:
        """Return the end of a worker's log. Raise `UsageError` if there is none to read here."""
