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

from collections.abc import Mapping
from typing import Any

from sqlalchemy import and_, delete, insert, select, update

from tuner.curves import Chunk
from tuner.errors import UsageError
from tuner.ledger import governing, rows, versions
from tuner.ledger.leasing import Leases
from tuner.ledger.records import (
    FINISHED,
    CheckpointRecord,
    Lease,
    Report,
    StudyRecord,
    specification,
)
from tuner.ledger.retrying import again
from tuner.ledger.tables import checkpoints, studies, trials
from tuner.outcome import RUNNING, Outcome
from tuner.spec import ParameterValue, StudySpec


class Ledger(Leases):
    """The ledger in one database. Thread-safe: every call uses a connection of its own."""

    # --- studies

    @again
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
            rows.one_submits(tx)
            row = tx.execute(
                select(studies)
                .where(studies.c.name == spec.study.name)
                .order_by(studies.c.version.desc())
            ).first()
            known = specification(row.spec) if row else None
            if row is None or known is None:
                study_id = versions.create(tx, spec, 1, limit=limit, workload=workload)
            elif known.digest() == spec.digest():
                study_id = row.id
                if known.budget != spec.budget:
                    governing.reopen(tx, row)
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

    @again
    def settle(self, study_id: int, settled: Mapping[str, Any]) -> Mapping[str, Any]:
        """Store what the first start settled on, once; give what is stored."""
        with self._writing() as tx:
            first = and_(studies.c.id == study_id, studies.c.settled.is_(None))
            tx.execute(update(studies).where(first).values(settled=dict(settled)))
            stored = tx.scalar(select(studies.c.settled).where(studies.c.id == study_id))
        assert stored is not None
        return dict(stored)

    # --- training

    @again
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
            if study_attrs:  # the revision has locked the study's row
                here = studies.c.id == lease.study_id
                known = tx.scalar(select(studies.c.attrs).where(here)) or {}
                tx.execute(update(studies).where(here).values(attrs={**known, **study_attrs}))

    @again
    def append(self, lease: Lease, chunk: Chunk) -> None:
        """Commit rows of the curve; what was committed before is dropped from them.

        Only `finish` takes an evaluation at step 0 that no row follows.
        """
        with self._fenced(lease) as tx:
            rows_now = rows.append_rows(tx, lease, chunk)
            if rows_now:
                rows.keep_of_trial(tx, lease, **rows_now)

    @again
    def report(
        self, lease: Lease, chunk: Chunk, report: Report, *, attrs: Mapping[str, Any]
    ) -> None:
        """Commit rows up to a rung, the report there, and the decision to go on."""
        assert not report.pruned, "a pruned trial is finished, with its report"
        with self._fenced(lease) as tx:
            rows_now = rows.append_rows(tx, lease, chunk)
            if rows.add_report(tx, lease, report):
                rows.update_trial(tx, lease, **rows_now, attrs=dict(attrs))
            elif rows_now:
                rows.keep_of_trial(tx, lease, **rows_now)

    @again
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

    @again
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
        with self._ending(lease, FINISHED, outcome.kind) as tx:
            if tx is None:
                return []
            last = {} if chunk is None else rows.append_rows(tx, lease, chunk)
            if report is not None and rows.add_report(tx, lease, report):
                last["attrs"] = dict(attrs or {})
            rows.end_trial(tx, lease.trial_id, lease.study_id, outcome, **last)
            mine = delete(checkpoints).where(checkpoints.c.trial_id == lease.trial_id)
            return list(tx.scalars(mine.returning(checkpoints.c.path)))

    @again
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
