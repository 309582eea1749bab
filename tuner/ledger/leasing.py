"""Leases: taking a trial, keeping it, giving it back, and reaping what was lost."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, select, update

from tuner.errors import LeaseLost
from tuner.ledger import rows
from tuner.ledger.reading import Reader, has_live_attempt, read_trials
from tuner.ledger.records import OPEN, STALE, Claim, Lease, TrialRecord
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

    def claim(self, study_id: int, worker: str, environment: Mapping[str, Any]) -> Claim | None:
        """Lease the oldest trial that nobody trains, else reserve a new one; None if there is none.

        Budget, number and lease are one commit. A new trial has no parameters yet.
        """
        return self._claim(study_id, worker, environment, uuid.uuid4().hex, count())

    @again
    def _claim(
        self,
        study_id: int,
        worker: str,
        environment: Mapping[str, Any],
        word: str,
        calls: Iterator[int],
    ) -> Claim | None:
        """Claim under a word that nobody else has, so that a repeated call finds its claim."""
        repeated = next(calls) > 0
        with self._writing() as tx:
            study = tx.execute(rows.locked_study(study_id)).first()
            held = rows.claimed(tx, word) if repeated else None
            if held is not None:
                return _claim_of(tx, held, read_trials(tx, trials.c.id == held.trial_id)[0])
            if study is None or study.state != OPEN:  # it may have been deleted just now
                return None
            waiting = tx.scalar(
                select(trials.c.id)
                .where(
                    trials.c.study_id == study_id,
                    IS_RUNNING,
                    ~has_live_attempt(trials.c.id),
                )
                .order_by(trials.c.number)
                .limit(1)
            )
            new = waiting is None
            if new:
                if study.reserved >= study.limit:
                    return None
                trial = TrialRecord(**rows.reserve(tx, study)._mapping)
            else:
                trial = read_trials(tx, trials.c.id == waiting)[0]
            checkpoint = None if new else rows.last_checkpoint(tx, trial.id)
            lease = rows.begin_attempt(
                tx,
                trial,
                number=1 if new else 1 + sum(rows.endings(tx, trial.id).values()),
                claim=word,
                worker=worker,
                environment=environment,
                first_step=checkpoint.step if checkpoint else 0,
                seconds=self.lease_seconds,
            )
            if new:
                return Claim(lease=lease, trial=trial, checkpoint=None)
            return _claim_of(tx, lease, trial)

    @again
    def release(self, lease: Lease, ending: str, reason: str) -> None:
        """End the attempt and leave the trial to the next worker, if its study takes any up."""
        with self._ending(lease, ending, reason) as tx:
            if tx is not None:
                rows.cancel_if_stopped(tx, lease.trial_id)

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

    @contextmanager
    def _fenced(self, lease: Lease, ended: Mapping[str, Any] | None = None) -> Iterator[Connection]:
        """Begin a transaction that stops unless the attempt is still live.

        It renews the lease, or ends the attempt.
        """
        renewed = {"expires_at": database_time() + self.lease_seconds}
        with self._writing() as tx:
            done = tx.execute(
                update(attempts)
                .where(
                    attempts.c.id == lease.attempt_id,
                    attempts.c.number == lease.number,
                    attempts.c.live,
                )
                .values(**(renewed if ended is None else ended))
            )
            if done.rowcount != 1:
                raise LeaseLost(
                    f"attempt {lease.number} at the trial was given up for lost and its token is "
                    "refused; another attempt has the trial"
                )
            yield tx

    @contextmanager
    def _ending(self, lease: Lease, ending: str, reason: str) -> Iterator[Connection | None]:
        """Begin the last fenced transaction of an attempt, which ends it; None if it was committed.

        An attempt is ended so by its holder alone: a call whose connection was lost came through.
        """
        try:
            with self._fenced(lease, rows.attempt_ended(ending, reason)) as tx:
                yield tx
        except LeaseLost:
            with self._reading() as tx:
                here = and_(attempts.c.id == lease.attempt_id, attempts.c.number == lease.number)
                found = tx.scalar(select(attempts.c.ending).where(here))
            if found != ending:
                raise
            yield None


def _claim_of(tx: Connection, lease: Lease, trial: TrialRecord) -> Claim:
    return Claim(
        lease=lease,
        trial=trial,
        checkpoint=rows.last_checkpoint(tx, trial.id),
        endings=rows.endings(tx, trial.id),
    )
