"""Leases: exclusive, expiring claims on rows of the ledger, with fencing tokens.

Attempts at trials, retrainings, runs of timetables, publications of studies, probes and
notifications are leased, each in a row of its own table, by the same rules:
- a row has at most one holder, and each claim has a token of its own;
- every transaction of a holder begins with `LeaseTable.fence`, an UPDATE that changes the row only
  while it is held under the holder's token, so a stale holder writes nothing;
- a lease is lost when it has expired, or at once when the process of its holder is gone;
- expiry is measured by the database's clock. No lease expires within one lease of the start of the
  database's server, since no holder could renew it before.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    and_,
    select,
    true,
    tuple_,
    update,
)

from tuner.ledger.event_tables import notifications
from tuner.ledger.retraining_tables import retrainings, timetable_runs
from tuner.ledger.tables import (
    attempts,
    database_start,
    database_time,
    probes,
    published_studies,
)

LEASE_SECONDS = 30.0
"""How long a lease lasts after its claim or its last renewal, by default."""

Gone = Callable[[str], bool]
"""Returns whether the process of a holder is known to be gone."""


class State(enum.Enum):
    """Whether a row is leased: not at all, by a holder, or by a holder that has lost it."""

    FREE = enum.auto()
    HELD = enum.auto()
    LOST = enum.auto()


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A claim on one row. The token is refused once another claim has been made on the row."""

    table: LeaseTable = field(repr=False)
    row_id: int
    token: int | str


L = TypeVar("L", bound=Lease)


@dataclass(frozen=True, kw_only=True, eq=False)
class LeaseTable:
    """The columns of a table by which its rows are leased."""

    kind: str  # what a row is, for people
    id: Column[Any]
    token: Column[Any]
    holder: Column[Any]  # identity of the process, see `tuner.core.environment.identity`
    expires_at: Column[Any]
    live: ColumnElement[bool]  # whether the row is leased
    scope: ColumnElement[bool] = field(default_factory=true)  # the rows that this is about
    when_taken: Mapping[str, Any] = field(default_factory=dict)  # columns that make a row live
    when_released: Mapping[str, Any] = field(default_factory=dict)  # columns that end that

    def state(
        self,
        tx: Connection,
        row_id: int,
        gone: Gone,
        *,
        grace_seconds: float,
        now: float | None = None,
    ) -> State | None:
        """Return the state of a row, and lock the row; None if there is no such row."""
        row = tx.execute(
            select(
                self.holder.label("holder"),
                self.live.label("live"),
                self.expired(grace_seconds, now).label("expired"),
            )
            .where(self._row(row_id))
            .with_for_update()
        ).first()
        if row is None:
            return None
        if not row.live:
            return State.FREE
        return State.LOST if row.expired or gone(row.holder) else State.HELD

    def expired(self, grace_seconds: float, now: float | None = None) -> ColumnElement[bool]:
        """Return the condition that a lease has expired; `now` replaces the database's clock."""
        at = database_time() if now is None else now
        return and_(self.expires_at < at, database_start() + grace_seconds < database_time())

    def take(
        self,
        tx: Connection,
        row_id: int,
        holder: str,
        seconds: float,
        *,
        token: str | None = None,
        now: float | None = None,
        **values: Any,
    ) -> Lease:
        """Lease a row that is locked and not held, under `token` or else under the next number."""
        at = database_time() if now is None else now
        changes = {
            self.holder.name: holder,
            self.token.name: self.token + 1 if token is None else token,
            self.expires_at.name: at + seconds,
            **self.when_taken,
            **values,
        }
        taken = update(self.id.table).where(self._row(row_id)).values(changes)
        row = tx.execute(taken.returning(self.token.label("token"))).one()
        return Lease(table=self, row_id=row_id, token=row.token)

    def fence(self, tx: Connection, leases: Collection[L], values: Mapping[str, Any]) -> set[L]:
        """Change the rows that are held under these leases; return those leases.

        A transaction begins with this, so that no other claim comes between check and commit.
        """
        by_token = {(lease.row_id, lease.token): lease for lease in leases}
        held = tx.execute(
            update(self.id.table)
            .where(
                self.scope,
                self.id.in_(sorted({lease.row_id for lease in leases})),
                tuple_(self.id, self.token).in_(list(by_token)),
                self.live,
            )
            .values(**values)
            .returning(self.id, self.token)
        )
        return {by_token[row_id, token] for row_id, token in held}

    def renew(self, tx: Connection, leases: Collection[L], seconds: float) -> set[L]:
        """Extend leases; return those that are still held."""
        return self.fence(tx, leases, renewed(seconds))

    def release(self, tx: Connection, lease: Lease) -> None:
        """End a lease, so that the row can be taken at once. A stale lease changes nothing."""
        self.fence(tx, [lease], self.when_released)

    def row(self, tx: Connection, lease: Lease) -> Row[Any] | None:
        """Read a leased row, also after the lease has ended; None if another claim followed."""
        same = and_(self._row(lease.row_id), self.token == lease.token)
        return tx.execute(select(self.id.table).where(same)).first()

    def _row(self, row_id: int) -> ColumnElement[bool]:
        return and_(self.id == row_id, self.scope)


def renewed(seconds: float) -> dict[str, Any]:
    """Return the columns of a lease that is renewed."""
    return {"expires_at": database_time() + seconds}


ATTEMPTS = LeaseTable(
    kind="attempt",
    id=attempts.c.id,
    token=attempts.c.number,
    holder=attempts.c.worker,
    expires_at=attempts.c.expires_at,
    live=attempts.c.live,
)
"""A row is one claim: a lost attempt ends, and the next attempt at its trial is another row."""

RETRAININGS = LeaseTable(
    kind="retraining",
    id=retrainings.c.id,
    token=retrainings.c.token,
    holder=retrainings.c.worker,
    expires_at=retrainings.c.expires_at,
    live=retrainings.c.live,
    when_taken={"live": True},
    when_released={"live": False},
)

TIMETABLE_RUNS = LeaseTable(
    kind="timetable run",
    id=timetable_runs.c.id,
    token=timetable_runs.c.token,
    holder=timetable_runs.c.worker,
    expires_at=timetable_runs.c.expires_at,
    live=timetable_runs.c.state == "running",
    when_taken={"state": "running"},
    when_released={"state": "waiting"},
)

PROBES = LeaseTable(
    kind="probe",
    id=probes.c.study_id,
    token=probes.c.number,
    holder=probes.c.worker,
    expires_at=probes.c.expires_at,
    live=and_(probes.c.result.is_(None), probes.c.expires_at > 0.0),
    when_released={"expires_at": 0.0},
)


NOTIFICATIONS = LeaseTable(
    kind="notification",
    id=notifications.c.id,
    token=notifications.c.token,
    holder=notifications.c.worker,
    expires_at=notifications.c.expires_at,
    live=notifications.c.state == "sending",
    when_taken={"state": "sending"},
    when_released={"state": "waiting"},
)


def _publications(target: str) -> LeaseTable:
    of_target = published_studies.c.target == target
    return LeaseTable(
        kind=f"publication to {target}",
        id=published_studies.c.study_id,
        token=published_studies.c.publisher,  # all that one process publishes has one token
        holder=published_studies.c.publisher,
        expires_at=published_studies.c.expires_at,
        live=and_(published_studies.c.publisher.is_not(None), published_studies.c.expires_at > 0.0),
        scope=of_target,
        when_released={"expires_at": 0.0},
    )


PUBLICATIONS = {target: _publications(target) for target in ("optuna", "mlflow")}
"""By target."""
