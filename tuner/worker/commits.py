"""Commits of a worker's attempts, many attempts in one transaction.

While the database is unreachable, decisions and outcomes wait for it; measured rows do not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_when_event_set, wait_random_exponential

from tuner.core.errors import ConnectionLostError
from tuner.core.failpoints import reach
from tuner.ledger import AttemptLease, Entry, Ledger
from tuner.observability import metrics
from tuner.observability.logs import logger

LONGEST_SECONDS = 5.0
"""The longest pause between two tries of a call that waits for the database."""

R = TypeVar("R")

log = logger(__name__)


class Commits:
    """The commits of one worker at one study."""

    def __init__(self, ledger: Ledger, study: str, stop: threading.Event) -> None:
        self._ledger = ledger
        self._study = study
        self._stop = stop

    def retry_until_stopped(self, call: Callable[[], R]) -> R:
        """Retry a call while the database is unreachable, until the worker is asked to stop."""

        def before_sleep(_: object) -> None:
            metrics.heartbeat("worker")
            log.warning(f"study {self._study} waits for the database")

        retrying = Retrying(
            retry=retry_if_exception_type(ConnectionLostError),
            wait=wait_random_exponential(multiplier=0.1, max=LONGEST_SECONDS),
            stop=stop_when_event_set(self._stop),
            before_sleep=before_sleep,
            reraise=True,
        )
        return retrying(call)

    def commit_decisions(self, entries: Sequence[Entry]) -> frozenset[AttemptLease]:
        """Commit entries with decisions or outcomes; return the leases that are refused."""
        if any(entry.report for entry in entries):
            reach("report.before_commit")
        ends = any(entry.outcome for entry in entries)
        if ends:
            reach("outcome.before_commit")
        lost = self.retry_until_stopped(lambda: self._ledger.commit(entries)).lost
        if ends:
            reach("outcome.committed")
        return lost

    def commit_rows(self, entries: Sequence[Entry]) -> frozenset[AttemptLease]:
        """Commit rows alone; return the leases that are refused.

        Raise `ConnectionLostError` at once where the database is unreachable.
        """
        reach("chunk.before_commit")
        lost = self._ledger.commit_once(entries).lost
        reach("chunk.committed")
        return lost
