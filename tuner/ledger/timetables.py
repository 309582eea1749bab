"""Timetables in the ledger: each tick becomes one run, which one scheduler at a time holds.

Invariants, however many schedulers run and whichever of them dies:
- a tick is written once: (timetable, instant) is unique, and ticks are written in the transaction
  that moves the timetable past them;
- of a timetable at most one run is running;
- the outcome of a run is committed under its token, so a stale holder writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, delete, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from tuner.core import cron
from tuner.core.errors import LeaseLost, NotFoundError, UnreadableError, UsageError
from tuner.core.text import NAME_LIMIT
from tuner.ledger import events
from tuner.ledger.decoding import checked, readable
from tuner.ledger.events import Act
from tuner.ledger.lease_writer import LeaseWriter
from tuner.ledger.leases import TIMETABLE_RUNS, Gone, Lease, State
from tuner.ledger.reading import Reader
from tuner.ledger.retraining_tables import IS_OPEN, timetable_runs, timetables
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import database_time

WAITING, RUNNING, ENDED, SKIPPED, MISSED = "waiting", "running", "ended", "skipped", "missed"
"""The states of a run; the last three are final."""


@dataclass(frozen=True, kw_only=True)
class TimetableRecord:
    """One row of `tuner_timetables`."""

    id: int
    name: str
    study: str
    when: cron.Timetable
    enabled: bool
    seen_at: float
    next_at: float
    created_at: float


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One row of `tuner_timetable_runs`, with its timetable's name, study and zone."""

    id: int
    timetable: str
    study: str
    zone: str
    fire_at: float
    state: str
    outcome: str | None
    reason: str | None
    worker: str | None
    token: int  # counts claims
    expires_at: float
    claimed_at: float | None
    ended_at: float | None

    @property
    def lease(self) -> Lease:
        """The claim under which it was read."""
        return Lease(table=TIMETABLE_RUNS, row_id=self.id, token=self.token)


