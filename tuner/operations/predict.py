"""Predictions of a champion for the rows of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tuner.core.errors import NotFoundError, UsageError
from tuner.ledger import Ledger
from tuner.ledger.database import Addresses
from tuner.retraining import versions
from tuner.retraining.checking import model_name, registry_of
from tuner.retraining.versions import StoredVersion
from tuner.training import models
from tuner.training.device import use_threads


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The predictions of a champion."""

    model: str
    version: int
    outputs: np.ndarray  # [row, ...]
    exact: bool  # whether it repeats its predictions of when it was trained to the last bit


def predict(
    ledger: Ledger, places: Addresses, name: str, inputs: Path, *, prefixes: Sequence[str]
) -> Predicted:
    """Return the champion's predictions for the rows of a file, .npy or .csv.

    Raise `NotFoundError` if there is no champion, or its weights are not those that the ledger
    knows, and `UsageError` if the rows do not fit it or its code is not here.
    """
    study = ledger.study(name)
    registry = registry_of(places, study)
    champion = registry.champion()
    if champion is None:
        raise NotFoundError(
            f"model {model_name(study)!r} has no champion yet; `tuner retrain {name}` trains one"
        )
    stored = versions.read(ledger, registry, champion)
    rows = _read_rows(inputs, stored)
    use_threads(study.threads)
    rebuilt = versions.build(stored, prefixes)
    return Predicted(
        model=registry.model,
        version=champion.number,
        outputs=models.predict(rebuilt.module, rows),
        exact=rebuilt.exact,
    )


def _read_rows(file: Path, stored: StoredVersion) -> np.ndarray:  # [row, ...]
    """Read rows with the shape and type of a model's inputs. Raise `UsageError`."""
    wanted = stored.inputs
    try:
        if file.suffix == ".npy":
            rows = np.load(file, allow_pickle=False)
        else:
            lines = file.read_text().splitlines()
            titled = bool(lines) and not _is_number(lines[0].split(",", 1)[0])
            rows = np.array([line.split(",") for line in lines[titled:]], dtype=np.float64)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file}: expected rows of numbers in a .npy or .csv file, got {error}"
        ) from error
    if not rows.ndim or not len(rows):
        raise UsageError(f"{file}: expected at least one row, got none")
    if file.suffix != ".npy" and np.prod(wanted.shape) == rows.shape[1]:
        rows = rows.reshape(-1, *wanted.shape)
    if rows.shape[1:] != wanted.shape or rows.dtype.kind not in "iuf":
        raise UsageError(
            f"{file}: the data does not fit the signature of {stored.version.model!r}, version "
            f"{stored.version.number}: expected {wanted}, got rows of shape {rows.shape[1:]} of "
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
