"""Steps of a transaction that writes; `tuner.ledger.writing` puts them together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, exists, func, insert, literal, select, update

from tuner.curves import Chunk
from tuner.ledger.records import (
    ENDED,
    STOPPED,
    CheckpointRecord,
    Lease,
    Report,
    TrialRecord,
    specification,
)
from tuner.ledger.tables import (
    attempts,
    checkpoints,
    chunks,
    database_time,
    reports,
    studies,
    trials,
)
from tuner.outcome import CANCELLED, COMPLETED, FAILED, RUNNING, Outcome

SUBMITTING = 0x7375626D6974
"""Of PostgreSQL's advisory lock on creating studies."""


def locked_study(study_id: int) -> Any:
    """Select a study's row for update; on SQLite the transaction itself is the lock."""
    # others may go on to refer to the row, as everything that belongs to the study does
    return select(studies).where(studies.c.id == study_id).with_for_update(key_share=True)


def one_submits(tx: Connection) -> None:
    """Let one transaction at a time create studies, since none sees what another is creating."""
    if tx.dialect.name == "postgresql":
        tx.execute(select(func.pg_advisory_xact_lock(SUBMITTING)))


def next_revision(tx: Connection, study_id: int) -> int:
    """Count a commit that search can see."""
    return int(
        tx.execute(
            update(studies)
            .where(studies.c.id == study_id)
            .values(revision=studies.c.revision + 1)
            .returning(studies.c.revision)
        ).scalar_one()
    )


def reserve(tx: Connection, study: Row[Any]) -> Row[Any]:
    """Make the next trial of a study whose row is locked."""
    counted = tx.execute(
        update(studies)
        .where(studies.c.id == study.id)
        .values(
            reserved=studies.c.reserved + 1,
            next_number=studies.c.next_number + 1,
            revision=studies.c.revision + 1,
        )
        .returning(studies.c.revision)
    ).one()
    return tx.execute(
        insert(trials)
        .values(
            study_id=study.id,
            number=study.next_number,
            imported=False,
            attrs={},
            state=RUNNING,
            steps=0,
            last_time=0.0,
            created_at=database_time(),
            revision=counted.revision,
        )
        .returning(trials)
    ).one()


def begin_attempt(
    tx: Connection,
    trial: TrialRecord,
    *,
    number: int,
    claim: str,
    worker: str,
    environment: Mapping[str, Any],
    first_step: int,
    seconds: float,
) -> Lease:
    """Begin an attempt at a trial, under a lease of so many seconds."""
    attempt = tx.execute(
        insert(attempts)
        .values(
            trial_id=trial.id,
            number=number,
            claim=claim,
            worker=worker,
            live=True,
            expires_at=database_time() + seconds,
            first_step=first_step,
            environment=dict(environment),
            started_at=database_time(),
        )
        .returning(attempts.c.id, attempts.c.number, attempts.c.started_at)
    ).one()
    return _lease(attempt, trial.id, trial.study_id)


def claimed(tx: Connection, claim: str) -> Lease | None:
    """Find the lease of the live attempt that a claim made; None if it made none."""
    row = tx.execute(
        select(
            attempts.c.id,
            attempts.c.number,
            attempts.c.started_at,
            trials.c.study_id,
            attempts.c.trial_id,
        )
        .join(trials)
        .where(attempts.c.claim == claim, attempts.c.live)
    ).first()
    return None if row is None else _lease(row, row.trial_id, row.study_id)


def _lease(attempt: Any, trial_id: int, study_id: int) -> Lease:  # of a row of attempts
    return Lease(
        attempt_id=attempt.id,
        number=attempt.number,
        trial_id=trial_id,
        study_id=study_id,
        started_at=attempt.started_at,
    )


def last_checkpoint(tx: Connection, trial_id: int) -> CheckpointRecord | None:
    """Find the checkpoint to go on from: the last one whose rows are committed."""
    saved = tx.execute(
        select(checkpoints.c.step, checkpoints.c.path, checkpoints.c.digest)
        .join(trials)
        .where(checkpoints.c.trial_id == trial_id, checkpoints.c.step <= trials.c.steps)
        .order_by(checkpoints.c.step.desc(), checkpoints.c.id.desc())
    ).first()
    return CheckpointRecord(**saved._mapping) if saved else None


def endings(tx: Connection, trial_id: int) -> dict[str, int]:
    """Count the ended attempts at a trial by how they ended."""
    query = (
        select(attempts.c.ending, func.count().label("attempts"))
        .where(attempts.c.trial_id == trial_id, ~attempts.c.live)
        .group_by(attempts.c.ending)
    )
    return {str(row.ending): int(row.attempts) for row in tx.execute(query)}


