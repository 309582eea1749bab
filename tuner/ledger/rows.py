"""Parts of transactions that write; `tuner.ledger.writing` combines them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    exists,
    func,
    insert,
    select,
    true,
    update,
)

from tuner.core.outcome import CANCELLED, COMPLETED, FAILED, PRUNED, RUNNING, Outcome
from tuner.ledger.records import (
    ENDED,
    LARGEST,
    OPEN,
    STOPPED,
    AttemptLease,
    CheckpointRecord,
    TrialRecord,
    is_count,
    is_id,
    specification,
)
from tuner.ledger.tables import (
    IS_RUNNING,
    attempts,
    checkpoints,
    database_time,
    has_live_attempt,
    project_of,
    projects,
    studies,
    trials,
)


def locked_study(study_id: int) -> Any:
    """Select a study's row for update; on SQLite the transaction itself is the lock."""
    # others may go on to refer to the row, as everything that belongs to the study does
    query = select(studies).where(studies.c.id == study_id)
    return query.with_for_update(key_share=True, of=studies)


def locked_study_with_quota(study_id: int) -> Any:
    """Select a study's row as `locked_study` does, with the quota of its project, if it has one."""
    return _with_quota(locked_study(study_id))


def study_to_claim(study_id: int) -> Any:
    """Select a study's row without a lock, with its project's quota, and whether trials wait."""
    waits = exists(trials.c.id).where(
        trials.c.study_id == studies.c.id, IS_RUNNING, ~has_live_attempt(trials.c.id)
    )
    query = _with_quota(select(studies).where(studies.c.id == study_id))
    return query.add_columns(waits.label("waits"))


def _with_quota(query: Any) -> Any:
    quota = (projects.c.workers.label("quota_workers"), projects.c.steps_week.label("quota_steps"))
    of_project = projects.c.name == project_of(studies.c.name)
    return query.add_columns(*quota).select_from(studies.outerjoin(projects, of_project))


def next_revision(tx: Connection, study_id: int) -> int:
    """Increment and return the study's revision, for a commit that search can see."""
    found = tx.execute(at_next_revision(study_id)).scalar_one()
    # an unreadable study, which SQLite may give any number, can still be stopped and deleted
    return int(found) if is_count(found) else LARGEST


def at_next_revision(study_id: int) -> Any:
    """Return the statement that increments a study's revision and returns it."""
    return (
        update(studies)
        .where(studies.c.id == study_id)
        .values(revision=studies.c.revision + 1)
        .returning(studies.c.revision)
    )


def reserve(
    tx: Connection, study: Row[Any], count: int, attrs: Sequence[Mapping[str, Any]] = ()
) -> list[TrialRecord]:
    """Insert the next trials of a study whose row is locked; return them in order of number.

    `attrs` are their attributes, if they have any.
    """
    return _reserve(tx, study.id, count, attrs, true())


def reserve_within(tx: Connection, study_id: int, count: int) -> list[TrialRecord]:
    """Insert the next trials of a study whose row is not locked, as `reserve`.

    Insert none if the study is not open or its budget has no room for all of them.
    """
    room = and_(studies.c.state == OPEN, studies.c.reserved + count <= studies.c.limit)
    return _reserve(tx, study_id, count, (), room)


def _reserve(
    tx: Connection,
    study_id: int,
    count: int,
    attrs: Sequence[Mapping[str, Any]],
    condition: ColumnElement[bool],
) -> list[TrialRecord]:
    counted = tx.execute(
        update(studies)
        .where(studies.c.id == study_id, condition)
        .values(
            reserved=studies.c.reserved + count,
            next_number=studies.c.next_number + count,
            revision=studies.c.revision + 1,
        )
        .returning(studies.c.revision, (studies.c.next_number - count).label("first"))
    ).first()
    if counted is None:
        return []
    new = {
        "study_id": study_id,
        "imported": False,
        "state": RUNNING,
        "steps": 0,
        "last_time": 0.0,
        "revision": counted.revision,
    }
    made = tx.execute(
        insert(trials).values(created_at=database_time()).returning(trials),
        [
            {
                **new,
                "number": counted.first + index,
                "attrs": dict(attrs[index]) if attrs else {},
            }
            for index in range(count)
        ],
    )
    found = [TrialRecord(**row._mapping) for row in made]
    return sorted(found, key=lambda trial: trial.number)


