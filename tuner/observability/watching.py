"""Watch the ledger for what is to be notified and is no one transaction: ended studies, silence.

Any number of processes may watch: a notification has the same idempotency key whoever writes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

from tuner.config import StudyNotifyTable
from tuner.core.cron import run_key
from tuner.core.errors import TunerError
from tuner.core.outcome import COMPLETED, KINDS, RUNNING
from tuner.ledger import ENDED, OPEN, STOPPED, Reader, StudyRecord, events
from tuner.ledger.deciding import is_undecided
from tuner.ledger.managing import BEING_DELETED, BY_ITSELF
from tuner.ledger.notifications import Notice, Notifications
from tuner.ledger.retrainings import overdue
from tuner.ledger.summaries import Summary, last_attempt, notified, recent, summaries
from tuner.observability import notify
from tuner.observability.logs import logger
from tuner.observability.repeating import repeating

PASS_SECONDS = 5.0
"""Time between two passes of a service that sends."""
RECENT_SECONDS = 86_400.0
"""How long after its last trial a study is told of to receivers of its project or person."""
WATCH_EVERY = 12
"""Passes between two looks at the ledger."""

log = logger(__name__)


@contextmanager
def delivering(ledger: Reader) -> Iterator[None]:
    """Watch and deliver in a thread while the body runs, and once more at its end."""
    turns = count()

    def turn() -> None:
        if next(turns) % WATCH_EVERY == 0:
            watch(ledger)
        notify.deliver(ledger)

    with repeating("notifications", turn, PASS_SECONDS):
        yield
    try:
        watch(ledger)
        notify.deliver(ledger)
    except TunerError as error:
        log.warning(f"notifications wait: {error}")


def watch(ledger: Reader, now: float | None = None) -> None:
    """Write notifications of what the ledger shows; `now` replaces the database's clock."""
    found = [*_of_studies(ledger, now), *_of_retrainings(ledger, now)]
    if found:
        Notifications(ledger).add(found)


def _of_retrainings(ledger: Reader, now: float | None) -> Iterator[Notice]:
    for one in overdue(ledger, now):
        name, limit = one.study.name, one.study.spec.retrain.overdue_hours
        last = run_key(one.since)
        reason = f"No retraining of {name!r} has succeeded since {last}, for more than {limit:g} h."
        yield from notify.notices(
            one.study.spec.retrain.notify,
            on="overdue",
            event=f"overdue {name} {one.since!r}",
            study=name,
            title=f"{name}: retraining overdue",
            content={"study": name, "outcome": "overdue", "since": last, "reason": reason},
        )


def _of_studies(ledger: Reader, now: float | None) -> Iterator[Notice]:
    at = ledger.now() if now is None else now
    watched = {study.id: study for study in notified(ledger)}
    tables: dict[int, list[StudyNotifyTable]] = {
        key: [one.spec.notify] for key, one in watched.items()
    }
    for study, more in _of_projects_and_people(ledger, at):
        watched.setdefault(study.id, study)
        tables.setdefault(study.id, []).extend(more)
    found = summaries(ledger, [*watched.values()]) if watched else {}
    for study in watched.values():
        if study.reason != BEING_DELETED:
            yield from _of_study(ledger, study, tables[study.id], found[study.id], at)


def _of_projects_and_people(
    ledger: Reader, at: float
) -> Iterator[tuple[StudyRecord, list[StudyNotifyTable]]]:
    """Yield the studies that this process has receivers for by their project or submitter.

    Those of the last day alone, so that a new receiver does not get what ended long ago.
    """
    if not notify.has_receivers(os.environ):
        return
    studies = recent(ledger, at - RECENT_SECONDS)
    done = events.latest(ledger, [study.name for study in studies])
    for study in studies:
        by = done[study.name].get(events.SUBMITTED)
        if by is None:  # such as trials that decide, of which their study tells
            continue
        people = {by.os_user, by.db_role or by.os_user}
        if more := notify.receivers_of(os.environ, study.project, sorted(people)):
            yield study, more


def _of_study(
    ledger: Reader,
    study: StudyRecord,
    tables: Sequence[StudyNotifyTable],
    summary: Summary,
    at: float,
) -> Iterator[Notice]:
    notices = partial(_notices, study, tables, summary)
    patience = 60 * study.spec.notify.silent_minutes
    ended = sum(summary.counts[kind] for kind in KINDS)
    best = summary.best
    if best is not None:
        what = f"{study.spec.study.metric} {best.value:.4g}"
        reason = f"Trial {best.number} of {study.name!r} has {what}, the best so far."
        if best.violation:
            reason += " No trial satisfies the constraints; it violates them least."
        yield from notices("new_best", str(best.number), reason)
    for one in summary.silent:
        if one.seconds > patience:
            minutes = f"{one.seconds / 60:.0f} minutes"
            reason = f"Trial {one.trial} of {study.name!r} has measured nothing for {minutes}; "
            reason += f"{one.worker} may hang or be dead."
            yield from notices("stalled", f"{one.trial} {one.worker}", reason)
    if _is_over(study, summary):
        failed = _has_failed(study, summary)
        why = study.reason or f"All {ended} trials have ended."
        if best is not None:
            why += f" Best: {study.spec.study.metric} {best.value:.4g} in trial {best.number}."
            if best.violation:
                why += " No trial satisfies the constraints; it violates them least."
        event = "failed" if failed else "ended"
        yield from notices(event, f"{study.reserved} {ended}", why)
    elif study.state == OPEN and not summary.workers and not _decides(study, summary):
        since = _last_trained(ledger, study)
        if at - since > patience:
            left = max(study.limit - study.reserved, 0) + summary.counts["waiting"]
            trials = (
                f"{left} trials are left of {study.name!r}" if left else f"{study.name!r} waits"
            )
            reason = f"{trials}, and no worker has trained it since {run_key(since)}."
            yield from notices("nobody_trains", repr(since), reason)


def _is_over(study: StudyRecord, summary: Summary) -> bool:
    """Return whether no trial runs, and none comes unless somebody acts."""
    if summary.counts[RUNNING] or summary.counts["waiting"] or _decides(study, summary):
        return False
    return study.state in (STOPPED, ENDED) or study.reserved >= study.limit


def _decides(study: StudyRecord, summary: Summary) -> bool:
    """Return whether trials of another study decide between those of this one."""
    return is_undecided(study) and summary.counts[COMPLETED] >= 2


def _has_failed(study: StudyRecord, summary: Summary) -> bool:
    if study.state == STOPPED:
        return (study.reason or "").startswith(BY_ITSELF)
    return summary.best is None


def _last_trained(ledger: Reader, study: StudyRecord) -> float:
    """Return when a worker last had a trial, or a person last did something to the study."""
    done = events.latest(ledger, [study.name])[study.name]
    acts = [one.happened_at for action, one in done.items() if action not in events.REMARKS]
    return max([study.created_at, last_attempt(ledger, study.id), *acts])


def _notices(
    study: StudyRecord,
    tables: Sequence[StudyNotifyTable],
    summary: Summary,
    on: str,
    event: str,
    reason: str,
) -> list[Notice]:
    about: Mapping[str, Any] = {
        "study": study.name,
        "event": on,
        "reason": reason,
        "state": study.state,
        "trials": summary.counts,
        "best": None if summary.best is None else summary.best.as_json(),
    }
    return [
        notice
        for table in tables
        for notice in notify.notices(
            table,
            on=on,
            event=f"study {study.id} {study.created_at!r} {on} {event}",
            study=study.name,
            title=f"{study.name}: {on.replace('_', ' ')}",
            content=about,
        )
    ]
