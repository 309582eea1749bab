"""Predictions of a champion for the rows of a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tuner.core.errors import NotFoundError, UsageError
from tuner.ledger import Ledger
from tuner.ledger.database import Addresses
from tuner.operations import input_rows
from tuner.operations.input_rows import Wanted
from tuner.retraining import versions
from tuner.retraining.checking import model_name, registry_of
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
    ledger: Ledger,
    places: Addresses,
    name: str,
    inputs: Path,
    *,
    prefixes: Sequence[str],
    kind: str | None = None,
    by_position: bool = False,
) -> Predicted:
    """Return the champion's predictions for the rows of a file, or of standard input for `-`.

    `kind` is the format of the rows; by default it follows from the file's suffix, and standard
    input is CSV. Raise `NotFoundError` if there is no champion, or its weights are not those that
    the ledger knows, and `UsageError` if the rows do not fit it or its code is not here.
    """
    is_piped = str(inputs) == "-"
    kind = kind or (input_rows.CSV if is_piped else input_rows.format_of(inputs))
    study = ledger.study(name)
    registry = registry_of(places, study)
    champion = registry.champion()
    if champion is None:
        raise NotFoundError(
            f"model {model_name(study)!r} has no champion yet; `tuner retrain {name}` trains one"
        )
    stored = versions.read(ledger, registry, champion)
    wanted = Wanted(features=stored.features, shape=stored.inputs.shape, dtype=stored.inputs.dtype)
    source = "standard input" if is_piped else str(inputs)
    try:
        with nullcontext(sys.stdin.buffer) if is_piped else inputs.open("rb") as stream:
            rows = input_rows.read(stream, source, kind, wanted, by_position=by_position)
    except OSError as error:
        raise UsageError(f"{source}: expected rows of numbers, got {error.strerror}") from error
    use_threads(study.threads)
    rebuilt = versions.build(stored, prefixes)
    return Predicted(
        model=registry.model,
        version=champion.number,
        outputs=models.predict(rebuilt.module, rows),
        exact=rebuilt.exact,
    )
