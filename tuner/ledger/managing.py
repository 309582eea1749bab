"""Managing a study: pause, resume, stop, the circuit breaker, and deleting it from the ledger.

Each is one idempotent transaction under the study's lock, so it holds for all workers at once. The
reason why a study is not open is kept among its attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, select, update

from tuner.core.errors import NotFoundError
from tuner.core.failures import cause
from tuner.core.outcome import CANCELLED, FAILED, RUNNING, Outcome
from tuner.ledger import events, notifications, retrainings, rows
from tuner.ledger.decoding import study_of
from tuner.ledger.events import Act
from tuner.ledger.reading import Reader
from tuner.ledger.records import (
    COUNTS_FROM,
    ENDED,
    OPEN,
    PAUSED,
    REASON,
    STOPPED,
    CheckpointRecord,
    StudyIdentity,
    StudyRecord,
)
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import (
    IS_LIVE,
    IS_RUNNING,
    attempts,
    has_live_attempt,
    metadata,
    studies,
    trials,
)

BY_ITSELF = "Stopped by itself"
"""How the reason begins of a study whose trials all failed."""
BEING_DELETED = "It is being deleted; `tuner delete` finishes that."
"""The reason of a study that is stopped to be deleted; it must not be resumed."""


@retry_on_disconnect
def pause(ledger: Reader, study: StudyRecord, act: Act | None = None) -> StudyRecord:
    """Pause an open study: no trial can be claimed, running trials continue."""
    with locked(ledger, study) as (tx, row):
        if row.state == OPEN:
            _become(tx, row, PAUSED, "Paused; running trials go on to their end.")
            events.record(tx, study.name, events.PAUSED, act)
    return ledger.study(study.name)


@retry_on_disconnect
def resume(ledger: Reader, study: StudyRecord, act: Act | None = None) -> StudyRecord:
    """Reopen a study that is not open; cancelled trials stay cancelled.

    The circuit breaker counts only later trials.
    """
    with locked(ledger, study) as (tx, row):
        if row.state != OPEN:
            _become(tx, row, OPEN, None, counts_from=row.next_number)
            events.record(tx, study.name, events.RESUMED, act)
    return ledger.study(study.name)


def stop(ledger: Reader, study: StudyRecord, reason: str, act: Act | None = None) -> StudyRecord:
    """Cancel the running and the waiting trials, and let no trial be claimed.

    The next commit of a worker that trains one is refused. A stopped study keeps its first reason.
    """
    cancel(ledger, study, reason, act)
    return ledger.study(study.name)


@retry_on_disconnect
def cancel(ledger: Reader, study: StudyIdentity, reason: str, act: Act | None = None) -> None:
    """Stop a study as `stop` does, also one that cannot be read."""
    with locked(ledger, study) as (tx, row):
        if row.state != STOPPED:
            events.record(tx, study.name, events.STOPPED, act)
        _stop(tx, row, reason)


@retry_on_disconnect
def break_circuit(ledger: Reader, study: StudyRecord) -> StudyRecord | None:
    """Stop and return an open study whose first ended trials all failed by one cause; else None.

    `[budget] stop_after_failures` is how many; 0 disables this. Trials before the last `resume`
    do not count.
    """
    limit = study.spec.budget.stop_after_failures
    if not limit or not _failed_alike(ledger, study, limit):
        return None
    with locked(ledger, study) as (tx, row):
        found = _first_ended(tx, row, limit)
        causes = {cause(trial.reason) for trial in found}
        if row.state != OPEN or len(found) < limit or len(causes) != 1:
            return None
        which = "trial" if limit == 1 else f"{limit} trials"
        reason = (
            f"{BY_ITSELF}: the first {which} to end failed for one reason, "
            f"{causes.pop()}. Trial {found[0].number}: {found[0].reason}"
        )
        _stop(tx, row, reason)
    return ledger.study(study.name)


@retry_on_disconnect
def delete_study(ledger: Reader, study: StudyIdentity, act: Act | None = None) -> None:
    """Delete all that the ledger has of a study but its events, in one transaction."""
    of_study = select(trials.c.id).where(trials.c.study_id == study.id)
    held = select(attempts.c.id).where(attempts.c.trial_id.in_(of_study))
    with locked(ledger, study) as (tx, _):
        for table in reversed(metadata.sorted_tables):
            if "attempt_id" in table.c:  # a row may refer to another study's trial
                tx.execute(delete(table).where(table.c.attempt_id.in_(held)))
            if "trial_id" in table.c:
                tx.execute(delete(table).where(table.c.trial_id.in_(of_study)))
            elif "study_id" in table.c:
                tx.execute(delete(table).where(table.c.study_id == study.id))
        tx.execute(delete(studies).where(studies.c.id == study.id))
        if tx.scalar(select(studies.c.id).where(studies.c.name == study.name)) is None:
            retrainings.forget(tx, study.name)
            notifications.forget(tx, study.name)
        events.record(tx, study.name, events.DELETED, act, version=study.version)


def _failed_alike(ledger: Reader, study: StudyRecord, limit: int) -> bool:
    """Check without the lock, since this is called before every trial."""
    with ledger.engine.begin() as tx:
        row = tx.execute(select(studies).where(studies.c.id == study.id)).first()
        found = [] if row is None else _first_ended(tx, row, limit)
    causes = {cause(trial.reason) for trial in found if trial.state == FAILED}
    same = len(causes) == 1 and None not in causes
    return same and len(found) == limit and all(trial.state == FAILED for trial in found)


def _first_ended(tx: Connection, study: Row[Any], limit: int) -> list[Row[Any]]:
    """Return the first trials that ended since the study was last resumed."""
    since = study_of(study).attrs.get(COUNTS_FROM, 0)
    query = (
        select(trials.c.number, trials.c.state, trials.c.reason)
        .where(trials.c.study_id == study.id, trials.c.number >= since)
        .where(trials.c.state != RUNNING, ~trials.c.imported)
        .order_by(trials.c.ended_at, trials.c.number)
        .limit(limit)
    )
    return list(tx.execute(query))


def end(tx: Connection, study: Row[Any], reason: str) -> None:
    """End a study by a rule of its budget: waiting trials are cancelled, running ones go on."""
    _become(tx, study, ENDED, reason)
    waiting = select(trials.c.id).where(
        trials.c.study_id == study.id, IS_RUNNING, ~has_live_attempt(trials.c.id)
    )
    for trial_id in tx.scalars(waiting).all():
        rows.cancel_if_stopped(tx, trial_id)


def reopen(tx: Connection, study: Row[Any]) -> None:
    """Reopen a study that had ended by a rule of its budget."""
    if study.state == ENDED:
        _become(tx, study, OPEN, None)


def _stop(tx: Connection, study: Row[Any], reason: str) -> None:
    running = and_(trials.c.study_id == study.id, IS_RUNNING)
    for trial_id in tx.scalars(select(trials.c.id).where(running)).all():
        live = tx.scalar(select(attempts.c.id).where(attempts.c.trial_id == trial_id, IS_LIVE))
        if live is not None:
            rows.end_attempt(tx, live, "stopped", "its study was stopped")
        outcome = Outcome(kind=CANCELLED, reason=f"Cancelled with its study. {reason}")
        rows.end_trial(tx, trial_id, study.id, outcome)
    if study.state != STOPPED:
        _become(tx, study, STOPPED, reason)


def _become(
    tx: Connection,
    study: Row[Any],
    state: str,
    reason: str | None,
    counts_from: int | None = None,
) -> None:
    given = {REASON: reason, COUNTS_FROM: counts_from}
    known = study.attrs if isinstance(study.attrs, dict) else {}  # else it cannot be read
    kept = {key: value for key, value in known.items() if key != REASON}
    attrs = kept | {key: value for key, value in given.items() if value is not None}
    rows.next_revision(tx, study.id)
    tx.execute(update(studies).where(studies.c.id == study.id).values(state=state, attrs=attrs))


@retry_on_disconnect
def annotate(
    ledger: Reader, study: StudyIdentity, action: str, act: Act, details: Mapping[str, Any]
) -> None:
    """Record a note or tags of a study, which recorders then publish."""
    with locked(ledger, study) as (tx, _):
        events.record(tx, study.name, action, act, **details)
        rows.next_revision(tx, study.id)


@retry_on_disconnect
def forget_checkpoints(ledger: Reader, study: StudyRecord) -> list[CheckpointRecord]:
    """Delete the references to checkpoints of a study's ended trials, and return them."""
    with locked(ledger, study) as (tx, _):
        return rows.forget_checkpoints(tx, trials.c.study_id == study.id)


@contextmanager
def locked(ledger: Reader, study: StudyIdentity) -> Iterator[tuple[Connection, Row[Any]]]:
    """Begin a transaction that has the study's row locked. Raise `NotFoundError`."""
    with ledger.engine.execution_options(writes=True).begin() as tx:
        row = tx.execute(rows.locked_study(study.id)).first()
        if row is None:
            raise NotFoundError(f"study {study.name!r} has been deleted")
        yield tx, row
