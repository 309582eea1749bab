"""What attempts commit while they train, many of them in one transaction."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    delete,
    false,
    func,
    insert,
    or_,
    select,
    update,
)

from tuner.core.curves import Chunk
from tuner.ledger import rows
from tuner.ledger.leases import ATTEMPTS
from tuner.ledger.records import FINISHED, AttemptLease, Drawn, Entry, excess_attrs
from tuner.ledger.tables import (
    attempts,
    checkpoints,
    chunks,
    database_time,
    reports,
    studies,
    trials,
)


def end_attempts(tx: Connection, entries: Sequence[Entry]) -> set[AttemptLease]:
    """Fence the entries that have an outcome, ending their attempts; return the live leases."""
    live: set[AttemptLease] = set()
    for kind in sorted({entry.outcome.kind for entry in entries if entry.outcome}):
        ending = [entry.lease for entry in entries if entry.outcome and entry.outcome.kind == kind]
        ended = rows.attempt_ended(FINISHED, kind)
        live |= ATTEMPTS.fence(tx, ending, ended | rows.measured(entries[0].environment))
    return live


def ended_before(tx: Connection, leases: Collection[AttemptLease]) -> set[AttemptLease]:
    """Return the leases of attempts that have ended with their trial's outcome.

    Only its holder ends an attempt so: the commit was this call's, whose connection was lost.
    """
    tokens = {(lease.row_id, lease.token): lease for lease in leases}
    ended = tx.execute(
        select(attempts.c.id, attempts.c.number).where(
            attempts.c.id.in_([lease.row_id for lease in leases]),
            attempts.c.ending == FINISHED,
        )
    )
    return {tokens[key] for row in ended if (key := (row.id, row.number)) in tokens}


def put(tx: Connection, entries: Sequence[Entry]) -> None:
    """Write fenced entries of one study; delete the references to checkpoints of ended trials."""
    found = _before(tx, entries)
    late = _late(tx, entries, found)
    changes = [
        Change(entry, found[entry.lease.trial_id], is_late=entry.lease.trial_id in late)
        for entry in entries
    ]
    _insert(tx, chunks, [change.chunk for change in changes if change.chunk])
    _insert(tx, reports, [change.report for change in changes if change.report])
    searched = [change for change in changes if change.entry.outcome or change.report]
    ended = [change for change in searched if change.entry.outcome]
    went_on = [change for change in searched if not change.entry.outcome]
    kept = [change for change in changes if change.chunk and change not in searched]
    _update(tx, kept)
    if ended:
        _end_rows(tx, ended)
    # last, since this locks the study's row, for which all workers wait
    _update_at_next_revision(
        tx,
        entries[0].lease.study_id,
        [
            ([change.trial for change in went_on], {}),
            ([change.trial for change in ended], {"ended_at": database_time()}),
        ],
    )


def _end_rows(tx: Connection, ended: Sequence[Change]) -> None:
    """Write what else there is of trials that end: tracebacks, and the checkpoints they keep."""
    entries = [change.entry for change in ended]
    raised = {e.lease.row_id: e.traceback for e in entries if e.traceback is not None}
    if raised:
        query = update(attempts).where(attempts.c.id == bindparam("attempt"))
        columns = [{"attempt": key, "traceback": text} for key, text in raised.items()]
        tx.execute(query, columns)
    spared = [
        and_(checkpoints.c.trial_id == e.lease.trial_id, checkpoints.c.step == e.kept_step)
        for e in entries
        if e.kept_step is not None
    ]
    mine = checkpoints.c.trial_id.in_([entry.lease.trial_id for entry in entries])
    tx.execute(delete(checkpoints).where(mine, ~or_(false(), *spared)))
    _insert(tx, checkpoints, [_reference(entry) for entry in entries if entry.kept])


def _reference(entry: Entry) -> dict[str, Any]:
    """Return the columns of the checkpoint that a trial keeps."""
    assert entry.kept is not None
    return rows.reference(entry.lease, entry.kept)


class Change:
    """The changes of the tables by an entry, without what was committed before."""

    def __init__(
        self,
        entry: Entry,
        before: Any,  # its row of `_before`
        *,
        is_late: bool,  # the evaluation at the end of the committed rows, if there is one
    ) -> None:
        lease, self.entry = entry.lease, entry
        self.trial: dict[str, Any] = {"trial": lease.trial_id}  # columns of its row
        self.chunk: dict[str, Any] | None = None
        self.report: dict[str, Any] | None = None
        fresh = entry.chunk.after(before.steps, evaluated=not is_late).delayed(before.last_time)
        ends = entry.outcome is not None  # else the next chunk would begin at the same step
        if fresh.next_step > before.steps or (ends and len(fresh.eval_steps)):
            assert fresh.first_step == before.steps, "the rows before these are missing"
            self.chunk = {
                "trial_id": lease.trial_id,
                "first_step": fresh.first_step,
                "next_step": fresh.next_step,
                "attempt_id": lease.row_id,
                "data": fresh.to_bytes(),
            }
        self.trial["steps"] = fresh.next_step if self.chunk else before.steps
        self.trial["last_time"] = fresh.last_time if self.chunk else before.last_time
        attrs: Mapping[str, Any] = before.attrs
        if entry.report and (before.reported is None or entry.report.step > before.reported):
            assert math.isfinite(entry.report.value), "without a finite value it has diverged"
            self.report = {"trial_id": lease.trial_id, **vars(entry.report)}
            attrs = entry.attrs
        if entry.outcome or self.report:
            self.trial["attrs"] = dict(attrs)
        if entry.outcome:
            self.trial["attrs"] |= excess_attrs(entry.outcome.excesses or {})
            self.trial |= rows.outcome_columns(entry.outcome)


def draw(
    tx: Connection,
    drawn: Sequence[Drawn],
    *,
    study_attrs: Mapping[str, Any],
    asked_revision: int,
) -> None:
    """Store the parameters of trials of one study, all of which are fenced."""
    study_id = drawn[0].lease.study_id
    parameters = [
        {
            "trial": one.lease.trial_id,
            "params": dict(one.params),
            "attrs": dict(one.attrs),
            "asked_revision": asked_revision,
        }
        for one in drawn
    ]
    _update_at_next_revision(tx, study_id, [(parameters, {})])  # locks the study's row
    if study_attrs:
        here = studies.c.id == study_id
        known = tx.scalar(select(studies.c.attrs).where(here)) or {}
        tx.execute(update(studies).where(here).values(attrs={**known, **study_attrs}))


def _before(tx: Connection, entries: Sequence[Entry]) -> dict[int, Any]:
    """Read the trials of entries as they are, by id, with the steps of their last reports."""
    reported = (
        select(func.max(reports.c.step)).where(reports.c.trial_id == trials.c.id).scalar_subquery()
    )
    query = select(
        trials.c.id, trials.c.steps, trials.c.last_time, trials.c.attrs, reported.label("reported")
    ).where(trials.c.id.in_([entry.lease.trial_id for entry in entries]))
    return {row.id: row for row in tx.execute(query)}


def _late(tx: Connection, entries: Sequence[Entry], before: Mapping[int, Any]) -> set[int]:
    """Return the trials with an evaluation at the end of their committed rows that is missing."""
    late = set()
    for entry in entries:
        trial_id = entry.lease.trial_id
        steps = before[trial_id].steps
        if steps == 0 or steps not in entry.chunk.eval_steps:
            continue
        last = and_(chunks.c.trial_id == trial_id, chunks.c.next_step == steps)
        stored = tx.execute(select(chunks.c.first_step, chunks.c.data).where(last)).all()
        if not any(steps in Chunk.from_bytes(*row).eval_steps for row in stored):
            late.add(trial_id)
    return late


def _insert(tx: Connection, table: Any, made: Sequence[dict[str, Any]]) -> None:
    if made:
        tx.execute(insert(table), made)


def _update(tx: Connection, changes: Sequence[Change]) -> None:
    """Update rows of trials that search does not see."""
    if changes:
        query = update(trials).where(trials.c.id == bindparam("trial"))
        tx.execute(query, [change.trial for change in changes])


Values = tuple[Sequence[dict[str, Any]], Mapping[str, Any]]
"""Columns of trials, all the same ones with the id as `trial`; and expressions of further ones."""


def _update_at_next_revision(tx: Connection, study_id: int, kinds: Sequence[Values]) -> None:
    """Update rows of trials as of the study's next revision; one commit, so one revision.

    The study's row is locked from here on, so a single trial takes a single statement where the
    database has one for both rows.
    """
    found = [(columns, more) for columns, more in kinds if columns]
    if tx.dialect.name == "postgresql" and sum(len(columns) for columns, _ in found) == 1:
        ((own,), more), bumped = found[0], rows.at_next_revision(study_id).cte("bumped")
        changed = {name: value for name, value in own.items() if name != "trial"}
        changed["revision"] = select(bumped.c.revision).scalar_subquery()
        # with its values, since parameters would be the study's columns too
        tx.execute(update(trials).where(trials.c.id == own["trial"]).values(**changed, **more))
    elif found:
        number = rows.next_revision(tx, study_id)
        by_id = update(trials).where(trials.c.id == bindparam("trial"))
        for columns, more in found:
            tx.execute(by_id.values(**more), [one | {"revision": number} for one in columns])
