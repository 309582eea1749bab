"""What commands tell programs: the JSON of a run, of a study's state and of its best trial."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tuner.core.errors import NotFoundError
from tuner.core.outcome import KINDS
from tuner.ledger import OPEN, Reader, StudyRecord, ranges
from tuner.ledger.database import Addresses
from tuner.ledger.publications import Publications


def of_run(ledger: Reader, study: StudyRecord, places: Addresses) -> dict[str, Any]:
    """Say what `tuner run` ended with."""
    counts = ledger.counts(study.id)
    shown = places.shown()
    return {
        "study": study.name,
        "trials": {kind: counts[kind] for kind in KINDS},
        "best": of_best(ledger, study),
        "tracking_uri": shown["mlflow"],
        "storage": shown["optuna"],
        "report": None,
    }


def of_best(ledger: Reader, study: StudyRecord) -> dict[str, Any] | None:
    """Say which trial is the best; None when none has completed."""
    best = ledger.best(study)
    if best is None:
        return None
    run_ids = Publications(ledger.engine, "mlflow").external_ids(study.id)
    return {
        "number": best.number,
        "value": best.value,
        "params": best.params,
        "run_id": run_ids.get(best.number),
    }


def of_probe(ledger: Reader, study: StudyRecord) -> dict[str, Any] | None:
    """Say what the study's probe found, and every range of the rate since; None without a probe."""
    if not study.spec.probe.enabled:
        return None
    found = ranges.result(ledger, study) or {}
    return {
        "optimizers": found.get("optimizers"),  # null while it is under way
        "error": found.get("error"),
        "ranges": [
            {"low": one.low, "high": one.high, "why": one.why, "revision": one.revision,
             "at": one.at}
            for one in ranges.history(study.attrs)
        ],
    }  # fmt: skip


def of_trial(ledger: Reader, study: StudyRecord, number: int) -> dict[str, Any]:
    """Return how one trial stands, its attempts, and the last traceback of its workload.

    Raises `NotFoundError`.
    """
    trial = ledger.trial(study.id, number)
    if trial is None:
        raise NotFoundError(f"study {study.name!r} has no trial {number}")
    attempts = ledger.attempts(study.id, number)
    tracebacks = [one.traceback for one in attempts if one.traceback is not None]
    return {
        "study": study.name,
        "trial": trial.number,
        "state": trial.state,
        "reason": trial.reason,
        "value": trial.value,
        "params": trial.params,
        "steps": trial.steps,
        "run_id": Publications(ledger.engine, "mlflow").external_ids(study.id).get(number),
        "attempts": [
            {"number": one.number, "worker": one.worker, "started_at": one.started_at,
             "ended_at": one.ended_at, "ending": one.ending, "reason": one.reason}
            for one in attempts
        ],
        "traceback": tracebacks[-1] if tracebacks else None,
    }  # fmt: skip


def of_state(ledger: Reader, study: StudyRecord) -> dict[str, Any]:
    """Say how a study stands and who works at it."""
    counts = ledger.counts(study.id)
    numbers = {trial.id: trial.number for trial in ledger.trials(study.id)}
    live = [attempt for attempt in ledger.attempts(study.id) if attempt.live]
    idle = not counts["running"] and not counts["waiting"]
    ended = idle and study.reserved >= study.limit
    return {
        "study": study.name,
        "version": study.version,
        "title": study.title,
        "state": "ended" if ended and study.state == OPEN else study.state,
        "reason": study.reason,
        "trials": counts,
        "imported": ledger.imported(study.id),
        "budget": {"trials": study.limit, "reserved": study.reserved},
        "best": of_best(ledger, study),
        "probe": of_probe(ledger, study),
        "workers": [{"worker": one.worker, "trial": numbers[one.trial_id]} for one in live],
        "silent": [asdict(one) for one in ledger.silent(study.id)],
    }