class Timetables(LeaseWriter):
    """The timetables of one database. Thread-safe, as `Reader` is.

    An argument `now` replaces the database's clock.
    """

    def __init__(self, ledger: LeaseWriter) -> None:
        """Lease for as long as `ledger` does."""
        super().__init__(
            ledger.engine, ledger.lease_seconds, ledger.retry_timeout, ledger.grace_seconds
        )

    # --- timetables

    @retry_on_disconnect
    def add(
        self,
        name: str,
        study: str,
        when: cron.Timetable,
        *,
        enabled: bool = True,
        now: float | None = None,
        act: Act | None = None,
    ) -> TimetableRecord:
        """Make a timetable, or change the one of that name; it begins now, the old one ends now.

        Raise `UsageError` when its expression or time zone is not valid.
        """
        with self._writing() as tx:
            at = _now(tx, now)
            values = {
                "study": study,
                "expression": when.expression,
                "zone": when.zone,
                "grace": when.grace,
                "catch_up": when.catch_up,
                "overlap": when.overlap,
                "enabled": enabled,
                "seen_at": at,
                "next_at": cron.checked(when, at).next(at),
            }
            here = timetables.c.name == name
            old = tx.execute(select(timetables).where(here).with_for_update()).first()
            for known in readable(_timetable, [old] if old is not None else []):
                if known.enabled and known.next_at <= at:
                    _write_ticks(tx, known, at)  # ticks that were due before the change
            changed = tx.execute(update(timetables).where(here).values(**values))
            if not changed.rowcount:
                tx.execute(insert(timetables).values(name=name, created_at=at, **values))
            done = {"name": name, "cron": when.expression, "zone": when.zone, "enabled": enabled}
            events.record(tx, study, events.TIMETABLE, act, **done)
            return _timetable(tx.execute(select(timetables).where(here)).one())

    @retry_on_disconnect
    def all(self) -> list[TimetableRecord]:
        """Read all timetables, oldest first."""
        with self._reading() as tx:
            found = tx.execute(select(timetables).order_by(timetables.c.id))
            return list(readable(_timetable, found))

    @retry_on_disconnect
    def remove(self, name: str, act: Act | None = None) -> None:
        """Remove a timetable and its history. Raise `NotFoundError`."""
        with self._writing() as tx:
            here = timetables.c.name == name
            row = tx.execute(
                select(timetables.c.id, timetables.c.study).where(here).with_for_update()
            ).first()
            if row is None:
                raise _no_timetable(tx, name)
            found = row.id
            tx.execute(delete(timetable_runs).where(timetable_runs.c.timetable_id == found))
            tx.execute(delete(timetables).where(timetables.c.id == found))
            done = {"name": name, "removed": True}
            events.record(tx, str(row.study)[:NAME_LIMIT], events.TIMETABLE, act, **done)

    @retry_on_disconnect
    def history(self, name: str | None = None, limit: int | None = None) -> list[RunRecord]:
        """Read the runs of a timetable, or of all, newest first. Raise `NotFoundError`."""
        query = _runs().order_by(timetable_runs.c.fire_at.desc(), timetable_runs.c.id).limit(limit)
        with self._reading() as tx:
            if name is not None:
                query = query.where(timetables.c.name == name)
                if tx.scalar(select(timetables.c.id).where(timetables.c.name == name)) is None:
                    raise _no_timetable(tx, name)
            return list(readable(_run, tx.execute(query)))

    # --- ticks and runs

    @retry_on_disconnect
    def tick(self, now: float | None = None) -> int:
        """Insert a run for each tick that is due; return the number of runs to do."""
        with self._writing() as tx:
            at = _now(tx, now)
            found = tx.execute(
                select(timetables)
                .where(timetables.c.enabled, timetables.c.next_at <= at)
                .order_by(timetables.c.id)
                .with_for_update(skip_locked=True)  # other schedulers write those
            ).all()
            return sum(_write_ticks(tx, one, at) for one in readable(_timetable, found))

    @retry_on_disconnect
    def claim(
        self,
        worker: str,
        gone: Gone = lambda _: False,
        now: float | None = None,
    ) -> RunRecord | None:
        """Claim a run whose holder has lost it, or else the oldest waiting one; None if none.

        A run waits while another one of its timetable is running.
        """
        try:
            with self._writing() as tx:
                return self._claim(tx, worker, gone, _now(tx, now))
        except IntegrityError:  # another scheduler has just claimed one of the same timetable
            return None

    def _claim(self, tx: Connection, worker: str, gone: Gone, at: float) -> RunRecord | None:
        running = timetable_runs.c.state == RUNNING
        query = _runs().where(IS_OPEN, running).order_by(timetable_runs.c.fire_at)
        for row, _ in readable(_with_row, tx.execute(query).all()):
            may_be_lost = row.expires_at < at or gone(row.worker)
            if may_be_lost and self._state(tx, TIMETABLE_RUNS, row.id, gone, at) is State.LOST:
                return self._take(tx, row.id, worker, at)
        other = timetable_runs.alias()
        busy = exists().where(
            other.c.timetable_id == timetable_runs.c.timetable_id, other.c.state == RUNNING
        )
        waiting = (IS_OPEN, timetable_runs.c.state == WAITING, ~busy)
        oldest = _runs().where(*waiting).order_by(timetable_runs.c.fire_at, timetable_runs.c.id)
        for row, _ in readable(_with_row, tx.execute(oldest).all()):
            still = select(timetable_runs.c.id).where(timetable_runs.c.id == row.id, *waiting)
            if tx.scalar(still.with_for_update(skip_locked=True)) is not None:
                return self._take(tx, row.id, worker, at)
        return None

    def _take(self, tx: Connection, row_id: int, worker: str, at: float) -> RunRecord:
        TIMETABLE_RUNS.take(tx, row_id, worker, self.lease_seconds, now=at, claimed_at=at)
        return _run(tx.execute(_runs().where(timetable_runs.c.id == row_id)).one())

    @retry_on_disconnect
    def end(self, held: RunRecord, outcome: str, reason: str) -> None:
        """Commit the outcome of a run. Raise `LeaseLost` when another scheduler has claimed it."""
        ended = {"state": ENDED, "outcome": outcome, "reason": reason, "ended_at": database_time()}
        with self._writing() as tx:
            if TIMETABLE_RUNS.fence(tx, [held.lease], ended):
                return
            row = TIMETABLE_RUNS.row(tx, held.lease)
            if row is None or row.state != ENDED:  # else a call whose connection was lost
                raise LeaseLost(f"another scheduler has the run of {held.timetable!r}")

    @retry_on_disconnect
    def release(self, held: RunRecord) -> None:
        """Return a run to waiting."""
        with self._writing() as tx:
            TIMETABLE_RUNS.release(tx, held.lease)