def begin_attempts(
    tx: Connection,
    taken: Sequence[tuple[TrialRecord, int, int]],
    *,
    claim: str,
    worker: str,
    environment: Mapping[str, Any],
    seconds: float,
) -> dict[int, AttemptLease]:
    """Begin attempts under leases of so many seconds; return the leases by trial id.

    `taken` has a trial, the number of the attempt, and its first step.
    """
    made = tx.execute(
        insert(attempts)
        .values(
            claim=claim,
            worker=worker,
            live=True,
            expires_at=database_time() + seconds,
            environment=dict(environment),
            started_at=database_time(),
        )
        .returning(attempts.c.id, attempts.c.number, attempts.c.started_at, attempts.c.trial_id),
        [
            {"trial_id": trial.id, "number": number, "first_step": first_step}
            for trial, number, first_step in taken
        ],
    )
    (study_id,) = {trial.study_id for trial, _, _ in taken}
    return {row.trial_id: _lease(row, study_id) for row in made}


def claimed(tx: Connection, idempotency_key: str) -> list[AttemptLease]:
    """Return the leases of the live attempts that were claimed with an idempotency key."""
    found = tx.execute(
        select(
            attempts.c.id,
            attempts.c.number,
            attempts.c.started_at,
            attempts.c.trial_id,
            trials.c.study_id,
        )
        .join(trials)
        .where(attempts.c.claim == idempotency_key, attempts.c.live)
        .order_by(trials.c.number)
    )
    return [_lease(row, row.study_id) for row in found]


def _lease(attempt: Any, study_id: int) -> AttemptLease:  # of a row of attempts
    return AttemptLease(
        row_id=attempt.id,
        token=attempt.number,
        trial_id=attempt.trial_id,
        study_id=study_id,
        started_at=attempt.started_at,
    )


def last_checkpoints(tx: Connection, trial_ids: Collection[int]) -> dict[int, CheckpointRecord]:
    """Return the checkpoints to resume from, by trial: the last ones whose rows are committed."""
    committed = checkpoints.c.step <= trials.c.steps
    found = read_checkpoints(tx, checkpoints.c.trial_id.in_(trial_ids) & committed)
    return {trial_id: record for _, trial_id, record in found}


def reference(lease: AttemptLease, checkpoint: CheckpointRecord) -> dict[str, Any]:
    """Return the columns of the reference to a checkpoint."""
    return {
        "trial_id": lease.trial_id,
        "attempt_id": lease.row_id,
        "step": checkpoint.step,
        "path": checkpoint.path,
        "digest": checkpoint.digest,
    }


def read_checkpoints(
    tx: Connection, where: ColumnElement[bool]
) -> list[tuple[int, int, CheckpointRecord]]:
    """Read checkpoints in order of steps, each with its id and its trial's id.

    A row whose numbers are no whole numbers, as SQLite allows, names no file and is left out.
    """
    query = (
        select(
            checkpoints.c.id,
            checkpoints.c.trial_id,
            checkpoints.c.step,
            checkpoints.c.digest,
            attempts.c.number.label("attempt"),
            trials.c.number.label("trial"),
            trials.c.study_id,
        )
        .join(attempts, attempts.c.id == checkpoints.c.attempt_id)
        .join(trials, trials.c.id == checkpoints.c.trial_id)
        .where(where)
        .order_by(checkpoints.c.step, checkpoints.c.id)
    )
    return [
        (
            row.id,
            row.trial_id,
            CheckpointRecord(
                study_id=row.study_id,
                trial=row.trial,
                step=row.step,
                attempt=row.attempt,
                digest=row.digest,
            ),
        )
        for row in tx.execute(query)
        if is_id(row.study_id) and all(map(is_count, (row.trial, row.step, row.attempt)))
    ]


