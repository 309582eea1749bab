"""Steps of a transaction that writes; `tuner.ledger.writing` puts them together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from tuner.curves import Chunk
from tuner.ledger.records import STOPPED, CheckpointRecord, Lease, Report
from tuner.ledger.tables import (
    attempts,
    checkpoints,
    chunks,
    database_time,
    reports,
    studies,
    trials,
)
from tuner.outcome import CANCELLED, COMPLETED, RUNNING, Outcome


def locked_study(study_id: int) -> Any:
    """Select a study's row for update; on SQLite the transaction itself is the lock."""
    return select(studies).where(studies.c.id == study_id).with_for_update()


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


def reserve(tx: Connection, study: Row[Any]) -> int:
    """Make the next trial of a study whose row is locked; give its id."""
    tx.execute(
        update(studies)
        .where(studies.c.id == study.id)
        .values(reserved=studies.c.reserved + 1, next_number=studies.c.next_number + 1)
    )
    trial_id = tx.execute(
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
            revision=next_revision(tx, study.id),
        )
        .returning(trials.c.id)
    ).scalar_one()
    return int(trial_id)


def lease(
    tx: Connection,
    study_id: int,
    trial_id: int,
    worker: str,
    environment: Mapping[str, Any],
    seconds: float,
) -> tuple[Lease, CheckpointRecord | None]:
    """Begin an attempt at a trial; give its lease, and the checkpoint to go on from."""
    number = tx.scalar(
        select(func.coalesce(func.max(attempts.c.number), 0) + 1).where(
            attempts.c.trial_id == trial_id
        )
    )
    saved = tx.execute(
        select(checkpoints.c.step, checkpoints.c.path, checkpoints.c.digest)
        .join(trials)
        .where(checkpoints.c.trial_id == trial_id, checkpoints.c.step <= trials.c.steps)
        .order_by(checkpoints.c.step.desc(), checkpoints.c.id.desc())
    ).first()
    checkpoint = CheckpointRecord(**saved._mapping) if saved else None
    attempt = tx.execute(
        insert(attempts)
        .values(
            trial_id=trial_id,
            number=number,
            worker=worker,
            live=True,
            expires_at=database_time() + seconds,
            first_step=checkpoint.step if checkpoint else 0,
            environment=dict(environment),
            started_at=database_time(),
        )
        .returning(attempts.c.id, attempts.c.number, attempts.c.started_at)
    ).one()
    lease = Lease(
        attempt_id=attempt.id,
        number=attempt.number,
        trial_id=trial_id,
        study_id=study_id,
        started_at=attempt.started_at,
    )
    return lease, checkpoint


def count_attempts(tx: Connection, trial_id: int, ending: str) -> int:
    """Count the attempts at a trial that ended in one way."""
    mine = (attempts.c.trial_id == trial_id, attempts.c.ending == ending)
    return tx.scalar(select(func.count()).select_from(attempts).where(*mine)) or 0


def append_rows(tx: Connection, lease: Lease, chunk: Chunk) -> None:
    """Add rows of a curve that are not committed yet; those that are drop out."""
    trial = tx.execute(
        select(trials.c.steps, trials.c.last_time).where(trials.c.id == lease.trial_id)
    ).one()
    fresh = chunk.after(trial.steps).delayed(trial.last_time)
    if fresh.next_step <= trial.steps and not len(fresh.eval_steps):
        return
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
    tx.execute(
        update(trials)
        .where(trials.c.id == lease.trial_id)
        .values(steps=fresh.next_step, last_time=fresh.last_time)
    )


def add_report(tx: Connection, lease: Lease, report: Report, attrs: Mapping[str, Any]) -> None:
    """Add the report of a rung."""
    assert math.isfinite(report.value), "a trial without a finite value has diverged"
    tx.execute(
        insert(reports).values(
            trial_id=lease.trial_id,
            step=report.step,
            value=report.value,
            pruned=report.pruned,
            reason=report.reason,
        )
    )
    update_trial(tx, lease, attrs=dict(attrs))


def update_trial(tx: Connection, lease: Lease, **values: Any) -> None:
    """Change a trial, as of the next revision."""
    revision = next_revision(tx, lease.study_id)
    tx.execute(
        update(trials).where(trials.c.id == lease.trial_id).values(revision=revision, **values)
    )


def end_trial(tx: Connection, trial_id: int, study_id: int, outcome: Outcome) -> None:
    """Give a trial its outcome, as of the study's next revision."""
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
        )
    )


def end_attempt(tx: Connection, attempt_id: int, ending: str, reason: str) -> None:
    """End an attempt."""
    tx.execute(
        update(attempts)
        .where(attempts.c.id == attempt_id)
        .values(live=False, ended_at=database_time(), ending=ending, reason=reason)
    )


def cancel_if_stopped(tx: Connection, trial_id: int) -> None:
    """Cancel a trial that nobody trains if its study is stopped: nobody will take it up."""
    trial = tx.execute(
        select(trials.c.study_id, trials.c.state, studies.c.state.label("study"))
        .join(studies)
        .where(trials.c.id == trial_id)
    ).one()
    if trial.study == STOPPED and trial.state == RUNNING:
        reason = "Its study was stopped, or a new version of it took its place."
        end_trial(tx, trial_id, trial.study_id, Outcome(kind=CANCELLED, reason=reason))
