"""The operations `retrain`, `rollback` and `predict`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tuner.config import StudySpec
from tuner.core.environment import identity, is_gone
from tuner.core.errors import NotFoundError, UnavailableError, UsageError
from tuner.ledger import Ledger, Retraining, Retrainings, StudyRecord, TrialRecord
from tuner.ledger.database import Addresses
from tuner.ledger.retrainings import DONE, EVALUATE, LOG, PROMOTED
from tuner.operations import run, submit
from tuner.retraining import notify
from tuner.retraining.checking import model_name, prepare, registry_of
from tuner.retraining.stages import Stages
from tuner.tracking.mlflow.registry import CHAMPION, REPLACES, Loaded
from tuner.training import models
from tuner.training.device import use_threads
from tuner.worker.lease_renewer import LeaseRenewer

WAIT_SECONDS = 0.5
"""How often a retraining that another process holds is polled."""


def retrain(
    ledger: Ledger,
    places: Addresses,
    name: str,
    run_key: str,
    *,
    prefixes: Sequence[str],
    wait: bool = True,
    stop: threading.Event | None = None,
    renewer: LeaseRenewer | None = None,
) -> dict[str, Any]:
    """Train the champion's successor, once a run key; return what `tuner retrain --json` prints.

    A key that has ended returns its result. While another process holds it, or another retraining
    of the model, wait for that with `wait`, else raise `UnavailableError`. Raise `UsageError`
    before anything is trained when data, model or gate cannot be used, and `KeyboardInterrupt` when
    `stop` is set. A caller that holds leases itself passes its `renewer`.
    """
    study, stop = ledger.study(name), stop or threading.Event()
    store = Retrainings(ledger)
    renewer = renewer or LeaseRenewer(ledger, places.checkpoints)
    ended = store.read(name, run_key)
    if ended is not None and ended.stage == DONE:
        return as_json(ended)
    tune = partial(_tune, ledger, places, prefixes, renewer)
    job = prepare(ledger, places, study, run_key, prefixes, tune)
    while True:
        held, other = store.claim(name, run_key, job.registry.model, identity(), is_gone)
        if held.stage == DONE:
            return as_json(held)
        if other is None:
            break
        if not wait:
            raise UnavailableError(
                f"{other} is at the retraining {held.run_key!r} of model {job.registry.model!r}; "
                "try later, or wait for it with --wait"
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
    """Train a study to its end, or resume it; return it and its best trial.

    Raise `KeyboardInterrupt` when this process is asked to stop meanwhile.
    """
    study, _ = submit.submit(ledger, spec, submit.prepare(spec, prefixes))
    todo = run.Work(names=(study.name,), prefixes=tuple(prefixes), until_idle=True)
    if run.train(ledger, places, todo, recorder=True, renewer=renewer).interrupted:
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
    }


@dataclass(frozen=True, kw_only=True)
class RolledBack:
    """The champion before and after a rollback, by version."""

    model: str
    was: int | None
    now: int


def rollback(ledger: Ledger, places: Addresses, name: str, to: int | None = None) -> RolledBack:
    """Make the previous champion, or the version `to`, the champion.

    Raise `NotFoundError` when there is none.
    """
    registry = registry_of(places, ledger.study(name))
    champion = registry.champion()
    if to is None:
        if champion is None:
            raise NotFoundError(
                f"model {registry.model!r} has no champion to go back from; --to names a version"
            )
        before = champion.tags.get(REPLACES)
        if before is None:
            raise NotFoundError(
                f"version {champion.number} of {registry.model!r} is the first champion; there is "
                "none to go back to"
            )
        to = int(before)
    registry.load(registry.version(to))  # raises if it cannot be read
    registry.point(CHAMPION, to)
    return RolledBack(
        model=registry.model, was=None if champion is None else champion.number, now=to
    )


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What the champion predicts."""

    model: str
    version: int
    outputs: np.ndarray  # [row, ...]
    exact: bool  # whether it predicts to the last bit what it did when it was trained


def predict(ledger: Ledger, places: Addresses, name: str, inputs: Path) -> Predicted:
    """Predict the rows of a file, .npy or .csv, with the champion.

    Raise `NotFoundError` when there is no champion and `UsageError` when the rows do not fit.
    """
    study = ledger.study(name)
    registry = registry_of(places, study)
    champion = registry.champion()
    if champion is None:
        raise NotFoundError(
            f"model {model_name(study)!r} has no champion yet; `tuner retrain {name}` makes one"
        )
    loaded = registry.load(champion)
    rows = read_rows(inputs, loaded)
    use_threads(study.threads)
    example = models.predict(loaded.module, loaded.example)
    return Predicted(
        model=registry.model,
        version=champion.number,
        outputs=models.predict(loaded.module, rows),
        exact=models.fingerprint(example) == champion.tags.get("tuner.outputs"),
    )


def read_rows(file: Path, loaded: Loaded) -> np.ndarray:  # [row, ...]
    """Read rows in the shape and type that a model takes. Raise `UsageError`."""
    wanted = loaded.inputs
    try:
        if file.suffix == ".npy":
            rows = np.load(file, allow_pickle=False)
        else:
            lines = file.read_text().splitlines()
            titled = bool(lines) and not _is_number(lines[0].split(",", 1)[0])
            rows = np.array([line.split(",") for line in lines[titled:]], dtype=np.float64)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file}: expected rows of numbers, as .npy or as .csv, got {error}"
        ) from error
    if not rows.ndim or not len(rows):
        raise UsageError(f"{file}: expected at least one row, got none")
    if file.suffix != ".npy" and np.prod(wanted.shape) == rows.shape[1]:
        rows = rows.reshape(-1, *wanted.shape)
    if rows.shape[1:] != wanted.shape or rows.dtype.kind not in "iuf":
        raise UsageError(
            f"{file}: the data does not fit the signature of {loaded.version.model!r}, version "
            f"{loaded.version.number}: expected {wanted}, got rows of shape {rows.shape[1:]} of "
            f"{rows.dtype}"
        )
    if rows.dtype.kind == "f" and np.dtype(wanted.dtype).kind in "iu" and (rows % 1).any():
        raise UsageError(f"{file}: expected whole numbers, got fractions among them")
    fitting: np.ndarray = rows.astype(wanted.dtype)
    return fitting


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
