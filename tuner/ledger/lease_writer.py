"""The base of what claims rows of the ledger under leases."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import groupby

from sqlalchemy import Connection, Engine

from tuner.ledger.leases import LEASE_SECONDS, Gone, Lease, LeaseTable, State
from tuner.ledger.reading import Reader
from tuner.ledger.retrying import RETRY_SECONDS


class LeaseWriter(Reader):
    """Claims rows and renews leases. Thread-safe, as `Reader` is."""

    def __init__(
        self,
        engine: Engine,
        lease_seconds: float = LEASE_SECONDS,
        retry_timeout: float = RETRY_SECONDS,
        grace_seconds: float | None = None,
    ) -> None:
        """Treat no lease as expired within `grace_seconds` after the server started.

        The default is `lease_seconds`.
        """
        super().__init__(engine, retry_timeout)
        self.lease_seconds = lease_seconds
        self.grace_seconds = lease_seconds if grace_seconds is None else grace_seconds
        self._writes = engine.execution_options(writes=True)

    def renew(self, leases: Collection[Lease]) -> frozenset[Lease]:
        """Extend leases of any kind; return those that are lost.

        Not retried, since the caller renews periodically.
        """
        lost: set[Lease] = set(leases)
        by_table = sorted(leases, key=_kind)
        for _, group in groupby(by_table, key=_kind):
            of_table = list(group)
            with self._writing() as tx:
                lost -= of_table[0].table.renew(tx, of_table, self.lease_seconds)
        return frozenset(lost)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._writes.begin() as tx:
            yield tx

    def _state(
        self, tx: Connection, table: LeaseTable, row_id: int, gone: Gone, now: float | None = None
    ) -> State | None:
        """Return the state of a row, see `LeaseTable.state`."""
        return table.state(tx, row_id, gone, grace_seconds=self.grace_seconds, now=now)


def _kind(lease: Lease) -> str:
    return lease.table.kind
