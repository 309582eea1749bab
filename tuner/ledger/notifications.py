"""Notifications in the ledger: an outbox, written with what it tells of and sent afterwards.

Invariants, whichever process dies:
- a notification is committed in the transaction of its event, so neither is there without the
  other; its idempotency key is unique, so that a repeated call adds none;
- one process at a time sends it, under a lease;
- it is sent until a receiver has accepted it, or for `LONGEST_SECONDS`. A process that dies between
  the answer and its commit leads to a second message with the same idempotency key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, or_, select, update

from tuner.core.errors import LeaseLost
from tuner.core.text import NAME_LIMIT, shortened
from tuner.ledger.database.upserts import insert_new
from tuner.ledger.decoding import checked, readable
from tuner.ledger.event_tables import IS_OPEN, notifications
from tuner.ledger.lease_writer import LeaseWriter
from tuner.ledger.leases import NOTIFICATIONS, Gone, Lease, State
from tuner.ledger.reading import Reader
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import database_time

WAITING, SENDING, SENT, ABANDONED = "waiting", "sending", "sent", "abandoned"
SECONDS = 120.0
"""How long a sender has a notification; a request takes at most a few times ten seconds."""
FIRST_SECONDS, MOST_SECONDS = 15.0, 3600.0
"""Delay before a second try, doubled with each one, and its limit."""
LONGEST_SECONDS = 3 * 86_400.0
"""How long a notification is tried."""
STORED = "stored:"
"""Prefix of the target of an address that an earlier version stored in the study: its digest."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A message to one receiver."""

    event: str  # names what it tells of, among all events
    study: str
    channel: str
    target: str  # the variable with the address
    title: str
    content: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Its idempotency key."""
        return hashlib.sha256(f"{self.event}\0{self.channel}\0{self.target}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Notification:
    """One row of `tuner_notifications`."""

    id: int
    key: str
    study: str
    channel: str
    target: str
    title: str
    content: Mapping[str, Any]
    state: str
    due_at: float
    worker: str | None
    token: int
    expires_at: float
    error: str | None
    created_at: float
    ended_at: float | None

    @property
    def lease(self) -> Lease:
        """The claim under which it was read."""
        return Lease(table=NOTIFICATIONS, row_id=self.id, token=self.token)


def put(tx: Connection, notices: Sequence[Notice]) -> None:
    """Add notifications; those whose keys are known are ignored."""
    new = [
        {
            "key": one.key,
            "study": shortened(one.study, NAME_LIMIT),
            "channel": one.channel,
            "target": one.target,
            "title": shortened(one.title, 1000),
            "content": dict(one.content),
        }
        for one in notices
    ]
    if new:
        now = tx.scalar(select(database_time()))
        fixed = {"state": WAITING, "token": 0, "expires_at": 0.0, "due_at": now, "created_at": now}
        insert_new(tx, notifications, [one | fixed for one in new])


class Notifications(LeaseWriter):
    """The notifications in one database. Thread-safe, as `Reader` is.

    An argument `now` replaces the database's clock.
    """

    def __init__(self, ledger: Reader) -> None:
        """Lease for `SECONDS`, or for as long as `ledger` does if that is longer."""
        leases = ledger if isinstance(ledger, LeaseWriter) else LeaseWriter(ledger.engine)
        seconds = max(SECONDS, leases.lease_seconds)
        super().__init__(ledger.engine, seconds, ledger.retry_timeout, leases.grace_seconds)

    @retry_on_disconnect
    def add(self, notices: Sequence[Notice]) -> None:
        """Add notifications; those whose keys are known are ignored."""
        with self._writing() as tx:
            put(tx, notices)

    @retry_on_disconnect
    def claim(
        self,
        targets: Collection[str],
        worker: str,
        gone: Gone = lambda _: False,
        now: float | None = None,
    ) -> Notification | None:
        """Claim the first notification that is due to one of these targets, or return None.

        A notification whose target is not among them is left to a process that knows its address.
        """
        c = notifications.c
        here = or_(c.target.in_(targets), c.target.like(f"{STORED}%"))
        at = database_time() if now is None else now
        query = select(c.id).where(IS_OPEN, here, c.due_at <= at).order_by(c.due_at, c.id)
        with self._reading() as tx:
            found = tx.scalars(query.limit(20)).all()
        for row_id in found:
            with self._writing() as tx:
                state = self._state(tx, NOTIFICATIONS, row_id, gone, now)
                still = select(notifications).where(c.id == row_id, IS_OPEN, c.due_at <= at)
                row = tx.execute(still).first()
                if row is None or state not in (State.FREE, State.LOST):
                    continue
                if not list(readable(_of, [row])):
                    continue
                lease = NOTIFICATIONS.take(tx, row_id, worker, self.lease_seconds, now=now)
                return _of(NOTIFICATIONS.row(tx, lease))
        return None

    @retry_on_disconnect
    def end(self, held: Notification) -> None:
        """Record that it was sent. Raise `LeaseLost` if another process has claimed it."""
        self._change(held, state=SENT, error=None, ended_at=database_time())

    @retry_on_disconnect
    def postpone(self, held: Notification, error: str, now: float | None = None) -> None:
        """Try it again later, or abandon it if it has waited too long. Raise `LeaseLost`."""
        at = self.now() if now is None else now
        if at - held.created_at >= LONGEST_SECONDS:
            self._change(held, state=ABANDONED, error=error, ended_at=database_time())
            return
        wait = min(FIRST_SECONDS * 2.0 ** min(held.token - 1, 30), MOST_SECONDS)
        self._change(held, state=WAITING, error=error, due_at=at + wait)

    @retry_on_disconnect
    def release(self, held: Notification) -> None:
        """Return it to waiting."""
        with self._writing() as tx:
            NOTIFICATIONS.release(tx, held.lease)

    @retry_on_disconnect
    def of_study(self, study: str) -> list[Notification]:
        """Read the notifications of a study, oldest first."""
        query = select(notifications).where(notifications.c.study == study)
        with self._reading() as tx:
            return list(readable(_of, tx.execute(query.order_by(notifications.c.id))))

    def _change(self, held: Notification, **values: Any) -> None:
        with self._writing() as tx:
            if NOTIFICATIONS.fence(tx, [held.lease], values):
                return
            row = NOTIFICATIONS.row(tx, held.lease)
        if row is None or row.state != values["state"]:  # else a call whose connection was lost
            raise LeaseLost(f"another process has the notification {held.id}")


@retry_on_disconnect
def strip(ledger: Reader, older_than: float) -> int:
    """Delete the content of notifications that ended `older_than` seconds ago; return how many.

    Their keys are kept: with them, nothing is notified twice.
    """
    old = (
        notifications.c.state.in_((SENT, ABANDONED))
        & (notifications.c.ended_at < database_time() - older_than)
        & (notifications.c.title != "")
    )
    empty: dict[str, Any] = {"title": "", "content": {}, "error": None}
    with ledger.engine.execution_options(writes=True).begin() as tx:
        return tx.execute(update(notifications).where(old).values(empty)).rowcount


def forget(tx: Connection, study: str) -> None:
    """Delete the ended notifications of a study that is being deleted; the others are sent."""
    mine = notifications.c.study == study
    tx.execute(delete(notifications).where(mine, notifications.c.state.in_((SENT, ABANDONED))))


def _of(row: Any) -> Notification:
    """Return the record of a row. Raise `UnreadableError`."""
    return Notification(**checked(f"notification {row.id!r:.20}", notifications, row))
