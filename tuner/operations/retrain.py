"""Train a champion's successor."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from tuner.analysis import drift
from tuner.analysis.drift import RetrainingStep
from tuner.config import StudySpec
from tuner.core import run_keys
from tuner.core.environment import identity, is_gone, person
from tuner.core.errors import (
    LeaseLost,
    TunerError,
    UnavailableError,
    UnreadableError,
    UsageError,
)
from tuner.ledger import Ledger, Retrainings, StudyRecord, TrialRecord, events
from tuner.ledger.database import Addresses
from tuner.ledger.events import Act
from tuner.ledger.notifications import Notice
from tuner.ledger.retrainings import CANARY, DONE
from tuner.observability import notify
from tuner.operations import canary, run, submit
from tuner.retraining import changes
from tuner.retraining.checking import KEY_LIMIT, prepare
from tuner.retraining.result import REFUSED, as_json, refusal
from tuner.retraining.stages import Stages
from tuner.worker.lease_renewer import LeaseRenewer

WAIT_SECONDS = 0.5
"""Time between two looks at another process's retraining."""
POSTPONED = ("unavailable", "taken over", "interrupted")
"""Outcomes of calls that are to be repeated."""


def retrain(
    ledger: Ledger,
    places: Addresses,
    name: str,
    run_key: str,
    *,
    prefixes: Sequence[str],
    wait: bool = True,
    force: bool = False,
    stop: threading.Event | None = None,
    renewer: LeaseRenewer | None = None,
    record_postponed: bool = True,
) -> dict[str, Any]:
    """Train the champion's successor, once a run key. Return what `tuner retrain --json` prints.

    The call is recorded with its outcome, also if it is refused; without `record_postponed` not
    if it is to be repeated. Then send the notifications that are due.

    For a key that has ended, return its result, with what has `changed` since. With `force`, a key
    older than the champion's may replace it. While another process has this key, or another
    retraining of the model, wait, or raise `UnavailableError` without `wait`. Raise `UsageError`
    before anything is trained if data, model or gate cannot be used, and `KeyboardInterrupt` when
    `stop` is set.
    """
    try:
        found = _retrain(ledger, places, name, run_key, prefixes, wait, force, stop, renewer)
    except BaseException as error:
        outcome = _outcome_of(error)
        if record_postponed or outcome not in POSTPONED:
            with suppress(TunerError):  # the caller gets the first error
                _record_error(ledger, name, run_key, outcome, error)
        notify.try_to_deliver(ledger)
        raise
    events.add(
        ledger,
        name,
        events.RETRAINED,
        Act(by=person()),
        {key: found[key] for key in ("run_key", "outcome", "version")},
    )
    notify.try_to_deliver(ledger)
    return found


def _outcome_of(error: BaseException) -> str:
    """Return how a call ended that raised."""
    kinds = {
        UsageError: REFUSED,
        UnavailableError: "unavailable",
        LeaseLost: "taken over",
        KeyboardInterrupt: "interrupted",
    }
    return next((name for kind, name in kinds.items() if isinstance(error, kind)), "error")


def _record_error(
    ledger: Ledger, name: str, run_key: str, outcome: str, error: BaseException
) -> None:
    """Record a call that raised; a refusal is notified too. Raise `NotFoundError`."""
    ledger.identity(name)  # of an unknown study nothing is recorded
    reason = str(error) or type(error).__name__
    key, found = run_key[:KEY_LIMIT], list[Notice]()
    if outcome == REFUSED:
        with suppress(UnreadableError):
            found = refusal(ledger.study(name).spec.retrain, name, key, reason)
    act = Act(by=person(), reason=reason)
    about = {"run_key": key, "outcome": outcome}
    events.add(ledger, name, events.RETRAINED, act, about, found)


def _retrain(
    ledger: Ledger,
    places: Addresses,
    name: str,
    run_key: str,
    prefixes: Sequence[str],
    wait: bool,
    force: bool,
    stop: threading.Event | None,
    renewer: LeaseRenewer | None,
) -> dict[str, Any]:
    stop = stop or threading.Event()
    study, store = ledger.study(name), Retrainings(ledger)
    renewer = renewer or LeaseRenewer(ledger, places.checkpoints)
    ended = store.read(name, run_key)
    if ended is not None and ended.stage == DONE:
        if ended.outcome == CANARY:
            canary.promote_due(ledger, places, ended.model)
            ended = store.read(name, run_key) or ended
        return as_json(ended) | {"changed": changes.since(ended, study, prefixes)}
    tune = partial(_tune, ledger, places, prefixes, renewer)
    job = prepare(ledger, places, study, run_key, prefixes, tune, force=force)
    canary.compare(job)
    canary.promote_due(ledger, places, job.registry.model)
    while True:
        held, other = store.claim(name, run_key, job.registry.model, identity(), is_gone)
        if held.stage == DONE:
            return as_json(held)
        if other is None:
            break
        if not wait:
            raise UnavailableError(
                f"{other} has the retraining {held.run_key!r} of model {job.registry.model!r}; try "
                "later, or wait with --wait"
            )
        if stop.wait(WAIT_SECONDS):
            raise KeyboardInterrupt
    with renewer.running():
        return as_json(Stages(job, store, held, renewer, stop).run())


def _tune(
    ledger: Ledger,
    places: Addresses,
    prefixes: Sequence[str],
    renewer: LeaseRenewer,
    spec: StudySpec,
) -> tuple[StudyRecord, TrialRecord | None]:
    """Train a study to its end, or continue it. Return it and its best feasible trial.

    Raise `KeyboardInterrupt` if a signal interrupts the training.
    """
    prepared = submit.prepare(spec, prefixes)
    study, _ = submit.submit(ledger, spec, prepared.description)
    if run.train_study(
        ledger, places, study, prefixes, prepared=prepared, renewer=renewer
    ).interrupted:
        raise KeyboardInterrupt
    best = ledger.best(study)
    return ledger.study(study.name), None if best is None or best.infeasible else best


def key_of_now(ledger: Ledger, name: str) -> str:
    """Return the run key of this moment, in UTC."""
    now, key_format = Retrainings(ledger).now(), ledger.study(name).spec.retrain.key_format
    return run_keys.key_of(now, "UTC", key_format)


def history(ledger: Ledger, name: str) -> list[RetrainingStep]:
    """Return the retrainings of a study so far. Raise `NotFoundError`."""
    return drift.steps(Retrainings(ledger).history(ledger.study(name).name))
