"""Counts over the whole ledger, for metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    Select,
    and_,
    case,
    exists,
    func,
    literal_column,
    or_,
    select,
    true,
)

from tuner.core.outcome import KINDS, RUNNING
from tuner.ledger.decoding import is_number
from tuner.ledger.event_tables import notifications
from tuner.ledger.reading import Reader
from tuner.ledger.records import ENDED, OPEN, PAUSED, STOPPED
from tuner.ledger.retrainings import overdue
from tuner.ledger.tables import (
    IS_LIVE,
    IS_RUNNING,
    attempts,
    database_time,
    has_live_attempt,
    last_end_of_trials,
    published_studies,
    published_trials,
    studies,
    trials,
)

TARGETS = ("optuna", "mlflow")
UNSENT = ("waiting", "abandoned")
LATE_SECONDS, DAY = 900.0, 86_400.0
"""When a notification is late that nobody tries, or a study that nobody trains; how long an
abandoned notification is counted."""
LATE_IDS = 1000
"""A row may appear up to so many ids after a later one: ids are taken before a commit."""
WAITING = "waiting"
STUDIES, TRIALS = (OPEN, PAUSED, STOPPED, ENDED), (*KINDS, RUNNING, WAITING)
"""The states of studies and of trials."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Counts over all studies, as of one moment."""

    studies: Mapping[str, int]  # by state, as `tuner status` shows it
    trials: Mapping[str, int]  # likewise, without imported ones
    unattended: int  # open studies with trials left that no worker has trained for a while
    leases: int  # live attempts
    expired: int  # live attempts whose lease has expired
    overdue: int  # studies whose retraining is overdue
    unsent: Mapping[str, int]  # notifications that are late, or were abandoned within a day
    unpublished: Mapping[str, int]  # ended trials whose outcome is not published, by target
    unpublished_seconds: Mapping[str, float]  # since the first of these has ended; 0 without any


def totals(engine: Engine) -> Totals:
    """Count all. Raise `UnavailableError` while the database is unreachable."""
    return TotalsReader(engine).read()


