"""The state of studies and of single trials, as `--json` prints it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tuner.analysis import front
from tuner.core.errors import NotFoundError
from tuner.ledger import Reader, StudyRecord, UnreadableStudy, events, projects, ranges
from tuner.ledger.events import Event
from tuner.ledger.publications import Publications
from tuner.ledger.reading import LAST
from tuner.ledger.summaries import Summary, last_activity, summaries
from tuner.operations import best, history, spend
from tuner.operations.workers import machine

NO_CHANGES = (
    events.SUBMITTED, events.DELETED, events.RETRAINED, *events.REMARKS
)  # fmt: skip
"""Actions that are not what somebody last did to a study."""


def status(
    ledger: Reader,
    study: StudyRecord,
    faults: Sequence[tuple[int | None, str]] | None = None,
) -> dict[str, Any]:
    """Return the state of a study, the workers that train it, and its unreadable trials.

    These are looked for among the trials that changed last, unless `Reader.sorted_trials` has
    found them already; `doctor` examines all trials.
    """
    if faults is None:
        _, faults = ledger.sorted_trials(study.id, LAST)
    broken = [{"trial": number, "reason": why} for number, why in faults]
    found = statuses(ledger, [study])[0] | best.decision(ledger, study)
    found |= best.front(ledger, study)
    return found | {
        "spend": spend.of_study(ledger, study),
        "quota_reached": projects.reached(ledger, projects.project(ledger, study.project)),
        "notes": [history.as_json(one) for one in events.notes(ledger, study.name)],
        "unreadable": broken,
    }


def unreadable(study: UnreadableStudy) -> dict[str, Any]:
    """Return the state of a study whose row cannot be read."""
    return {
        "study": study.name,
        "version": study.version,
        "title": study.title,
        "state": "unreadable",
        "reason": study.why,
    }


def statuses(ledger: Reader, studies: Sequence[StudyRecord]) -> list[dict[str, Any]]:
    """Return the states of studies, with as many statements as for one."""
    found = summaries(ledger, studies)
    done = events.latest(ledger, {study.name for study in studies})
    active = last_activity(ledger, {study.name for study in studies})
    return [
        _status(study, found[study.id])
        | _acts(done[study.name])
        | {
            "project": study.project,
            "tags": events.tags_in(done[study.name]),
            "created_at": study.created_at,
            "last_activity": max(
                [active.get(study.name, study.created_at)]
                + [one.happened_at for one in done[study.name].values()]
            ),
        }
        for study in studies
    ]


def trial_status(ledger: Reader, study: StudyRecord, number: int) -> dict[str, Any]:
    """Return the state of one trial, its attempts, and the last traceback of its workload.

    Raise `NotFoundError`.
    """
    trial = ledger.trial(study.id, number)
    if trial is None:
        raise NotFoundError(f"study {study.name!r} has no trial {number}")
    attempts = ledger.attempts(study.id, number)
    tracebacks = [one.traceback for one in attempts if one.traceback is not None]
    runs = Publications(ledger.engine, "mlflow").external_ids(study.id, [number])
    return {
        "study": study.name,
        "trial": trial.number,
        "state": trial.state,
        "reason": trial.reason,
        "value": trial.value,
        **({"values": front.values(study, trial)} if trial.objectives else {}),
        **({} if trial.violation is None else {"violation": trial.violation}),
        "params": trial.params,
        "steps": trial.steps,
        "run_id": runs.get(number),
        "attempts": [
            {"number": one.number, "worker": one.worker, "started_at": one.started_at,
             "ended_at": one.ended_at, "ending": one.ending, "reason": one.reason}
            for one in attempts
        ],
        "traceback": tracebacks[-1] if tracebacks else None,
    }  # fmt: skip


def _status(study: StudyRecord, summary: Summary) -> dict[str, Any]:
    return {
        "study": study.name,
        "version": study.version,
        "title": study.title,
        "state": study.shown_state(summary.counts),
        "reason": study.reason,
        "trials": summary.counts,
        "imported": summary.imported,
        "budget": {"trials": study.limit, "reserved": study.reserved},
        "metric": study.spec.study.metric,
        "best": None if summary.best is None else summary.best.as_json(),
        "probe": _probe(study, summary.probe or {}),
        "workers": [
            {"worker": worker, "trial": number} | machine(environment)
            for worker, number, environment in summary.workers
        ],
        "silent": [asdict(one) for one in summary.silent],
        "left_alone": [asdict(one) for one in summary.excluded],
    }


def _acts(done: Mapping[str, Event]) -> dict[str, Any]:
    """Return who submitted a study, and what a person last did to it since."""
    submitted = done.get(events.SUBMITTED)
    since = [
        one
        for action, one in done.items()
        if action not in NO_CHANGES and (submitted is None or one.id > submitted.id)
    ]
    last = max(since, key=lambda one: one.id, default=None)
    return {
        "submitted": None if submitted is None else history.as_json(submitted),
        "last_action": None if last is None else history.as_json(last),
    }


def _probe(study: StudyRecord, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the result of a study's probe and all its ranges; None if it has no probe."""
    if not study.spec.probe.enabled:
        return None
    return {
        "optimizers": result.get("optimizers"),  # null until the probe has ended
        "error": result.get("error"),
        "ranges": [
            {"low": one.low, "high": one.high, "why": one.why, "revision": one.revision,
             "at": one.at}
            for one in ranges.history(study.attrs)
        ],
    }  # fmt: skip
