"""Counts over the whole ledger, for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Engine, Select, and_, func, or_, select

from tuner.core.outcome import RUNNING
from tuner.ledger.event_tables import notifications
from tuner.ledger.reading import Reader
from tuner.ledger.retrainings import overdue
from tuner.ledger.tables import (
    IS_LIVE,
    attempts,
    database_time,
    published_trials,
    studies,
    trials,
)

TARGETS = ("optuna", "mlflow")
UNSENT = ("waiting", "abandoned")
LATE_SECONDS, DAY = 900.0, 86_400.0
"""When a notification is late that nobody tries; how long an abandoned one is counted."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Counts over all studies, as of one moment."""

    studies: Mapping[str, int]  # by state
    trials: Mapping[str, int]  # by state, without imported ones
    leases: int  # live attempts
    expired: int  # live attempts whose lease has expired
    overdue: int  # studies whose retraining is overdue
    unsent: Mapping[str, int]  # notifications that are late, or were abandoned within a day
    unpublished: Mapping[str, int]  # ended trials whose outcome is not published, by target


def totals(engine: Engine) -> Totals:
    """Count all. Raise `UnavailableError` while the database is unreachable."""
    number = func.count().label("number")
    by_study = select(studies.c.state, number).group_by(studies.c.state)
    ours = ~trials.c.imported
    by_trial = select(trials.c.state, number).where(ours).group_by(trials.c.state)
    live = select(func.count()).select_from(attempts).where(IS_LIVE)
    late = live.where(attempts.c.expires_at < database_time())
    sent = notifications.c
    waits = or_(sent.error.is_not(None), sent.due_at < database_time() - LATE_SECONDS)
    failed = or_(
        and_(sent.state == "waiting", waits),
        and_(sent.state == "abandoned", sent.ended_at > database_time() - DAY),
    )
    by_notification = (
        select(notifications.c.state, number).where(failed).group_by(notifications.c.state)
    )
    late_retrainings = len(overdue(Reader(engine)))
    with engine.begin() as tx:
        unsent = {row.state: row.number for row in tx.execute(by_notification)}
        return Totals(
            studies={row.state: row.number for row in tx.execute(by_study)},
            trials={row.state: row.number for row in tx.execute(by_trial)},
            leases=tx.scalar(live) or 0,
            expired=tx.scalar(late) or 0,
            overdue=late_retrainings,
            unsent={state: unsent.get(state, 0) for state in UNSENT},
            unpublished={target: tx.scalar(_unpublished(target)) or 0 for target in TARGETS},
        )


def _unpublished(target: str) -> Select[int]:
    there = and_(
        published_trials.c.trial_id == trials.c.id,
        published_trials.c.target == target,
        published_trials.c.final,
    )
    return (
        select(func.count())
        .select_from(trials.outerjoin(published_trials, there))
        .where(
            ~trials.c.imported,  # MLflow never gets these
            trials.c.state != RUNNING,
            published_trials.c.trial_id.is_(None),
        )
    )
