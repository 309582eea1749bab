"""Leases: taking a trial, keeping it, giving it back, and reaping what was lost."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, select, update

from tuner.core.errors import LeaseLost
from tuner.ledger import rows
from tuner.ledger.reading import Reader, has_live_attempt, read_trials
from tuner.ledger.records import (
    OPEN,
    STALE,
    CheckpointRecord,
    Claim,
    Lease,
    StudyRecord,
    TrialRecord,
)
from tuner.ledger.retrying import PATIENCE_SECONDS, again
from tuner.ledger.tables import (
    IS_LIVE,
    IS_RUNNING,
    attempts,
    database_start,
    database_time,
    trials,
)

LEASE_SECONDS = 30.0


class Leases(Reader):
    """Attempts at trials, each under a lease. Thread-safe, as `Reader` is."""

    def __init__(
        self,
        engine: Engine,
        lease_seconds: float = LEASE_SECONDS,
        patience: float = PATIENCE_SECONDS,
        grace_seconds: float | None = None,
    ) -> None:
        """Reap nobody within `grace_seconds` of the server's start; as long as a lease lasts."""
        super().__init__(engine, patience)
        self._grace_seconds = lease_seconds if grace_seconds is None else grace_seconds
        self.lease_seconds = lease_seconds
        self._writes = engine.execution_options(writes=True)

    @again
    def trainable(self) -> list[StudyRecord]:
        """Read the open studies that have room for a trial, or one that has not ended."""
        with self._reading() as tx:
            busy = set(tx.scalars(select(trials.c.study_id).where(IS_RUNNING).distinct()))
        return [
            study
            for study in self.studies()
            if study.state == OPEN and (study.reserved < study.limit or study.id in busy)
        ]

    def claim(self, study_id: int, worker: str, environment: Mapping[str, Any]) -> Claim | None:
        """Lease one trial, see `claim_together`; None if there is none."""
        return next(iter(self.claim_together(study_id, worker, environment, 1)), None)

    def claim_together(
        self, study_id: int, worker: str, environment: Mapping[str, Any], most: int
    ) -> list[Claim]:
        """Lease the oldest trials that nobody trains, then reserve new ones, as the budget allows.

        Budget, numbers and leases are one commit. A new trial has no parameters yet.
        """
        return self._claim(study_id, worker, environment, most, uuid.uuid4().hex, count())

    @again
    def _claim(
        self,
        study_id: int,
        worker: str,
        environment: Mapping[str, Any],
        most: int,
        word: str,
        calls: Iterator[int],
    ) -> list[Claim]:
        """Claim under a word that nobody else has, so that a repeated call finds its claims."""
        repeated = next(calls) > 0
        with self._writing() as tx:
            study = tx.execute(rows.locked_study(study_id)).first()
            held = rows.claimed(tx, word) if repeated else []
            if held:
                found = read_trials(tx, trials.c.id.in_([lease.trial_id for lease in held]))
                leases = {lease.trial_id: lease for lease in held}
                return _claims(leases, found, _history(tx, found))
            if study is None or study.state != OPEN:  # it may have been deleted just now
                return []
            waiting = tx.scalars(
                select(trials.c.id)
                .where(
                    trials.c.study_id == study_id,
                    IS_RUNNING,
                    ~has_live_attempt(trials.c.id),
                )
                .order_by(trials.c.number)
                .limit(most)
            ).all()
            old = read_trials(tx, trials.c.id.in_(waiting)) if waiting else []
            room = min(most - len(old), study.limit - study.reserved)
            new = rows.reserve(tx, study, room) if room > 0 else []
            if not old and not new:
                return []
            history = _history(tx, old)
            taken = [(trial, *_next_attempt(trial, history)) for trial in (*old, *new)]
            leases = rows.begin_attempts(
                tx,
                taken,
                claim=word,
                worker=worker,
                environment=environment,
                seconds=self.lease_seconds,
            )
            return _claims(leases, (*old, *new), history)

    @again
    def release(self, lease: Lease, ending: str, reason: str, traceback: str | None = None) -> None:
        """End the attempt and leave the trial to the next worker, if its study takes any up."""
        with self._ending(lease, rows.attempt_ended(ending, reason, traceback)) as tx:
            if tx is not None:
                rows.cancel_if_stopped(tx, lease.trial_id)

    @again
    def begin_anew(self, lease: Lease) -> None:
        """Note that an attempt begins at step 0 and not at its checkpoint. Raises `LeaseLost`."""
        with self._fenced(lease, {"first_step": 0, **self._renewed()}):
            pass

    def renew(self, leases: Collection[Lease]) -> frozenset[Lease]:
        """Move the expiry of leases on; give those that are live no more.

        Not repeated: who renews does so again and again.
        """
        by_attempt = {lease.attempt_id: lease for lease in leases}
        with self._writing() as tx:
            live = tx.scalars(
                update(attempts)
                .where(attempts.c.id.in_(by_attempt), attempts.c.live)
                .values(expires_at=database_time() + self.lease_seconds)
                .returning(attempts.c.id)
            ).all()
        return frozenset(by_attempt[key] for key in by_attempt.keys() - set(live))

    @again
    def reap(self, gone: Callable[[str], bool] = lambda _: False) -> int:
        """End the attempts whose lease has expired or whose worker is gone; count them.

        Where a database's server has just been started nobody could renew a lease before, and all
        have as long for it as a lease lasts. A trial that has lost more attempts than its study's
        budget allows fails.
        """
        with self._reading() as tx:
            live = tx.execute(
                select(attempts.c.id, attempts.c.worker, self._expired().label("expired")).where(
                    IS_LIVE
                )
            ).all()
        lost = [(row.id, row.expired) for row in live if row.expired or gone(row.worker)]
        return sum(self._reap(attempt_id, expired=expired) for attempt_id, expired in lost)

    def _expired(self) -> ColumnElement[bool]:
        in_touch = database_start() + self._grace_seconds < database_time()
        return and_(attempts.c.expires_at < database_time(), in_touch)

    @again
    def _reap(self, attempt_id: int, *, expired: bool) -> bool:
        with self._writing() as tx:
            still = and_(attempts.c.id == attempt_id, attempts.c.live)
            if expired:
                still = and_(still, self._expired())
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
    def _writing(self) -> Iterator[Connection]:
        with self._writes.begin() as tx:
            yield tx

    def _renewed(self) -> dict[str, Any]:
        """Give the columns of an attempt whose lease is renewed."""
        return {"expires_at": database_time() + self.lease_seconds}

    @contextmanager
    def _fenced(self, lease: Lease, ended: Mapping[str, Any] | None = None) -> Iterator[Connection]:
        """Begin a transaction that stops unless the attempt is still live.

        It renews the lease, or ends the attempt.
        """
        with self._writing() as tx:
            if not rows.fence(tx, [lease], self._renewed() if ended is None else ended):
                raise refused(lease)
            yield tx

    @contextmanager
    def _ending(self, lease: Lease, ended: Mapping[str, Any]) -> Iterator[Connection | None]:
        """Begin the last fenced transaction of an attempt, which ends it; None if it was committed.

        An attempt is ended so by its holder alone: a call whose connection was lost came through.
        """
        try:
            with self._fenced(lease, ended) as tx:
                yield tx
        except LeaseLost:
            with self._reading() as tx:
                here = and_(attempts.c.id == lease.attempt_id, attempts.c.number == lease.number)
                found = tx.scalar(select(attempts.c.ending).where(here))
            if found != ended["ending"]:
                raise
            yield None


def refused(lease: Lease) -> LeaseLost:
    """Say that a token is refused."""
    return LeaseLost(
        f"attempt {lease.number} at the trial was given up for lost and its token is "
        "refused; another attempt has the trial"
    )


@dataclass(frozen=True)
class _History:
    """What trials have had before, by their ids; new ones have had nothing."""

    endings: Mapping[int, Mapping[str, int]]  # attempts by how they ended
    saved: Mapping[int, CheckpointRecord]  # where to go on


def _history(tx: Connection, found: Sequence[TrialRecord]) -> _History:
    ids = [trial.id for trial in found]
    if not ids:
        return _History({}, {})
    return _History(rows.endings(tx, ids), rows.last_checkpoints(tx, ids))


def _next_attempt(trial: TrialRecord, history: _History) -> tuple[int, int]:
    """Give the number of the next attempt at a trial, and its first step."""
    saved = history.saved.get(trial.id)
    before = sum(history.endings.get(trial.id, {}).values())
    return 1 + before, saved.step if saved else 0


def _claims(
    leases: Mapping[int, Lease], found: Sequence[TrialRecord], history: _History
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
