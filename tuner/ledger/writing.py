"""The ledger: the source of truth about studies, trials, attempts, curves and outcomes.

Invariants, whichever process calls or dies:
- a study never reserves more trials than its limit, and a number belongs to one trial for good;
- a trial has at most one live attempt, and ends in exactly one outcome;
- what an attempt commits is refused with `LeaseLost` once the attempt is no longer live: every
  such transaction begins with an UPDATE that must change the attempt's row;
- rows of a curve are consecutive from step 0, and a committed row is never written again;
- every commit that search can see advances the revision of the study.

Optuna's and MLflow's rows are projections of these tables (`tuner.tracking`). No transaction
here stays open across a call into either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import and_, delete, insert, or_, select, true, update

from tuner.config import LEAST_DECIDING, ParameterValue, StudySpec
from tuner.core import curves
from tuner.core.curves import Chunk
from tuner.core.errors import UsageError
from tuner.core.outcome import Outcome
from tuner.core.redaction import redacted_values
from tuner.ledger import adding, entries, events, locks, managing, rows, versions
from tuner.ledger.attempts import Attempts, refused
from tuner.ledger.decoding import settled_of, study_of
from tuner.ledger.events import Act
from tuner.ledger.leases import ATTEMPTS, renewed
from tuner.ledger.records import (
    AttemptLease,
    CheckpointRecord,
    Committed,
    Drawn,
    Entry,
    Report,
    StudyRecord,
)
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import checkpoints, studies, trials


class Ledger(Attempts):
    """The ledger in one database. Thread-safe: every call uses a connection of its own."""

    # --- studies

    @retry_on_disconnect
    def submit(
        self,
        spec: StudySpec,
        *,
        limit: int,
        workload: Mapping[str, Any],
        combinations: int | None = None,
        act: Act | None = None,
    ) -> tuple[StudyRecord, bool]:
        """Create the study, or set the limit of the one with its name; the flag is true if created.

        Where the space has changed, that is a new version of it, with the trials of the earlier
        ones that lie in the new space imported. There are never more trials than `combinations`
        less what those have tried, beside those that a person added. Raise `UsageError` when
        anything else but the budget differs from the existing study, or when another one would
        have its title, and `WorkloadError` when code or data differ.
        """
        with self._writing() as tx:
            # no transaction sees what another is creating
            locks.take(tx, locks.SUBMIT)
            row = tx.execute(
                select(studies)
                .where(studies.c.name == spec.study.name)
                .order_by(studies.c.version.desc())
            ).first()
            known = study_of(row).spec if row else None
            if row is not None:
                function = spec.workload.function
                versions.refuse_other_workload(row.name, function, row.workload, workload)
            if row is None or known is None:
                study_id = versions.create(tx, spec, 1, limit=limit, workload=workload)
                events.record(tx, spec.study.name, events.SUBMITTED, act, version=1)
            elif known.digest() == spec.digest():
                study_id = row.id
                if changed := _changes(known, spec):
                    events.record(tx, row.name, events.CHANGED, act, **changed)
                if known.budget != spec.budget:
                    managing.reopen(tx, row)
            elif known.model_copy(update={"space": spec.space}).digest() == spec.digest():
                version = row.version + 1
                study_id = versions.create(tx, spec, version, limit=limit, workload=workload)
                events.record(tx, row.name, events.SUBMITTED, act, version=version)
            else:
                raise UsageError(
                    f"study {spec.study.name!r} exists and differs in more than its budget and its "
                    "space; give this one another name"
                )
            if row is not None and row.id == study_id and spec.deciding_trials:
                limit = _not_below(row.reserved, limit, spec)
            if combinations is not None:
                own = combinations - versions.tried(tx, study_id)
                limit = min(limit, own + adding.added(tx, study_id))
            tx.execute(
                update(studies)
                .where(studies.c.id == study_id)
                .values(limit=limit, spec=spec.model_dump_json())
            )
        return self.study(spec.study.name), row is None or row.id != study_id

    @retry_on_disconnect
    def settle(self, study_id: int, settled: Mapping[str, Any]) -> Mapping[str, Any]:
        """Store what the first start settled on, once; return what is stored."""
        with self._writing() as tx:
            first = and_(studies.c.id == study_id, studies.c.settled.is_(None))
            tx.execute(update(studies).where(first).values(settled=dict(settled)))
            stored = tx.scalar(select(studies.c.settled).where(studies.c.id == study_id))
        return settled_of(f"study {study_id}", stored)

    # --- training

    def draw(
        self,
        lease: AttemptLease,
        params: Mapping[str, ParameterValue],
        *,
        attrs: Mapping[str, Any],
        study_attrs: Mapping[str, Any],
        asked_revision: int,
    ) -> None:
        """Store the parameters of one trial, see `draw_together`."""
        drawn = Drawn(lease=lease, params=params, attrs=attrs)
        if self.draw_together([drawn], study_attrs=study_attrs, asked_revision=asked_revision):
            raise refused(lease)

    @retry_on_disconnect
    def draw_together(
        self,
        drawn: Sequence[Drawn],
        *,
        study_attrs: Mapping[str, Any],
        asked_revision: int,
    ) -> frozenset[AttemptLease]:
        """Store the parameters of a study's trials; return the leases that are lost.

        The draws saw the study's revision `asked_revision`, and each of them those before it.
        """
        leases = frozenset(one.lease for one in drawn)
        with self._writing() as tx:
            live = ATTEMPTS.fence(tx, leases, renewed(self.lease_seconds))
            kept = [one for one in drawn if one.lease in live]
            if kept:
                entries.draw(tx, kept, study_attrs=study_attrs, asked_revision=asked_revision)
        return leases - live

    def append(self, lease: AttemptLease, chunk: Chunk) -> None:
        """Commit rows of one curve, see `commit`."""
        self._commit_one(Entry(lease=lease, chunk=chunk))

    def report(
        self, lease: AttemptLease, chunk: Chunk, report: Report, *, attrs: Mapping[str, Any]
    ) -> None:
        """Commit rows of one trial up to a rung, the report there, and the decision to go on."""
        assert not report.pruned, "a pruned trial is finished, with its report"
        self._commit_one(Entry(lease=lease, chunk=chunk, report=report, attrs=attrs))

    def finish(
        self,
        lease: AttemptLease,
        outcome: Outcome,
        *,
        chunk: Chunk | None = None,
        report: Report | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Commit the last rows, the last report and the outcome of one trial."""
        rows_now = curves.empty() if chunk is None else chunk
        entry = Entry(
            lease=lease, chunk=rows_now, report=report, attrs=attrs or {}, outcome=outcome
        )
        self._commit_one(entry)

    def _commit_one(self, entry: Entry) -> None:
        done = self.commit([entry])
        if done.lost:
            raise refused(entry.lease)

    @retry_on_disconnect
    def commit(self, together: Sequence[Entry]) -> Committed:
        """Commit entries, see `commit_once`, and retry when the connection is lost."""
        return self.commit_once(together)

    def commit_once(self, together: Sequence[Entry]) -> Committed:
        """Commit entries of a study's trials, each whole or, where its lease is lost, not at all.

        Rows and evaluations that were committed before are dropped, and so is a report. An
        evaluation at the end of the committed rows comes with the next row, or with an outcome.
        """
        going_on = [entry.lease for entry in together if entry.outcome is None]
        ended_before: set[AttemptLease] = set()
        with self._writing() as tx:
            live = ATTEMPTS.fence(tx, going_on, renewed(self.lease_seconds)) if going_on else set()
            live |= entries.end_attempts(tx, together)
            refused_ends = [e.lease for e in together if e.outcome and e.lease not in live]
            if refused_ends:
                ended_before = entries.ended_before(tx, refused_ends)
            kept = [entry for entry in together if entry.lease in live]
            if kept:
                entries.put(tx, kept)
        lost = frozenset(entry.lease for entry in together) - live - ended_before
        return Committed(lost=lost)

    @retry_on_disconnect
    def save_checkpoint(
        self,
        lease: AttemptLease,
        checkpoint: CheckpointRecord,
        *,
        kept_step: int = 0,
        environment: Mapping[str, Any] | None = None,
    ) -> list[CheckpointRecord]:
        """Commit the reference to a checkpoint; return the checkpoints that it replaces.

        It replaces all but that of `kept_step`. The rows up to it must be committed already, or no
        attempt could resume from it.
        """
        now = rows.measured(environment) | renewed(self.lease_seconds)
        with self._fenced(lease, now) as tx:
            steps = tx.scalar(select(trials.c.steps).where(trials.c.id == lease.trial_id))
            assert steps is not None
            assert checkpoint.step <= steps, "the rows up to the checkpoint are not committed"
            step = checkpoints.c.step
            replaced = and_(
                checkpoints.c.trial_id == lease.trial_id,
                or_(step == checkpoint.step, step != kept_step),
            )
            before = [record for _, _, record in rows.read_checkpoints(tx, replaced)]
            tx.execute(delete(checkpoints).where(replaced))
            tx.execute(insert(checkpoints).values(rows.reference(lease, checkpoint)))
        return [one for one in before if one.path != checkpoint.path]

    @retry_on_disconnect
    def forget_checkpoints(self) -> list[CheckpointRecord]:
        """Delete references to checkpoints of ended trials; `finish` has already deleted its own.

        Return them; the caller removes the files.
        """
        with self._writing() as tx:
            return rows.forget_checkpoints(tx, true())


def _changes(known: StudySpec, spec: StudySpec) -> dict[str, Any]:
    """Return the tables of a study that change: for each key what it was and is, if no secret."""
    found: dict[str, Any] = {}
    for table in ("budget", "retrain", "notify"):
        was, now = (getattr(one, table).model_dump(mode="json") for one in (known, spec))
        if was != now:
            found[table] = redacted_values(_differences(was, now))
    return found


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs, by its key; those of tables within a table have dots."""
    found: dict[str, Any] = {}
    for key in {**was, **now}:
        before, after = was.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            inner = _differences(before, after)
            found |= {f"{key}.{name}": pair for name, pair in inner.items()}
        elif before != after:
            found[key] = [before, after]
    return found


def _not_below(reserved: int, limit: int, spec: StudySpec) -> int:
    """Return the limit of an existing study, whose search may have had the whole budget before."""
    limit = min(max(limit, reserved), spec.budget.trials)
    few = spec.budget.trials - limit < LEAST_DECIDING
    return spec.budget.trials if few else limit
