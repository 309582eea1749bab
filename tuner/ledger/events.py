"""Who did what to a study, when and why: rows that are added and never changed.

An event is written in the transaction of what it records, so neither is there without the other. On
PostgreSQL its time and its login are the server's, which a worker's login cannot set. The user of
the operating system is what the process says of itself. The events of a deleted study are kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, text

from tuner.core.environment import Person
from tuner.core.redaction import redacted
from tuner.core.text import NAME_LIMIT, shortened
from tuner.ledger.decoding import checked, readable
from tuner.ledger.event_tables import events
from tuner.ledger.notifications import Notice, put
from tuner.ledger.reading import Reader
from tuner.ledger.records import is_count
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import database_time

(
    SUBMITTED, CHANGED, PAUSED, RESUMED, STOPPED, DELETED, ENQUEUED, RETRIED, EXTENDED, CONFIRMED,
    RETRAINED, ROLLED_BACK, APPROVED, REJECTED, TIMETABLE, NOTED, TAGGED, PROJECT,
) = (
    "submitted", "changed", "paused", "resumed", "stopped", "deleted", "enqueued", "retried",
    "extended", "confirmed", "retrained", "rolled back", "approved", "rejected", "timetable",
    "noted", "tagged", "project",
)  # fmt: skip
"""The actions; see `tuner.ledger.event_tables.ACTIONS`."""
REMARKS = (NOTED, TAGGED)
"""Actions that change nothing of a study."""
SHIPPED = "shipped"
"""The detail of a change that names shipped code by its SHA-256."""
MOST = 1000
"""Events of a study that are read, the newest ones."""


@dataclass(frozen=True, kw_only=True)
class Act:
    """What somebody asks for: by whom, and why if they say so."""

    by: Person
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """One row of `tuner_events`."""

    id: int
    happened_at: float
    db_role: str | None  # None on SQLite
    study: str
    action: str
    reason: str | None
    details: Mapping[str, Any]
    os_user: str
    host: str

    @property
    def person(self) -> str:
        """What the person is called, in lists and sums."""
        return called(self.os_user, self.db_role)

    @property
    def who(self) -> str:
        """The user, their machine and their database login."""
        login = "" if self.db_role is None else f" (database login {self.db_role})"
        return f"{self.os_user}@{self.host}{login}"


def called(os_user: str, db_role: str | None) -> str:
    """Return what a person is called: with the database login, unless it is called the same.

    People may share a user of the operating system, such as that of a container, or a login.
    """
    return os_user if db_role in (None, os_user) else f"{os_user} as {db_role}"


def record(tx: Connection, study: str, action: str, act: Act | None, **details: Any) -> None:
    """Record what somebody did; nothing of what a program did by itself (`act` is None)."""
    if act is None:
        return
    reason = redacted(act.reason.strip()) if act.reason else None
    values: dict[str, Any] = {
        "study": shortened(study, NAME_LIMIT),  # a row may have any name
        "action": action,
        "reason": reason or None,
        "details": details,
    }
    if tx.dialect.name == "sqlite":  # PostgreSQL's server sets its own
        values["happened_at"] = database_time()
    tx.execute(insert(events).values(**values, os_user=act.by.os_user, host=act.by.host))


@retry_on_disconnect
def add(
    ledger: Reader,
    study: str,
    action: str,
    act: Act,
    details: Mapping[str, Any],
    notices: Sequence[Notice] = (),
) -> None:
    """Record what somebody did that changes no row of the ledger, and notifications of it."""
    with ledger.engine.execution_options(writes=True).begin() as tx:
        record(tx, study, action, act, **details)
        put(tx, notices)


@retry_on_disconnect
def history(ledger: Reader, study: str) -> list[Event]:
    """Read what was done to a study of this name, oldest first."""
    query = select(events).where(events.c.study == study).order_by(events.c.id.desc()).limit(MOST)
    with ledger.engine.begin() as tx:
        return list(readable(_of, tx.execute(query)))[::-1]


def shipments(ledger: Reader, study: str) -> list[tuple[str, Event]]:
    """Read the digests of the code that was shipped for a study of this name, newest first."""
    found = [(one.details.get(SHIPPED), one) for one in reversed(history(ledger, study))]
    return [(str(digest), one) for digest, one in found if digest is not None]


@retry_on_disconnect
def latest(ledger: Reader, names: Collection[str]) -> dict[str, dict[str, Event]]:
    """Read the last event of each action, by the names of studies."""
    last = (
        select(func.max(events.c.id))
        .where(events.c.study.in_(names))
        .group_by(events.c.study, events.c.action)
    )
    found: dict[str, dict[str, Event]] = {name: {} for name in names}
    with ledger.engine.begin() as tx:
        query = select(events).where(events.c.id.in_(last)).order_by(events.c.id)
        for one in readable(_of, tx.execute(query)):
            found.setdefault(one.study, {})[one.action] = one
    return found


@retry_on_disconnect
def notes(ledger: Reader, study: str) -> list[Event]:
    """Read the notes on a study, oldest first, without those on a deleted one of its name."""
    c = events.c
    deleted = (
        select(func.coalesce(func.max(c.id), 0))
        .where(c.study == study, c.action == DELETED)
        .scalar_subquery()
    )
    query = select(events).where(c.study == study, c.action == NOTED, c.id > deleted)
    with ledger.engine.begin() as tx:
        found = tx.execute(query.order_by(c.id.desc()).limit(MOST))
        return list(readable(_of, found))[::-1]


def tags_in(done: Mapping[str, Event]) -> list[str]:
    """Return the tags of a study, of the last events of each action."""
    tagged, deleted = done.get(TAGGED), done.get(DELETED)
    if tagged is None or (deleted is not None and deleted.id > tagged.id):
        return []
    found = tagged.details.get("tags", [])
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


@retry_on_disconnect
def rolled_back(ledger: Reader, model: str) -> dict[int, Event]:
    """Read which versions of a model people have rolled back from; these are not promoted again.

    Rolling back to one of them makes it good again.
    """
    query = select(events).where(events.c.action == ROLLED_BACK).order_by(events.c.id)
    held: dict[int, Event] = {}
    with ledger.engine.begin() as tx:
        for one in readable(_of, tx.execute(query)):
            was, now = one.details.get("was", -1), one.details.get("now", -1)
            if one.details.get("model") != model or not (is_count(was) and is_count(now)):
                continue  # without a champion before, nothing is held
            held[int(was)] = one
            held.pop(int(now), None)
    return held


@retry_on_disconnect
def login(ledger: Reader) -> str | None:
    """Read the database login of this process; None on SQLite."""
    if ledger.engine.dialect.name == "sqlite":
        return None
    with ledger.engine.begin() as tx:
        return str(tx.scalar(text("SELECT session_user")))


def submitter(ledger: Reader, study: str) -> str | None:
    """Return who last submitted a study, as they are called; None if unknown."""
    found = latest(ledger, [study])[study].get(SUBMITTED)
    return None if found is None else found.person


def _of(row: Any) -> Event:
    """Return the record of a row. Raise `UnreadableError`."""
    return Event(**checked(f"event {row.id!r:.20} of study {row.study!r:.60}", events, row))