class TotalsReader:
    """Counts all again and again; what has not changed since the last time is not read again."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # by the study's id: its revision, and its ended trials by state
        self._ended: dict[int, tuple[int, Mapping[str, int]]] = {}
        # by target: the trials of lower ids are published; the revisions of published studies
        self._first: dict[str, int] = {}
        self._published: dict[tuple[str, int], int] = {}

    def read(self) -> Totals:
        """Count all. Raise `UnavailableError` while the database is unreachable."""
        late_retrainings = len(overdue(Reader(self._engine)))
        with self._engine.begin() as tx:
            return self._totals(tx, late_retrainings)

    def _trials(self, tx: Connection) -> dict[str, int]:
        """Count the trials by state; those of a study that have ended once it has changed."""
        revisions = {
            row.id: row.revision for row in tx.execute(select(studies.c.id, studies.c.revision))
        }
        kept = {key: known for key, known in self._ended.items() if known[0] == revisions.get(key)}
        changed = [key for key in revisions if key not in kept]
        of_them = true() if not kept else trials.c.study_id.in_(changed)
        number = func.count().label("number")
        ended = (
            select(trials.c.study_id, trials.c.state, number)
            .where(~trials.c.imported, trials.c.state != RUNNING, of_them)
            .group_by(trials.c.study_id, trials.c.state)
        )
        counted: dict[int, dict[str, int]] = {key: {} for key in changed}
        for row in tx.execute(ended) if changed else ():
            counted[row.study_id][row.state] = row.number
        self._ended = kept | {key: (revisions[key], found) for key, found in counted.items()}
        total: Counter[str] = Counter(dict.fromkeys(TRIALS, 0))
        for _, found in self._ended.values():
            total.update(found)
        running = select(_RUNNING_STATE, number).select_from(trials).where(IS_RUNNING)
        running = running.group_by(_RUNNING_STATE)
        total.update({row.state: row.number for row in tx.execute(running)})
        return dict(total)

    def _unpublished(self, tx: Connection) -> dict[str, Row[*tuple[Any, ...]]]:
        """Return what is not published to each target, see `_open`."""
        published = {
            (row.target, row.study_id): row.revision for row in tx.execute(_PUBLISHED_REVISIONS)
        }
        found = {}
        for target in TARGETS:
            again = any(  # published again from its first trial
                published.get(key, 0) < revision
                for key, revision in self._published.items()
                if key[0] == target and key in published
            )
            first = 0 if again else self._first.get(target, 0)
            row = tx.execute(_open(target, first)).one()
            last = tx.scalar(_LAST_TRIAL) if row.first is None else row.first
            self._first[target] = max(0, (last or 0) - LATE_IDS)
            found[target] = row
        self._published = published
        return found

    def _totals(self, tx: Connection, late_retrainings: int) -> Totals:
        late_trials = self._unpublished(tx)
        unsent = {row.state: row.number for row in tx.execute(_UNSENT)}
        return Totals(
            # those that are 0 too, or nobody would see the first one appear
            studies=dict.fromkeys(STUDIES, 0) | {a.state: a.number for a in tx.execute(_BY_STUDY)},
            trials=self._trials(tx),
            unattended=tx.scalar(_unattended()) or 0,
            leases=tx.scalar(_LEASES) or 0,
            expired=tx.scalar(_LEASES.where(attempts.c.expires_at < database_time())) or 0,
            overdue=late_retrainings,
            unsent={state: unsent.get(state, 0) for state in UNSENT},
            unpublished={target: one.number for target, one in late_trials.items()},
            unpublished_seconds={target: _age(one.age) for target, one in late_trials.items()},
        )


_BUSY = exists(trials.c.id).where(trials.c.study_id == studies.c.id, IS_RUNNING)
"""The condition that a study has a trial that has not ended."""
_SPENT = and_(studies.c.state == OPEN, studies.c.reserved >= studies.c.limit, ~_BUSY)
_STUDY_STATE = case((_SPENT, literal_column(f"'{ENDED}'")), else_=studies.c.state).label("state")
_BY_STUDY = select(_STUDY_STATE, func.count().label("number")).group_by(_STUDY_STATE)
_RUNNING_STATE = case(
    (has_live_attempt(trials.c.id), literal_column(f"'{RUNNING}'")),
    else_=literal_column(f"'{WAITING}'"),
).label("state")
_LEASES = select(func.count()).select_from(attempts).where(IS_LIVE)
_SENT = notifications.c
_FAILED = or_(
    and_(
        _SENT.state == "waiting",
        or_(_SENT.error.is_not(None), _SENT.due_at < database_time() - LATE_SECONDS),
    ),
    and_(_SENT.state == "abandoned", _SENT.ended_at > database_time() - DAY),
)
_UNSENT = select(_SENT.state, func.count().label("number")).where(_FAILED).group_by(_SENT.state)
_PUBLISHED_REVISIONS = select(
    published_studies.c.target, published_studies.c.study_id, published_studies.c.revision
)
_LAST_TRIAL = select(func.max(trials.c.id))


def _unattended() -> Select[int]:
    """Count the open studies with trials left that nobody has trained for `LATE_SECONDS`."""
    since = database_time() - LATE_SECONDS
    held = (
        exists(attempts.c.id)
        .where(attempts.c.trial_id == trials.c.id, trials.c.study_id == studies.c.id, IS_RUNNING)
        .where(or_(IS_LIVE, attempts.c.ended_at > since))
    )
    recently = or_(held, func.coalesce(last_end_of_trials(), 0.0) > since)
    asked = studies.c.spec.like('%"ask_and_tell":true%')  # by a program, when it pleases
    return (
        select(func.count())
        .select_from(studies)
        .where(studies.c.state == OPEN, or_(studies.c.reserved < studies.c.limit, _BUSY))
        .where(studies.c.created_at < since, ~recently, ~asked)
    )


def _age(age: Any) -> float:
    """Return an age that a clock may have set back; 0 of what is none."""
    return max(0.0, age) if is_number(age) else 0.0


def _open(target: str, first: int) -> Select[*tuple[Any, ...]]:
    """Select the ended trials that are not published: how many, and since when the first has ended.

    With the lowest id of a trial that is not published or has not ended. Trials with ids below
    `first` are left out.
    """
    there = and_(
        published_trials.c.trial_id == trials.c.id,
        published_trials.c.target == target,
        published_trials.c.final,
    )
    has_ended = trials.c.state != RUNNING
    return (
        select(
            func.count().filter(has_ended).label("number"),
            (database_time() - func.min(trials.c.ended_at).filter(has_ended)).label("age"),
            func.min(trials.c.id).label("first"),
        )
        .select_from(trials.outerjoin(published_trials, there))
        .where(
            trials.c.id >= first,
            ~trials.c.imported,  # MLflow never gets these
            published_trials.c.trial_id.is_(None),
        )
    )
