"""Committing what a worker's attempts have measured and what was decided: many of them as one.

While the database is away, decisions and outcomes wait for it; rows need not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_when_event_set, wait_random_exponential

from tuner.core.errors import ConnectionLostError
from tuner.core.failpoints import reach
from tuner.ledger import Entry, Lease, Ledger
from tuner.observability import metrics
from tuner.observability.logs import logger

LONGEST_SECONDS = 5.0
"""The longest pause between two tries of what must wait for the database."""

R = TypeVar("R")

log = logger(__name__)


class Commits:
    """The commits of one worker at one study."""

    def __init__(self, ledger: Ledger, study: str, stop: threading.Event) -> None:
        self._ledger = ledger
        self._impatient = Ledger(ledger.engine, ledger.lease_seconds, patience=0.0)
        self._study = study
        self._stop = stop

    def waiting(self, call: Callable[[], R]) -> R:
        """Make a call that must wait for the database; until the worker is told to stop."""

        def say(_: object) -> None:
            metrics.heartbeat("worker")
            log.warning(f"study {self._study} waits for the database")

        retrying = Retrying(
            retry=retry_if_exception_type(ConnectionLostError),
            wait=wait_random_exponential(multiplier=0.1, max=LONGEST_SECONDS),
            stop=stop_when_event_set(self._stop),
            before_sleep=say,
            reraise=True,
        )
        return retrying(call)

    def decided(self, entries: Sequence[Entry]) -> frozenset[Lease]:
        """Commit entries, some of which hold decisions; give the leases that are refused."""
        if any(entry.report for entry in entries):
            reach("report.before_commit")
        ends = any(entry.outcome for entry in entries)
        if ends:
            reach("outcome.before_commit")
        lost = self.waiting(lambda: self._ledger.commit(entries)).lost
        if ends:
            reach("outcome.committed")
        return lost

    def measured(self, entries: Sequence[Entry]) -> frozenset[Lease]:
        """Commit rows alone; give the leases that are refused.

        Raises `ConnectionLostError` at once where the database is away.
        """
        reach("chunk.before_commit")
        lost = self._impatient.commit(entries).lost
        reach("chunk.committed")
        return lost
