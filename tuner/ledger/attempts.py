"""Attempts at trials: claiming a trial under a lease, releasing it, and reaping lost attempts."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from sqlalchemy import Connection, and_, or_, select, update

from tuner.core.curves import Chunk
from tuner.core.errors import LeaseLost, UnreadableError
from tuner.ledger import entries, rows
from tuner.ledger.decoding import log_once, readable, studies_of, study_of
from tuner.ledger.lease_writer import LeaseWriter
from tuner.ledger.leases import ATTEMPTS, Gone, renewed
from tuner.ledger.projects import Quota
from tuner.ledger.reading import read_trials
from tuner.ledger.records import (
    CONTINUED,
    ENDED,
    OPEN,
    STALE,
    AttemptLease,
    CheckpointRecord,
    Claim,
    Entry,
    StudyRecord,
    TrialRecord,
)
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import (
    IS_LIVE,
    IS_RUNNING,
    attempts,
    has_live_attempt,
    studies,
    trials,
)


class Attempts(LeaseWriter):
    """Attempts at trials, each under a lease. Thread-safe, as `Reader` is."""

    @retry_on_disconnect
    def trainable(self) -> list[StudyRecord]:
        """Read the open studies that have budget for a new trial or a trial that has not ended."""
        busy = studies.c.id.in_(select(trials.c.study_id).where(IS_RUNNING))
        has_budget = studies.c.reserved < studies.c.limit
        with self._reading() as tx:
            query = select(studies).where(studies.c.state == OPEN, or_(has_budget, busy))
            return studies_of(tx.execute(query.order_by(studies.c.id)))

    @retry_on_disconnect
    def revisions_after_search(self) -> dict[int, int]:
        """Read the ids and revisions of the studies whose search is over."""
        is_full = and_(studies.c.state == OPEN, studies.c.reserved >= studies.c.limit)
        query = select(studies.c.id, studies.c.revision)
        with self._reading() as tx:
            rows = tx.execute(query.where(or_(studies.c.state == ENDED, is_full)))
            return {row.id: row.revision for row in rows}

    def claim(self, study_id: int, worker: str, environment: Mapping[str, Any]) -> Claim | None:
        """Claim one trial, see `claim_together`; return None if there is none."""
        return next(iter(self.claim_together(study_id, worker, environment, 1)), None)

    def claim_together(
        self, study_id: int, worker: str, environment: Mapping[str, Any], most: int
    ) -> list[Claim]:
        """Claim the oldest waiting trials, then reserve new ones, as the budget allows.

        Trials that cannot be read are left out. Raise `UnreadableError` if the study cannot be.
        Budget, numbers and leases are one commit. A new trial has no parameters yet.
        """
        return self._claim(study_id, worker, environment, most, uuid.uuid4().hex, count())

    @retry_on_disconnect
    def _claim(
        self,
        study_id: int,
        worker: str,
        environment: Mapping[str, Any],
        most: int,
        idempotency_key: str,
        calls: Iterator[int],
    ) -> list[Claim]:
        """Claim with an idempotency key, by which a retried call finds what it claimed before."""
        repeated = next(calls) > 0
        begin = partial(
            rows.begin_attempts,
            claim=idempotency_key,
            worker=worker,
            environment=environment,
            seconds=self.lease_seconds,
        )
        with self._writing() as tx:
            if not repeated and (new := _reserve_new(tx, study_id, most)) is not None:
                return _claims(begin(tx, [(trial, 1, 0) for trial in new]), new, NO_HISTORY)
            row = tx.execute(rows.locked_study_with_quota(study_id)).first()
            study = None if row is None else study_of(row)
            held = rows.claimed(tx, idempotency_key) if repeated else []
            if held:
                found = read_trials(tx, trials.c.id.in_([lease.trial_id for lease in held]))
                leases = {lease.trial_id: lease for lease in held}
                return _claims(leases, found, _history(tx, found))
            if (
                row is None or study is None or study.state != OPEN
            ):  # it may have been deleted just now
                return []
            quota = Quota.of(row.quota_workers, row.quota_steps)
            if (refusal := quota.refusal(tx, study.project, worker)) is not None:
                log_once(refusal)
                return []
            waiting = tx.scalars(  # all of them: some may be unreadable
                select(trials.c.id)
                .where(
                    trials.c.study_id == study_id,
                    IS_RUNNING,
                    ~has_live_attempt(trials.c.id),
                )
                .order_by(trials.c.number)
            ).all()
            found = read_trials(tx, trials.c.id.in_(waiting)) if waiting else []
            orderly = rows.with_orderly_attempts(tx, [trial.id for trial in found])
            takeable = partial(_takeable, orderly)
            old = list(readable(takeable, found))[:most]
            room = min(most - len(old), study.limit - study.reserved)
            new = rows.reserve(tx, row, room) if room > 0 else []
            if not old and not new:
                return []
            history = _history(tx, old)
            taken = [(trial, *_next_attempt(trial, history)) for trial in (*old, *new)]
            return _claims(begin(tx, taken), (*old, *new), history)

    @retry_on_disconnect
    def release(
        self,
        lease: AttemptLease,
        ending: str,
        reason: str,
        traceback: str | None = None,
        *,
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        """End the attempt and leave the trial to the next worker, unless its study is stopped."""
        ended = rows.attempt_ended(ending, reason, traceback) | rows.measured(environment)
        with self._ending(lease, ended) as tx:
            if tx is not None:
                rows.cancel_if_stopped(tx, lease.trial_id)

    @retry_on_disconnect
    def begin_at_first_step(self, lease: AttemptLease) -> None:
        """Record that an attempt begins at step 0, not at its checkpoint. Raises `LeaseLost`."""
        with self._fenced(lease, {"first_step": 0, **renewed(self.lease_seconds)}):
            pass

    @retry_on_disconnect
    def begin_with(self, lease: AttemptLease, chunk: Chunk) -> None:
        """Commit the rows with which a trial continues another one. Raises `LeaseLost`.

        Rows that an earlier attempt has committed are dropped.
        """
        first = {"first_step": chunk.next_step, **renewed(self.lease_seconds)}
        with self._fenced(lease, first) as tx:
            entries.put(tx, [Entry(lease=lease, chunk=chunk)])
            mine = trials.c.id == lease.trial_id
            attrs = tx.scalar(select(trials.c.attrs).where(mine)) or {}
            changed = {**attrs, CONTINUED: chunk.next_step}
            tx.execute(update(trials).where(mine).values(attrs=changed))

    @retry_on_disconnect
    def reap(self, gone: Gone = lambda _: False) -> int:
        """End the attempts whose lease is lost, and return how many.

        A trial that has lost more attempts than its study's budget allows fails.
        """
        with self._reading() as tx:
            expired = ATTEMPTS.expired(self.grace_seconds).label("expired")
            query = select(attempts.c.id, attempts.c.worker, expired).where(IS_LIVE)
            live = tx.execute(query).all()
        lost = [(row.id, row.expired) for row in live if row.expired or gone(row.worker)]
        return sum(self._reap(attempt_id, expired=expired) for attempt_id, expired in lost)

    @retry_on_disconnect
    def _reap(self, attempt_id: int, *, expired: bool) -> bool:
        with self._writing() as tx:
            still = and_(attempts.c.id == attempt_id, IS_LIVE)
            if expired:
                still = and_(still, ATTEMPTS.expired(self.grace_seconds))
            reason = "its lease expired" if expired else "its worker's process is gone"
            done = tx.execute(
                update(attempts)
                .where(still)
                .values(**rows.attempt_ended(STALE, reason))
                .returning(attempts.c.trial_id)
            ).first()
            if done is None:
                return False
            rows.fail_if_spent(tx, done.trial_id, STALE, reason)
            rows.cancel_if_stopped(tx, done.trial_id)
        return True

    # --- transactions

    @contextmanager
    def _fenced(
        self, lease: AttemptLease, ended: Mapping[str, Any] | None = None
    ) -> Iterator[Connection]:
        """Begin a transaction that renews the lease, or ends the attempt. Raises `LeaseLost`."""
        with self._writing() as tx:
            if not ATTEMPTS.fence(tx, [lease], ended or renewed(self.lease_seconds)):
                raise refused(lease)
            yield tx

    @contextmanager
    def _ending(self, lease: AttemptLease, ended: Mapping[str, Any]) -> Iterator[Connection | None]:
        """Begin the last transaction of an attempt, which ends it; None if it was committed before.

        Only its holder ends an attempt in such a way, so that commit was this call's, and its
        connection was lost.
        """
        try:
            with self._fenced(lease, ended) as tx:
                yield tx
        except LeaseLost:
            with self._reading() as tx:
                row = ATTEMPTS.row(tx, lease)
            if row is None or row.ending != ended["ending"]:
                raise
            yield None


def refused(lease: AttemptLease) -> LeaseLost:
    """Return the error for a refused fencing token."""
    return LeaseLost(
        f"attempt {lease.token} at the trial was given up for lost and its token is "
        "refused; another attempt has the trial"
    )


def _reserve_new(tx: Connection, study_id: int, most: int) -> list[TrialRecord] | None:
    """Reserve new trials of a study where there is nothing else to decide, else return None.

    The study's row is locked by the statement that counts them, and not while it is read: all
    workers wait for it. Trials that wait for another attempt, quotas and the end of a budget need
    the lock from the beginning.
    """
    row = tx.execute(rows.study_to_claim(study_id)).first()
    if row is None or row.waits or row.quota_workers is not None or row.quota_steps is not None:
        return None
    study = study_of(row)
    if study.state != OPEN or study.reserved + most > study.limit:
        return None
    return rows.reserve_within(tx, study_id, most) or None


def _takeable(orderly: Collection[int], trial: TrialRecord) -> TrialRecord:
    """Return a trial that another attempt can be made at. Raise `UnreadableError`."""
    if trial.id not in orderly:
        raise UnreadableError(
            f"trial {trial.number} of study {trial.study_id} cannot be read: its attempts"
        )
    return trial


@dataclass(frozen=True)
class _History:
    """Earlier attempts at trials, by the trials' ids; new trials have none."""

    endings: Mapping[int, Mapping[str, int]]  # attempts by how they ended
    saved: Mapping[int, CheckpointRecord]  # checkpoints to resume from


NO_HISTORY = _History({}, {})


def _history(tx: Connection, found: Sequence[TrialRecord]) -> _History:
    ids = [trial.id for trial in found]
    if not ids:
        return NO_HISTORY
    return _History(rows.endings(tx, ids), rows.last_checkpoints(tx, ids))


def _next_attempt(trial: TrialRecord, history: _History) -> tuple[int, int]:
    """Return the number of the next attempt at a trial, and its first step."""
    saved = history.saved.get(trial.id)
    before = sum(history.endings.get(trial.id, {}).values())
    return 1 + before, saved.step if saved else 0


def _claims(
    leases: Mapping[int, AttemptLease], found: Sequence[TrialRecord], history: _History
) -> list[Claim]:
    return [
        Claim(
            lease=leases[trial.id],
            trial=trial,
            checkpoint=history.saved.get(trial.id),
            endings=history.endings.get(trial.id, {}),
        )
        for trial in found
    ]