def forget_checkpoints(tx: Connection, where: ColumnElement[bool]) -> list[CheckpointRecord]:
    """Delete the references to checkpoints of ended trials; return them.

    What trials keep stays: those that were completed or pruned have no other checkpoints.
    """
    others = trials.c.state.not_in((RUNNING, COMPLETED, PRUNED))
    ended = checkpoints.c.trial_id.in_(select(trials.c.id).where(others, where))
    found = read_checkpoints(tx, ended)
    tx.execute(delete(checkpoints).where(checkpoints.c.id.in_([row_id for row_id, _, _ in found])))
    return [record for _, _, record in found]


def with_orderly_attempts(tx: Connection, trial_ids: Collection[int]) -> set[int]:
    """Return the waiting trials whose attempts have ended and are numbered from 1 on."""
    if not trial_ids:
        return set()
    query = select(attempts.c.trial_id, attempts.c.number, attempts.c.live).where(
        attempts.c.trial_id.in_(trial_ids)
    )
    numbers: dict[int, set[object]] = {trial_id: set() for trial_id in trial_ids}
    for row in tx.execute(query):
        numbers[row.trial_id].add("live" if row.live else row.number)
    return {key for key, found in numbers.items() if found == {*range(1, len(found) + 1)}}


def endings(tx: Connection, trial_ids: Collection[int]) -> dict[int, dict[str, int]]:
    """Count the ended attempts at trials, by how they ended."""
    query = (
        select(attempts.c.trial_id, attempts.c.ending, func.count().label("attempts"))
        .where(attempts.c.trial_id.in_(trial_ids), ~attempts.c.live)
        .group_by(attempts.c.trial_id, attempts.c.ending)
    )
    found: dict[int, dict[str, int]] = {trial_id: {} for trial_id in trial_ids}
    for row in tx.execute(query):
        found[row.trial_id][str(row.ending)] = int(row.attempts)
    return found


def end_trial(tx: Connection, trial_id: int, study_id: int, outcome: Outcome) -> None:
    """Set the outcome of a trial, as of the study's next revision."""
    tx.execute(
        update(trials)
        .where(trials.c.id == trial_id)
        .values(
            ended_at=database_time(),
            revision=next_revision(tx, study_id),
            **outcome_columns(outcome),
        )
    )


def outcome_columns(outcome: Outcome) -> dict[str, Any]:
    """Return the columns of a trial that has an outcome."""
    value, needed = outcome.value, outcome.kind == COMPLETED
    assert not needed if value is None else math.isfinite(value), "a finite value, or none"
    return {
        "state": outcome.kind,
        "reason": outcome.reason,
        "value": outcome.value,
        "stopped_step": outcome.stopped_step,
        "violation": outcome.violation,
        "objectives": None if outcome.objectives is None else list(outcome.objectives),
    }


def end_attempt(tx: Connection, attempt_id: int, ending: str, reason: str) -> None:
    """End an attempt."""
    ended = attempt_ended(ending, reason)
    tx.execute(update(attempts).where(attempts.c.id == attempt_id).values(**ended))


def attempt_ended(ending: str, reason: str, traceback: str | None = None) -> dict[str, Any]:
    """Return the columns of an attempt that ends now."""
    ended = {"live": False, "ended_at": database_time(), "ending": ending, "reason": reason}
    return ended | {"traceback": traceback}


def measured(environment: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the column with the environment of an attempt as measured now; {} if it was not."""
    return {} if environment is None else {"environment": dict(environment)}


def cancel_if_stopped(tx: Connection, trial_id: int) -> None:
    """Cancel a trial without a live attempt if its study is stopped or has ended."""
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
    """Fail a trial with more attempts of one ending than its study's budget allows."""
    row = tx.execute(
        select(trials.c.study_id, studies.c.spec).join(studies).where(trials.c.id == trial_id)
    ).one()
    lost = endings(tx, [trial_id])[trial_id].get(ending, 0)
    try:
        allowed = specification(row.spec).budget.retries
    except (ValueError, RecursionError):  # nobody trains a study that cannot be read
        return
    if lost > getattr(allowed, ending):
        sentence = f"Its worker was lost {lost} times; the last time, {reason}."
        end_trial(tx, trial_id, row.study_id, Outcome(kind=FAILED, reason=sentence))
