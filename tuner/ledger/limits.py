"""The rules of a budget by which a study ends before its trials are spent.

A worker checks them before it claims a trial: once without a lock, only for the rules that the
budget has, and, where one holds, again under the study's lock before the study ends.
"""

from __future__ import annotations

from sqlalchemy import Connection, and_, func, select

from tuner.config import BudgetTable
from tuner.core.outcome import COMPLETED, DIVERGED, PRUNED
from tuner.ledger import managing
from tuner.ledger.reading import Reader
from tuner.ledger.records import OPEN, StudyRecord
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import VIOLATION, attempts, database_time, trials


@retry_on_disconnect
def end_when_due(ledger: Reader, study: StudyRecord) -> StudyRecord | None:
    """End an open study if a rule holds, and return it; else return None."""
    if not _has_rules(study.spec.budget):
        return None
    with ledger.engine.begin() as tx:
        if _due(tx, study) is None:
            return None
    with managing.locked(ledger, study) as (tx, row):
        reason = _due(tx, study)
        if row.state != OPEN or reason is None:
            return None
        managing.end(tx, row, reason)
    return ledger.study(study.name)


@retry_on_disconnect
def end(ledger: Reader, study: StudyRecord, reason: str) -> StudyRecord | None:
    """End a study that is open, with this reason; return None if it is not open."""
    with managing.locked(ledger, study) as (tx, row):
        if row.state != OPEN:
            return None
        managing.end(tx, row, reason)
    return ledger.study(study.name)


TIME_IS_UP = "seconds from the first trial on are up"
"""Part of the reason of a study that has ended by `wall_seconds`."""


def _has_rules(budget: BudgetTable) -> bool:
    rules = (budget.wall_seconds, budget.compute_seconds, budget.no_improvement)
    return any(rule is not None for rule in rules)


def _due(tx: Connection, study: StudyRecord) -> str | None:
    """Return the reason of the first rule that holds; None if none does."""
    budget, own = study.spec.budget, and_(trials.c.study_id == study.id, ~trials.c.imported)
    search = 1 - study.deciding_share  # the share of the search
    if budget.wall_seconds is not None:
        first = select(database_time() - trials.c.created_at).where(own).order_by(trials.c.number)
        began = tx.scalar(first.limit(1))
        if began is not None and began >= search * budget.wall_seconds:
            return f"Its {search * budget.wall_seconds:g} {TIME_IS_UP}."
    if budget.compute_seconds is not None:
        spent = func.sum(
            func.coalesce(attempts.c.ended_at, database_time()) - attempts.c.started_at
        )
        seconds = tx.scalar(select(spent).select_from(attempts.join(trials)).where(own)) or 0.0
        most = search * budget.compute_seconds
        if seconds >= most:
            return f"Its attempts have taken {seconds:.0f} of {most:g} seconds."
    if budget.no_improvement is not None:
        since = _ended_since_best(tx, study)
        if since >= budget.no_improvement:
            return f"{since} trials have ended since the best one."
    return None


def _ended_since_best(tx: Connection, study: StudyRecord) -> int:
    """Count the study's uncancelled trials that ended after the best one; 0 without a best one."""
    here = trials.c.study_id == study.id
    value = trials.c.value if study.spec.study.direction == "minimize" else -trials.c.value
    best = tx.execute(
        select(trials.c.revision)
        .where(here, trials.c.state == COMPLETED)
        .order_by(VIOLATION, value, trials.c.number)
        .limit(1)
    ).first()
    if best is None:
        return 0
    later = and_(
        here,
        ~trials.c.imported,
        trials.c.state.in_((COMPLETED, PRUNED, DIVERGED)),
        trials.c.revision > best.revision,  # trials end in the order of their revisions
    )
    return tx.scalar(select(func.count()).select_from(trials).where(later)) or 0
