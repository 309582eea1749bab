"""The ledger: the truth about studies, trials, attempts, curves and outcomes.

Invariants, whoever calls and whatever dies:
- a study never reserves more trials than its limit, and a number belongs to one trial for good;
- a trial has at most one live attempt, and ends in exactly one outcome;
- what an attempt commits is refused with `LeaseLost` once the attempt is no longer live: every
  such transaction begins with an UPDATE that must change the attempt's row;
- rows of a curve are consecutive from step 0, and a committed row is never written again;
- every commit that search can see gives the study its next revision.

Optuna's and MLflow's rows are projections of these tables (`tuner.tracking`). No transaction
here stays open across a call into either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, delete, func, insert, select, update

from tuner.curves import Chunk
from tuner.errors import LeaseLost, UsageError
from tuner.ledger.reading import Reader, has_live_attempt, read_trials
from tuner.ledger.records import OPEN, CheckpointRecord, Claim, Lease, Report, StudyRecord
from tuner.ledger.tables import (
    attempts,
    checkpoints,
    chunks,
    database_time,
    reports,
    studies,
    trials,
)
from tuner.outcome import COMPLETED, FAILED, RUNNING, Outcome
from tuner.spec import ParameterValue, StudySpec

LEASE_SECONDS = 30.0
STALE_RETRIES = 3
"""How many attempts of a trial may be lost with their worker before the trial fails."""


class Ledger(Reader):
    """The ledger in one database. Thread-safe: every call uses a connection of its own."""

    def __init__(self, engine: Engine, lease_seconds: float = LEASE_SECONDS) -> None:
        super().__init__(engine)
        self.lease_seconds = lease_seconds

    # --- studies

    def submit(
        self, spec: StudySpec, *, limit: int, workload: Mapping[str, Any]
    ) -> tuple[StudyRecord, bool]:
        """Create the study, or set the limit of the one with its name; the flag says which.

        Raises `UsageError` when more than the budget differs from the existing study.
        """
        with self._writing() as tx:
            row = tx.execute(
                select(studies.c.id, studies.c.spec)
                .where(studies.c.name == spec.study.name)
                .order_by(studies.c.version.desc())
            ).first()
            if row is None:
                tx.execute(
                    insert(studies).values(
                        name=spec.study.name,
                        version=1,
                        digest=spec.digest(),
                        spec=spec.model_dump_json(),
                        state=OPEN,
                        rungs=list(spec.rungs()),
                        workload=dict(workload),
                        attrs={},
                        limit=limit,
                        reserved=0,
                        next_number=0,
                        revision=1,
                        created_at=database_time(),
                    )
                )
            else:
                if StudySpec.model_validate_json(row.spec).digest() != spec.digest():
                    raise UsageError(
                        f"study {spec.study.name!r} exists and differs in more than its budget; "
                        "give this one another name"
                    )
                tx.execute(
                    update(studies)
                    .where(studies.c.id == row.id)
                    .values(limit=limit, spec=spec.model_dump_json())
                )
        return self.study(spec.study.name), row is None

    def settle(self, study_id: int, settled: Mapping[str, Any]) -> Mapping[str, Any]:
        """Store what the first start settled on, once; give what is stored."""
        with self._writing() as tx:
            first = and_(studies.c.id == study_id, studies.c.settled.is_(None))
            tx.execute(update(studies).where(first).values(settled=dict(settled)))
            stored = tx.scalar(select(studies.c.settled).where(studies.c.id == study_id))
        assert stored is not None
        return dict(stored)

    # --- asking

    def claim(self, study_id: int, worker: str, environment: Mapping[str, Any]) -> Claim | None:
        """Lease the oldest trial that nobody trains, else reserve a new one; None if there is none.

        Budget, number and lease are one commit. A new trial has no parameters yet.
        """
        with self._writing() as tx:
            study = tx.execute(_locked_study(study_id)).one()
            if study.state != OPEN:
                return None
            trial_id = tx.scalar(
                select(trials.c.id)
                .where(
                    trials.c.study_id == study_id,
                    trials.c.state == RUNNING,
                    ~has_live_attempt(trials.c.id),
                )
                .order_by(trials.c.number)
            )
            if trial_id is None:
                if study.reserved >= study.limit:
                    return None
                trial_id = self._reserve(tx, study)
            lease, checkpoint = self._lease(tx, study_id, trial_id, worker, environment)
            trial = read_trials(tx, trials.c.id == trial_id)[0]
        return Claim(lease=lease, trial=trial, checkpoint=checkpoint)

    def _reserve(self, tx: Connection, study: Row[Any]) -> int:
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
                revision=_next_revision(tx, study.id),
            )
            .returning(trials.c.id)
        ).scalar_one()
        return int(trial_id)

    def _lease(
        self,
        tx: Connection,
        study_id: int,
        trial_id: int,
        worker: str,
        environment: Mapping[str, Any],
    ) -> tuple[Lease, CheckpointRecord | None]:
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
                expires_at=database_time() + self.lease_seconds,
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

    def draw(
        self,
        lease: Lease,
        params: Mapping[str, ParameterValue],
        *,
        attrs: Mapping[str, Any],
        study_attrs: Mapping[str, Any],
        asked_revision: int,
    ) -> None:
        """Store the parameters of a trial, and the revision that the draw saw."""
        with self._fenced(lease) as tx:
            self._update_trial(
                tx, lease, params=dict(params), attrs=dict(attrs), asked_revision=asked_revision
            )
            if study_attrs:
                here = studies.c.id == lease.study_id
                known = tx.scalar(select(studies.c.attrs).where(here)) or {}
                tx.execute(update(studies).where(here).values(attrs={**known, **study_attrs}))

    # --- training

    def append(self, lease: Lease, chunk: Chunk) -> None:
        """Commit rows of the curve; what was committed before is dropped from them.

        Only `finish` takes an evaluation at step 0 that no row follows.
        """
        with self._fenced(lease) as tx:
            self._append(tx, lease, chunk)

    def report(
        self, lease: Lease, chunk: Chunk, report: Report, *, attrs: Mapping[str, Any]
    ) -> None:
        """Commit rows up to a rung, the report there, and the decision to go on."""
        assert not report.pruned, "a pruned trial is finished, with its report"
        with self._fenced(lease) as tx:
            self._append(tx, lease, chunk)
            self._report(tx, lease, report, attrs)

    def save_checkpoint(self, lease: Lease, checkpoint: CheckpointRecord) -> list[str]:
        """Commit the reference to a checkpoint; give the paths that it makes needless.

        The rows up to it are committed already: an attempt could not go on from it otherwise.
        """
        with self._fenced(lease) as tx:
            steps = tx.scalar(select(trials.c.steps).where(trials.c.id == lease.trial_id))
            assert steps is not None
            assert checkpoint.step <= steps, "the rows up to the checkpoint are not committed"
            mine = checkpoints.c.trial_id == lease.trial_id
            paths = tx.scalars(select(checkpoints.c.path).where(mine)).all()
            tx.execute(delete(checkpoints).where(mine))
            tx.execute(
                insert(checkpoints).values(
                    trial_id=lease.trial_id,
                    attempt_id=lease.attempt_id,
                    step=checkpoint.step,
                    path=checkpoint.path,
                    digest=checkpoint.digest,
                )
            )
        return [path for path in paths if path != checkpoint.path]

    def finish(
        self,
        lease: Lease,
        outcome: Outcome,
        *,
        chunk: Chunk | None = None,
        report: Report | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Commit the last rows, the last report and the outcome as one.

        Gives the paths of the checkpoints that nobody needs any more.
        """
        with self._fenced(lease) as tx:
            if chunk is not None:
                self._append(tx, lease, chunk)
            if report is not None:
                self._report(tx, lease, report, attrs or {})
            self._end_trial(tx, lease.trial_id, lease.study_id, outcome)
            self._end_attempt(tx, lease.attempt_id, "finished", outcome.kind)
            mine = checkpoints.c.trial_id == lease.trial_id
            paths = tx.scalars(select(checkpoints.c.path).where(mine)).all()
            tx.execute(delete(checkpoints).where(mine))
        return list(paths)

    def release(self, lease: Lease, ending: str, reason: str) -> None:
        """End the attempt and leave the trial to the next worker."""
        with self._fenced(lease) as tx:
            self._end_attempt(tx, lease.attempt_id, ending, reason)

    def renew(self, lease: Lease) -> None:
        """Move the lease's expiry on."""
        with self._fenced(lease):
            pass

    def reap(self, gone: Callable[[str], bool] = lambda _: False) -> int:
        """End the attempts whose lease has expired or whose worker is gone; count them.

        A trial that has lost more attempts than `STALE_RETRIES` fails.
        """
        with self._reading() as tx:
            live = tx.execute(
                select(
                    attempts.c.id,
                    attempts.c.worker,
                    (attempts.c.expires_at < database_time()).label("expired"),
                ).where(attempts.c.live)
            ).all()
        lost = [(row.id, row.expired) for row in live if row.expired or gone(row.worker)]
        return sum(self._reap(attempt_id, expired=expired) for attempt_id, expired in lost)

    def _reap(self, attempt_id: int, *, expired: bool) -> bool:
        with self._writing() as tx:
            still = and_(attempts.c.id == attempt_id, attempts.c.live)
            if expired:
                still = and_(still, attempts.c.expires_at < database_time())
            reason = "its lease expired" if expired else "its worker's process is gone"
            ended = {"live": False, "ended_at": database_time(), "ending": "stale"}
            done = tx.execute(
                update(attempts)
                .where(still)
                .values(**ended, reason=reason)
                .returning(attempts.c.trial_id)
            ).first()
            if done is None:
                return False
            stale = tx.scalar(
                select(func.count())
                .select_from(attempts)
                .where(attempts.c.trial_id == done.trial_id, attempts.c.ending == "stale")
            )
            if stale is not None and stale > STALE_RETRIES:
                study_id = tx.scalar(select(trials.c.study_id).where(trials.c.id == done.trial_id))
                assert study_id is not None
                sentence = f"Its worker was lost {stale} times; the last time, {reason}."
                outcome = Outcome(kind=FAILED, reason=sentence)
                self._end_trial(tx, done.trial_id, study_id, outcome)
        return True

    def _append(self, tx: Connection, lease: Lease, chunk: Chunk) -> None:
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

    def _report(
        self, tx: Connection, lease: Lease, report: Report, attrs: Mapping[str, Any]
    ) -> None:
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
        self._update_trial(tx, lease, attrs=dict(attrs))

    def _update_trial(self, tx: Connection, lease: Lease, **values: Any) -> None:
        revision = _next_revision(tx, lease.study_id)
        tx.execute(
            update(trials).where(trials.c.id == lease.trial_id).values(revision=revision, **values)
        )

    def _end_trial(self, tx: Connection, trial_id: int, study_id: int, outcome: Outcome) -> None:
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
                revision=_next_revision(tx, study_id),
            )
        )

    def _end_attempt(self, tx: Connection, attempt_id: int, ending: str, reason: str) -> None:
        tx.execute(
            update(attempts)
            .where(attempts.c.id == attempt_id)
            .values(live=False, ended_at=database_time(), ending=ending, reason=reason)
        )

    # --- transactions

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self.engine.execution_options(writes=True).begin() as tx:
            yield tx

    @contextmanager
    def _fenced(self, lease: Lease) -> Iterator[Connection]:
        """Begin a transaction that stops unless the attempt is still live; it renews the lease."""
        with self._writing() as tx:
            done = tx.execute(
                update(attempts)
                .where(
                    attempts.c.id == lease.attempt_id,
                    attempts.c.number == lease.number,
                    attempts.c.live,
                )
                .values(expires_at=database_time() + self.lease_seconds)
            )
            if done.rowcount != 1:
                raise LeaseLost(
                    f"attempt {lease.number} at the trial was given up for lost and its token is "
                    "refused; another attempt has the trial"
                )
            yield tx


def _locked_study(study_id: int) -> Any:
    """Select a study's row for update; on SQLite the transaction itself is the lock."""
    return select(studies).where(studies.c.id == study_id).with_for_update()


def _next_revision(tx: Connection, study_id: int) -> int:
    return int(
        tx.execute(
            update(studies)
            .where(studies.c.id == study_id)
            .values(revision=studies.c.revision + 1)
            .returning(studies.c.revision)
        ).scalar_one()
    )
