"""Trials and curves as pandas tables and as files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tuner.analysis import front
from tuner.core.curves import Chunk
from tuner.core.errors import NotFoundError, UsageError
from tuner.core.outcome import COMPLETED
from tuner.core.outputs import replacing, writing_into
from tuner.ledger import Reader, StudyRecord, TrialRecord
from tuner.ledger.spending import attempt_seconds

FORMATS = ("csv", "parquet")
TRIAL_TYPES = {
    "number": "Int64",
    "state": "string",
    "value": "Float64",
    "reason": "string",
    "steps": "Int64",
    "stopped_step": "Int64",
    "seconds": "Float64",
    "attempt_seconds": "Float64",
    "created_at": "Float64",
    "ended_at": "Float64",
    "best_so_far": "Float64",
}
"""The columns of the table of trials, before its parameters; times are seconds since 1970."""
CURVE_TYPES = {
    "trial": "int64",
    "step": "int64",
    "metric": "string",
    "value": "float64",
    "time": "float64",
}
"""The columns of the table of curves; `value` may be nan or infinite."""


def trials(ledger: Reader, study: StudyRecord) -> pd.DataFrame:
    """Return one row per trial, by number; missing values are NA.

    Parameters are in columns such as `params_lr`. `seconds` is the time from the trial's creation
    to its end, including the wait for a worker; `attempt_seconds` is that of its ended attempts.
    `best_so_far` is the best value of the study when the trial ended. A study with constraints has
    a column `violation`, one with several objectives columns such as `values_val_loss`.
    """
    spent = attempt_seconds(ledger, study)
    records = ledger.trials(study.id)
    names = list(dict.fromkeys(name for one in records for name in one.params or {}))
    columns: dict[str, Any] = {}
    for name, kind in TRIAL_TYPES.items():
        values: list[Any]
        if name == "seconds":
            values = [None if t.ended_at is None else t.ended_at - t.created_at for t in records]
        elif name == "attempt_seconds":
            values = [spent.get(one.number) for one in records]
        elif name == "best_so_far":
            best = _best_so_far(study, records)
            values = [best.get(one.number) for one in records]
        else:
            values = [getattr(one, name) for one in records]
        columns[name] = pd.array(values, dtype=kind)
    for one in study.spec.study.objectives:
        values = [front.values(study, trial).get(one.metric) for trial in records]
        columns[f"values_{one.metric}"] = pd.array(values, dtype="Float64")
    if study.spec.study.constraints:
        columns["violation"] = pd.array([one.violation for one in records], dtype="Float64")
    for name in names:
        values = [(one.params or {}).get(name) for one in records]
        columns[f"params_{name}"] = pd.array(values, dtype=_type_of(values))
    return pd.DataFrame(columns)


def curves(
    ledger: Reader, study: StudyRecord, numbers: Collection[int] | None = None
) -> pd.DataFrame:
    """Return one row per measured value: trial, step, metric, value, time; of all or some trials.

    Every reported step is included, and so are values that are not finite. Raise `NotFoundError`
    for an unknown trial.
    """
    records = {one.number: one for one in ledger.trials(study.id)}
    missing = sorted(set(numbers or ()) - set(records))
    if missing:
        raise NotFoundError(f"study {study.name!r} has no trial {missing[0]}")
    chosen = sorted(records if numbers is None else set(numbers))
    tables = [_long(number, ledger.curve(records[number].id)) for number in chosen]
    parts = [table for table in tables if len(table)]
    return pd.concat(parts, ignore_index=True) if parts else _long(0, None)


def export(
    ledger: Reader, study: StudyRecord, folder: Path, file_format: str = "csv"
) -> dict[str, Path]:
    """Write both tables into a folder, each file atomically. Return the files by table.

    Raise `OutputError` if they cannot be written.
    """
    if file_format not in FORMATS:
        raise UsageError(f"expected a format of {' or '.join(FORMATS)}, got {file_format!r}")
    tables = {"trials": trials(ledger, study), "curves": curves(ledger, study)}
    files: dict[str, Path] = {}
    with writing_into(folder):
        for what, table in tables.items():
            files[what] = folder / f"{file_name(study.name)}.{what}.{file_format}"
            with replacing(files[what]) as temporary:
                if file_format == "csv":
                    # missing values are empty, so nan is written as nan
                    missing = "nan" if what == "curves" else ""
                    table.to_csv(temporary, index=False, na_rep=missing)
                else:
                    table.to_parquet(temporary, index=False)
    return files


def file_name(study: str) -> str:
    """Return a file name for a study: its own name if every file system accepts that."""
    plain = re.sub(r"[^A-Za-z0-9_. -]", "_", study).strip(". ")[:100] or "study"
    if plain == study:
        return plain
    return f"{plain}-{hashlib.sha256(study.encode()).hexdigest()[:8]}"


def _best_so_far(study: StudyRecord, records: Sequence[TrialRecord]) -> dict[int, float]:
    """Return the value of the best trial when each trial ended, by their numbers."""
    sign = 1.0 if study.spec.study.direction == "minimize" else -1.0
    best: tuple[float, float] | None = None  # violation of constraints, and signed value
    found = {}
    ended = [one for one in records if one.ended_at is not None]
    for trial in sorted(ended, key=lambda one: (one.ended_at, one.number)):
        if trial.state == COMPLETED and trial.value is not None:
            mine = (trial.violation or 0.0, sign * trial.value)
            best = mine if best is None else min(best, mine)
        if best is not None:
            found[trial.number] = sign * best[1]
    return found


def _long(number: int, chunk: Chunk | None) -> pd.DataFrame:
    parts: list[tuple[str, Any, Any, Any]] = []
    if chunk is not None:
        kept = chunk.reported
        steps = np.arange(chunk.first_step, chunk.next_step)[kept]
        times = chunk.times[kept]
        parts += [(name, steps, v[kept], times) for name, v in sorted(chunk.columns.items())]
        parts += [
            (name, chunk.eval_steps, v, chunk.eval_times)
            for name, v in sorted(chunk.metrics.items())
        ]
        parts += [
            (f"branch/{name}", np.array([one.step]), np.array([value]), np.array([one.time]))
            for one in chunk.branches
            for name, value in sorted(one.metrics.items())
        ]
    columns: Mapping[str, Sequence[Any]] = {
        "trial": [number] * sum(len(values) for _, _, values, _ in parts),
        "step": _joined([steps for _, steps, _, _ in parts]),
        "metric": [name for name, _, values, _ in parts for _ in values],
        "value": _joined([values for _, _, values, _ in parts]),
        "time": _joined([times for _, _, _, times in parts]),
    }
    return pd.DataFrame(columns).astype(CURVE_TYPES)


def _joined(parts: list[Any]) -> Any:
    return np.concatenate(parts) if parts else np.empty(0)


def _type_of(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool}:
        return "boolean"
    if kinds <= {int}:
        return "Int64"
    return "Float64" if kinds <= {int, float} else "string"
