"""Train a champion's successor."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from tuner.analysis import drift
from tuner.analysis.drift import RetrainingStep
from tuner.config import StudySpec
from tuner.core import run_keys
from tuner.core.environment import identity, is_gone
from tuner.core.errors import UnavailableError
from tuner.ledger import Ledger, Retraining, Retrainings, StudyRecord, TrialRecord
from tuner.ledger.database import Addresses
from tuner.ledger.retrainings import DONE, EVALUATE, LOG, PROMOTED, TRAIN
from tuner.operations import run, submit
from tuner.retraining import changes, notify
from tuner.retraining.checking import prepare
from tuner.retraining.stages import Stages
from tuner.worker.lease_renewer import LeaseRenewer

WAIT_SECONDS = 0.5
"""Time between two looks at another process's retraining."""


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
) -> dict[str, Any]:
    """Train the champion's successor, once a run key. Return what `tuner retrain --json` prints.

    For a key that has ended, return its result, with what has `changed` since. With `force`, a key
    older than the champion's may replace it. While another process has this key, or another
    retraining of the model, wait, or raise `UnavailableError` without `wait`. Raise `UsageError`
    before anything is trained if data, model or gate cannot be used, and `KeyboardInterrupt` when
    `stop` is set.
    """
    study, stop = ledger.study(name), stop or threading.Event()
    store = Retrainings(ledger)
    renewer = renewer or LeaseRenewer(ledger, places.checkpoints)
    ended = store.read(name, run_key)
    if ended is not None and ended.stage == DONE:
        return as_json(ended) | {"changed": changes.since(ended, study, prefixes)}
    tune = partial(_tune, ledger, places, prefixes, renewer)
    job = prepare(ledger, places, study, run_key, prefixes, tune, force=force)
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
        found = as_json(Stages(job, store, held, renewer, stop).run())
    notify.send(study.spec.retrain.notify, found)
    return found


def _tune(
    ledger: Ledger,
    places: Addresses,
    prefixes: Sequence[str],
    renewer: LeaseRenewer,
    spec: StudySpec,
) -> tuple[StudyRecord, TrialRecord | None]:
    """Train a study to its end, or continue it. Return it and its best trial.

    Raise `KeyboardInterrupt` if a signal interrupts the training.
    """
    prepared = submit.prepare(spec, prefixes)
    study, _ = submit.submit(ledger, spec, prepared.description)
    if run.train_study(
        ledger, places, study, prefixes, prepared=prepared, renewer=renewer
    ).interrupted:
        raise KeyboardInterrupt
    return ledger.study(study.name), ledger.best(study)


def as_json(ended: Retraining) -> dict[str, Any]:
    """Return what `tuner retrain --json` prints."""
    decision, logged = ended.result.get(EVALUATE, {}), ended.result[LOG]
    stayed = decision.get("champion", logged.get("champion"))
    return {
        "study": ended.study,
        "run_key": ended.run_key,
        "outcome": ended.outcome,
        "reason": ended.reason,
        "model": ended.model,
        "version": logged["version"],
        "champion_version": logged["version"] if ended.outcome == PROMOTED else stayed,
        "metrics": decision.get("values", {"champion": None, "challenger": None}),
        "run_id": logged["run_id"],
        "left_out": ended.result[TRAIN].get("left_out", {}),
        "changed": [],
    }


def key_of_now(ledger: Ledger, name: str) -> str:
    """Return the run key of this moment, in UTC."""
    now, key_format = Retrainings(ledger).now(), ledger.study(name).spec.retrain.key_format
    return run_keys.key_of(now, "UTC", key_format)


def history(ledger: Ledger, name: str) -> list[RetrainingStep]:
    """Return the retrainings of a study so far. Raise `NotFoundError`."""
    return drift.steps(Retrainings(ledger).history(ledger.study(name).name))
