"""Counts over the whole ledger, for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Select, and_, case, exists, func, literal_column, or_, select

from tuner.core.outcome import KINDS, RUNNING
from tuner.ledger.decoding import is_number
from tuner.ledger.event_tables import notifications
from tuner.ledger.reading import Reader, has_live_attempt
from tuner.ledger.records import ENDED, OPEN, PAUSED, STOPPED
from tuner.ledger.retrainings import overdue
from tuner.ledger.tables import (
    IS_LIVE,
    IS_RUNNING,
    attempts,
    database_time,
    published_trials,
    studies,
    trials,
)

TARGETS = ("optuna", "mlflow")
UNSENT = ("waiting", "abandoned")
LATE_SECONDS, DAY = 900.0, 86_400.0
"""When a notification is late that nobody tries, or a study that nobody trains; how long an
abandoned notification is counted."""
WAITING = "waiting"
STUDIES, TRIALS = (OPEN, PAUSED, STOPPED, ENDED), (*KINDS, RUNNING, WAITING)
"""The states of studies and of trials."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Counts over all studies, as of one moment."""

    studies: Mapping[str, int]  # by state, as `tuner status` shows it
    trials: Mapping[str, int]  # likewise, without imported ones
    unattended: int  # open studies with trials left that no worker has trained for a while
    leases: int  # live attempts
    expired: int  # live attempts whose lease has expired
    overdue: int  # studies whose retraining is overdue
    unsent: Mapping[str, int]  # notifications that are late, or were abandoned within a day
    unpublished: Mapping[str, int]  # ended trials whose outcome is not published, by target
    unpublished_seconds: Mapping[str, float]  # since the first of these has ended; 0 without any


def totals(engine: Engine) -> Totals:
    """Count all. Raise `UnavailableError` while the database is unreachable."""
    number = func.count().label("number")
    by_study = select(_STUDY_STATE, number).group_by(_STUDY_STATE)
    by_trial = select(_TRIAL_STATE, number).where(~trials.c.imported).group_by(_TRIAL_STATE)
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
        late_trials = {target: tx.execute(_unpublished(target)).one() for target in TARGETS}
        unsent = {row.state: row.number for row in tx.execute(by_notification)}
        return Totals(
            # those that are 0 too, or nobody would see the first one appear
            studies=dict.fromkeys(STUDIES, 0) | {a.state: a.number for a in tx.execute(by_study)},
            trials=dict.fromkeys(TRIALS, 0) | {a.state: a.number for a in tx.execute(by_trial)},
            unattended=tx.scalar(_unattended()) or 0,
            leases=tx.scalar(live) or 0,
            expired=tx.scalar(late) or 0,
            overdue=late_retrainings,
            unsent={state: unsent.get(state, 0) for state in UNSENT},
            unpublished={target: one.number for target, one in late_trials.items()},
            unpublished_seconds={target: _age(one.age) for target, one in late_trials.items()},
        )


_BUSY = exists(trials.c.id).where(trials.c.study_id == studies.c.id, IS_RUNNING)
"""The condition that a study has a trial that has not ended."""
_SPENT = and_(studies.c.state == OPEN, studies.c.reserved >= studies.c.limit, ~_BUSY)
_STUDY_STATE = case((_SPENT, literal_column(f"'{ENDED}'")), else_=studies.c.state).label("state")
_WAITS = and_(IS_RUNNING, ~has_live_attempt(trials.c.id))
_TRIAL_STATE = case((_WAITS, literal_column(f"'{WAITING}'")), else_=trials.c.state).label("state")


def _unattended() -> Select[int]:
    """Count the open studies with trials left that nobody has trained for `LATE_SECONDS`."""
    since = database_time() - LATE_SECONDS
    recently = (
        exists(attempts.c.id)
        .where(attempts.c.trial_id == trials.c.id, trials.c.study_id == studies.c.id)
        .where(or_(IS_LIVE, attempts.c.ended_at > since))
    )
    asked = studies.c.spec.like('%"ask_and_tell":true%')  # by a program, when it pleases
    return (
        select(func.count())
        .select_from(studies)
        .where(studies.c.state == OPEN, or_(studies.c.reserved < studies.c.limit, _BUSY))
        .where(studies.c.created_at < since, ~recently, ~asked)
    )


def _age(age: Any) -> float:
    """Return an age that a clock may have set back; 0 of what is none."""
    return max(0.0, age) if is_number(age) else 0.0


def _unpublished(target: str) -> Select[int, float]:
    """Count the ended trials that are not published, and since when the first of them has ended."""
    there = and_(
        published_trials.c.trial_id == trials.c.id,
        published_trials.c.target == target,
        published_trials.c.final,
    )
    return (
        select(
            func.count().label("number"),
            (database_time() - func.min(trials.c.ended_at)).label("age"),
        )
        .select_from(trials.outerjoin(published_trials, there))
        .where(
            ~trials.c.imported,  # MLflow never gets these
            trials.c.state != RUNNING,
            published_trials.c.trial_id.is_(None),
        )
    )
