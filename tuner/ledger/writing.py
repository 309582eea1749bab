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

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, and_, delete, insert, select, update

from tuner.curves import Chunk
from tuner.errors import LeaseLost, UsageError
from tuner.ledger import rows, versions
from tuner.ledger.reading import Reader, has_live_attempt, read_trials
from tuner.ledger.records import (
    OPEN,
    OUT_OF_MEMORY,
    CheckpointRecord,
    Claim,
    Lease,
    Report,
    StudyRecord,
)
from tuner.ledger.tables import (
    attempts,
    checkpoints,
    database_time,
    studies,
    trials,
)
from tuner.outcome import FAILED, RUNNING, Outcome
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
        self,
        spec: StudySpec,
        *,
        limit: int,
        workload: Mapping[str, Any],
        combinations: int | None = None,
    ) -> tuple[StudyRecord, bool]:
        """Create the study, or set the limit of the one with its name; the flag says which.

        Where the space has changed, that is a new version of it, with the trials of the earlier
        ones that lie in the new space imported. There are never more trials than `combinations`
        less what those have tried. Raises `UsageError` when anything else but the budget differs
        from the existing study, or when another one would have its title.
        """
        with self._writing() as tx:
            row = tx.execute(
                select(studies.c.id, studies.c.spec, studies.c.version)
                .where(studies.c.name == spec.study.name)
                .order_by(studies.c.version.desc())
            ).first()
            known = StudySpec.model_validate_json(row.spec) if row else None
            if row is None or known is None:
                study_id = versions.create(tx, spec, 1, limit=limit, workload=workload)
            elif known.digest() == spec.digest():
                study_id = row.id
            elif known.model_copy(update={"space": spec.space}).digest() == spec.digest():
                version = row.version + 1
                study_id = versions.create(tx, spec, version, limit=limit, workload=workload)
            else:
                raise UsageError(
                    f"study {spec.study.name!r} exists and differs in more than its budget and its "
                    "space; give this one another name"
                )
            if combinations is not None:
                limit = min(limit, combinations - versions.tried(tx, study_id))
            tx.execute(
                update(studies)
                .where(studies.c.id == study_id)
                .values(limit=limit, spec=spec.model_dump_json())
            )
        return self.study(spec.study.name), row is None or row.id != study_id

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
            study = tx.execute(rows.locked_study(study_id)).one()
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
                trial_id = rows.reserve(tx, study)
            lease, checkpoint = rows.lease(
                tx, study_id, trial_id, worker, environment, self.lease_seconds
            )
            trial = read_trials(tx, trials.c.id == trial_id)[0]
            halvings = rows.count_attempts(tx, trial_id, OUT_OF_MEMORY)
        return Claim(lease=lease, trial=trial, checkpoint=checkpoint, out_of_memory=halvings)

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
            rows.update_trial(
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
            rows.append_rows(tx, lease, chunk)

    def report(
        self, lease: Lease, chunk: Chunk, report: Report, *, attrs: Mapping[str, Any]
    ) -> None:
        """Commit rows up to a rung, the report there, and the decision to go on."""
        assert not report.pruned, "a pruned trial is finished, with its report"
        with self._fenced(lease) as tx:
            rows.append_rows(tx, lease, chunk)
            rows.add_report(tx, lease, report, attrs)

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
                rows.append_rows(tx, lease, chunk)
            if report is not None:
                rows.add_report(tx, lease, report, attrs or {})
            rows.end_trial(tx, lease.trial_id, lease.study_id, outcome)
            rows.end_attempt(tx, lease.attempt_id, "finished", outcome.kind)
            mine = checkpoints.c.trial_id == lease.trial_id
            paths = tx.scalars(select(checkpoints.c.path).where(mine)).all()
            tx.execute(delete(checkpoints).where(mine))
        return list(paths)

    def release(self, lease: Lease, ending: str, reason: str) -> None:
        """End the attempt and leave the trial to the next worker, unless the study is stopped."""
        with self._fenced(lease) as tx:
            rows.end_attempt(tx, lease.attempt_id, ending, reason)
            rows.cancel_if_stopped(tx, lease.trial_id)

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

    def forget_checkpoints(self) -> list[str]:
        """Forget the checkpoints of trials that have ended otherwise than by `finish`.

        Gives their paths, for whoever calls to remove.
        """
        ended = select(trials.c.id).where(trials.c.state != RUNNING)
        with self._writing() as tx:
            found = tx.execute(
                delete(checkpoints)
                .where(checkpoints.c.trial_id.in_(ended))
                .returning(checkpoints.c.path)
            )
            return [row.path for row in found]

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
            stale = rows.count_attempts(tx, done.trial_id, "stale")
            if stale > STALE_RETRIES:
                study_id = tx.scalar(select(trials.c.study_id).where(trials.c.id == done.trial_id))
                assert study_id is not None
                sentence = f"Its worker was lost {stale} times; the last time, {reason}."
                outcome = Outcome(kind=FAILED, reason=sentence)
                rows.end_trial(tx, done.trial_id, study_id, outcome)
            rows.cancel_if_stopped(tx, done.trial_id)
        return True

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