def _write_ticks(tx: Connection, timetable: TimetableRecord, at: float) -> int:
    due = cron.due(timetable.when, timetable.seen_at, at)
    moved = update(timetables).where(timetables.c.id == timetable.id)
    tx.execute(moved.values(seen_at=due.handled_until, next_at=due.next))
    here = and_(timetable_runs.c.timetable_id == timetable.id, IS_OPEN)
    open_at = tx.scalar(select(timetable_runs.c.fire_at).where(here).limit(1))
    new = []
    if due.missed is not None:
        since = cron.run_key(timetable.seen_at)
        reason = f"no scheduler was running from {since} on to start it in time"
        new.append({"fire_at": due.missed, "state": MISSED, "reason": reason, "ended_at": at})
    for index, fire_at in enumerate(due.run):
        if timetable.when.overlap == cron.SKIP and open_at is not None and index >= due.late:
            reason = f"the run of {cron.run_key(open_at)} had not ended"
            new.append({"fire_at": fire_at, "state": SKIPPED, "reason": reason, "ended_at": at})
        else:
            new.append({"fire_at": fire_at, "state": WAITING, "reason": None, "ended_at": None})
            open_at = fire_at
    for one in new:
        fixed = {"timetable_id": timetable.id, "token": 0, "expires_at": 0.0}
        tx.execute(insert(timetable_runs).values(**fixed, **one))
    return sum(one["state"] == WAITING for one in new)


def _runs() -> Any:
    others = [c for c in timetable_runs.c if c.name != "timetable_id"]
    named = timetables.c.name.label("timetable")
    return select(*others, named, timetables.c.study, timetables.c.zone).join(timetables)


def _now(tx: Connection, now: float | None) -> float:
    found = tx.scalar(select(database_time())) if now is None else now
    assert found is not None
    return found


def _run(row: Any) -> RunRecord:
    """Return the record of a run of a timetable. Raise `UnreadableError`."""
    values = checked(f"a run of timetable {row.timetable!r:.60}", timetable_runs, row)
    if not all(isinstance(one, str) for one in (row.timetable, row.study, row.zone)):
        raise UnreadableError(f"the timetable of run {row.id} cannot be read")
    try:
        cron.zone_of(row.zone)
    except (KeyError, ValueError, OSError) as error:
        raise UnreadableError(f"the time zone of run {row.id} cannot be read") from error
    return RunRecord(**values)


def _with_row(row: Any) -> tuple[Any, RunRecord]:
    """Return a row and its record. Raise `UnreadableError`."""
    return row, _run(row)


def unreadable(ledger: Reader) -> list[str]:
    """Read why timetables and their runs cannot be read."""
    found = []
    with ledger.engine.begin() as tx:
        for read, query in ((_timetable, select(timetables)), (_run, _runs())):
            for row in tx.execute(query):
                try:
                    read(row)
                except UnreadableError as error:
                    found.append(str(error))
    return found


def _timetable(row: Any) -> TimetableRecord:
    """Return the record of a timetable. Raise `UnreadableError`."""
    title = f"timetable {row.name!r:.60}"
    checked(title, timetables, row)
    try:
        return _record(row)
    except UsageError as error:
        raise UnreadableError(f"{title} cannot be read: {error}") from error


def _record(row: Any) -> TimetableRecord:
    return TimetableRecord(
        id=row.id,
        name=row.name,
        study=row.study,
        when=cron.checked(
            cron.Timetable(
                expression=row.expression,
                zone=row.zone,
                grace=row.grace,
                catch_up=row.catch_up,
                overlap=row.overlap,
            ),
            row.seen_at,
        ),
        enabled=row.enabled,
        seen_at=row.seen_at,
        next_at=row.next_at,
        created_at=row.created_at,
    )


def _no_timetable(tx: Connection, name: str) -> NotFoundError:
    names = tx.scalars(select(timetables.c.name).order_by(timetables.c.id))
    known = ", ".join(map(str, names)) or "none"
    return NotFoundError(f"there is no timetable {name!r}; timetables here: {known}")