def append_rows(tx: Connection, lease: Lease, chunk: Chunk) -> dict[str, Any]:
    """Add rows of a curve that are not committed yet; those that are drop out.

    Gives what the trial's own row must have then; nothing if nothing was added.
    """
    trial = tx.execute(
        select(trials.c.steps, trials.c.last_time).where(trials.c.id == lease.trial_id)
    ).one()
    fresh = chunk.after(trial.steps).delayed(trial.last_time)
    if fresh.next_step <= trial.steps and not len(fresh.eval_steps):
        return {}
    assert fresh.first_step == trial.steps, "the rows before these are missing"
    tx.execute(
        insert(chunks).values(
            trial_id=lease.trial_id,
            first_step=fresh.first_step,
            next_step=fresh.next_step,
            attempt_id=lease.attempt_id,
            data=fresh.to_bytes(),
        )
    )
    return {"steps": fresh.next_step, "last_time": fresh.last_time}


def add_report(tx: Connection, lease: Lease, report: Report) -> bool:
    """Add the report of a rung, unless it is there: a call that is repeated adds it once.

    Tells whether it was added.
    """
    assert math.isfinite(report.value), "a trial without a finite value has diverged"
    row = {"trial_id": lease.trial_id, **asdict(report)}
    there = exists().where(reports.c.trial_id == lease.trial_id, reports.c.step == report.step)
    new = select(*(literal(value, reports.c[name].type) for name, value in row.items()))
    add = insert(reports).from_select(list(row), new.where(~there))
    return tx.execute(add.returning(reports.c.step)).first() is not None


def update_trial(tx: Connection, lease: Lease, **values: Any) -> None:
    """Change a trial, as of the next revision."""
    revision = next_revision(tx, lease.study_id)
    keep_of_trial(tx, lease, revision=revision, **values)


def keep_of_trial(tx: Connection, lease: Lease, **values: Any) -> None:
    """Change what search does not look at in a trial."""
    tx.execute(update(trials).where(trials.c.id == lease.trial_id).values(**values))


def end_trial(
    tx: Connection, trial_id: int, study_id: int, outcome: Outcome, **values: Any
) -> None:
    """Give a trial its outcome, and other values with it, as of the study's next revision."""
    value, needed = outcome.value, outcome.kind == COMPLETED
    assert not needed if value is None else math.isfinite(value), "a finite value, or none"
    tx.execute(
        update(trials)
        .where(trials.c.id == trial_id)
        .values(
            state=outcome.kind,
            reason=outcome.reason,
            value=outcome.value,
            stopped_step=outcome.stopped_step,
            ended_at=database_time(),
            revision=next_revision(tx, study_id),
            **values,
        )
    )


def end_attempt(tx: Connection, attempt_id: int, ending: str, reason: str) -> None:
    """End an attempt."""
    ended = attempt_ended(ending, reason)
    tx.execute(update(attempts).where(attempts.c.id == attempt_id).values(**ended))


def attempt_ended(ending: str, reason: str) -> dict[str, Any]:
    """Give the columns of an attempt that ends now."""
    return {"live": False, "ended_at": database_time(), "ending": ending, "reason": reason}


def cancel_if_stopped(tx: Connection, trial_id: int) -> None:
    """Cancel a trial that nobody trains if its study takes none up any more."""
    trial = tx.execute(
        select(trials.c.study_id, trials.c.state, studies.c.state.label("study"))
        .join(studies)
        .where(trials.c.id == trial_id)
    ).one()
    reasons = {
        STOPPED: "Its study was stopped, or a new version of it took its place.",
        ENDED: "Its study has ended by a rule of its budget.",
    }
    if trial.study in reasons and trial.state == RUNNING:
        reason = reasons[trial.study]
        end_trial(tx, trial_id, trial.study_id, Outcome(kind=CANCELLED, reason=reason))


def fail_if_spent(tx: Connection, trial_id: int, ending: str, reason: str) -> None:
    """Fail a trial that has had more attempts of one ending than its study's budget allows."""
    row = tx.execute(
        select(trials.c.study_id, studies.c.spec).join(studies).where(trials.c.id == trial_id)
    ).one()
    lost = endings(tx, trial_id).get(ending, 0)
    allowed = specification(row.spec).budget.retries
    if lost > getattr(allowed, ending):
        sentence = f"Its worker was lost {lost} times; the last time, {reason}."
        end_trial(tx, trial_id, row.study_id, Outcome(kind=FAILED, reason=sentence))
