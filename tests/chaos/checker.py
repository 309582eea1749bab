"""What is left of a study, read by SQL past all of the service's code, and what is wrong with it.

It shares nothing with the service but the names of tables and columns, and the format of a chunk:
a safetensors file of `train/NAME` and `time` [step], `eval/NAME`, `eval_step` and `eval_time`
[evaluation].
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from safetensors.numpy import load

Query = Callable[[str], list[tuple[Any, ...]]]
"""Asks a database in which `tuner`, `public` and `mlflow` are schemas."""
Point = tuple[int, str, int]
"""The place of a number: trial, name, step."""
ENDED = {
    "completed": ("COMPLETE", "FINISHED"),
    "pruned": ("PRUNED", "KILLED"),
    "diverged": ("PRUNED", "KILLED"),
    "failed": ("FAIL", "FAILED"),
    "cancelled": ("FAIL", "FAILED"),
}
"""What Optuna and MLflow call an outcome."""


@contextmanager
def postgresql(url: str) -> Iterator[Query]:
    """Ask PostgreSQL."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield lambda query: connection.execute(query).fetchall()


@contextmanager
def sqlite(folder: Path) -> Iterator[Query]:
    """Ask the two files of SQLite by the names that the tables have on PostgreSQL."""
    files = {"tuner": "tuner.db", "public": "tuner.db", "mlflow": "mlflow.db"}
    with closing(sqlite3.connect("file::memory:", uri=True, timeout=60)) as connection:
        for schema, file in files.items():  # which must be there: a look must make none
            connection.execute(f"ATTACH 'file:{folder / file}?mode=rw' AS {schema}")
        yield lambda query: connection.execute(query).fetchall()


@dataclass(frozen=True, kw_only=True)
class Left:
    """What is left of a study; numbers as their eight bytes, so that they compare bit by bit."""

    limit: int
    ledger: Mapping[int, tuple[Any, ...]]  # by number: outcome, steps, stopped step, params, value
    live: int  # attempts
    optuna: list[tuple[int, str]]  # number, state
    runs: list[tuple[str, str]]  # the tag tuner.trial, status; of runs that are not deleted
    rows: Counter[tuple[Point, bytes]]  # of curves and reports in the ledger
    points: Counter[tuple[Point, bytes]]  # of metrics in MLflow
    late: int  # times of rows outside of the study's, or before the row ahead


OF_ROWS = ("train_loss", "lr", "grad_norm")
"""What a step's row has; the evaluation at a step comes before it."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is wrong; all of it counts."""

    lost: int = 0  # trials that one of the three places has not
    doubled: int = 0  # trials, runs or live attempts that are there twice
    stuck: int = 0  # what has not ended though all has been done
    missing: int = 0  # points that the undisturbed study has
    wrong: int = 0  # points with another value, at another place or twice; outcomes that differ
    overrun: int = 0  # trials beyond the budget

    def __bool__(self) -> bool:
        return any(vars(self).values())


def read(ask: Query, name: str) -> Left | None:
    """Read a study; None if the ledger has none of this name."""
    named = name.replace("'", "''")
    found = ask(f"SELECT id, \"limit\", created_at FROM tuner.tuner_studies WHERE name = '{named}'")
    if not found:
        return None
    ((study, limit, began),) = found
    rows, late = _rows(ask, study, began)
    trials = ask(
        "SELECT number, state, steps, stopped_step, params, value FROM tuner.tuner_trials "
        f"WHERE study_id = {study}"
    )
    return Left(
        limit=limit,
        ledger={
            number: (state, steps, stopped, json.loads(params or "null"), value)
            for number, state, steps, stopped, params, value in trials
        },
        live=len(
            ask(
                "SELECT a.id FROM tuner.tuner_attempts a JOIN tuner.tuner_trials t "
                f"ON t.id = a.trial_id WHERE t.study_id = {study} AND a.live"
            )
        ),
        optuna=ask(
            "SELECT t.number, t.state FROM public.trials t JOIN public.studies s "
            f"ON s.study_id = t.study_id WHERE s.study_name = '{named}'"
        ),
        runs=ask(_runs(named, "g.value, r.status")),
        rows=rows,
        points=Counter(
            ((int(trial), key, step), _bits(value))
            for trial, key, step, value in ask(
                _runs(
                    named,
                    "g.value, m.key, m.step, m.value",
                    "JOIN mlflow.metrics m ON m.run_uuid = r.run_uuid AND g.value <> 'study'",
                )
            )
        ),
        late=late,
    )


def _runs(name: str, columns: str, *joins: str) -> str:
    """Give the query for the runs of a study that nobody has deleted; `name` is quoted."""
    return (
        f"SELECT {columns} FROM mlflow.runs r "
        "JOIN mlflow.experiments e ON e.experiment_id = r.experiment_id "
        "JOIN mlflow.tags g ON g.run_uuid = r.run_uuid AND g.key = 'tuner.trial' "
        f"{' '.join(joins)} WHERE e.name = '{name}' AND r.lifecycle_stage = 'active'"
    )


def _rows(ask: Query, study: int, began: float) -> tuple[Counter[tuple[Point, bytes]], int]:
    rows: Counter[tuple[Point, bytes]] = Counter()
    late, last = 0, {}
    chunks = ask(
        "SELECT t.number, c.first_step, c.data, t.ended_at FROM tuner.tuner_chunks c "
        f"JOIN tuner.tuner_trials t ON t.id = c.trial_id WHERE t.study_id = {study} ORDER BY 1, 2"
    )
    for number, first, data, ended in chunks:
        arrays = load(bytes(data))
        times = np.concatenate([[last.get(number, began)], arrays["time"]])
        late += int((np.diff(times) < 0).sum() + (times > (ended or np.inf)).sum())
        last[number] = times[-1]
        for name, values in arrays.items():
            kind, _, key = name.partition("/")
            if key:
                steps = arrays["eval_step"] if kind == "eval" else first + np.arange(len(values))
                places = [(number, key, int(step)) for step in steps]
                rows.update(zip(places, map(_bits, values), strict=True))
    reports = ask(
        "SELECT t.number, r.step, r.value FROM tuner.tuner_reports r "
        f"JOIN tuner.tuner_trials t ON t.id = r.trial_id WHERE t.study_id = {study}"
    )
    rows.update(((number, "(report)", step), _bits(value)) for number, step, value in reports)
    return rows, late


def _bits(value: float) -> bytes:
    return np.float64(value).tobytes()


def compare(found: Left, whole: Left) -> Findings:
    """Say what is wrong with a study, beside an undisturbed one with the same seed."""
    wanted = set(range(whole.limit))
    optuna = Counter(number for number, _ in found.optuna)
    runs = Counter(trial for trial, _ in found.runs)
    lost = (
        len(wanted - found.ledger.keys())
        + len(wanted - optuna.keys())
        + len({"study", *map(str, wanted)} - runs.keys())
    )
    points = [(found.rows, whole.rows), (found.points, whole.points)]
    missing = sum(len(_places(theirs) - _places(ours)) for ours, theirs in points)
    extra = sum(sum((ours - theirs).values()) for ours, theirs in points)
    outcomes = sum(
        found.ledger.get(number) not in (None, one) for number, one in whole.ledger.items()
    )
    return Findings(
        lost=lost,
        doubled=sum(sum(counts.values()) - len(counts) for counts in (optuna, runs)),
        stuck=found.live + _unended(found),
        missing=missing,
        wrong=extra + outcomes + found.late,
        overrun=max(0, len(found.ledger) - found.limit),
    )


def _places(points: Counter[tuple[Point, bytes]]) -> set[Point]:
    return {place for place, _ in points}


def _unended(found: Left) -> int:
    """Count what has not the end in Optuna or MLflow that it has in the ledger."""
    ends = {number: ENDED.get(outcome) for number, (outcome, *_) in found.ledger.items()}
    states = {number: end[0] for number, end in ends.items() if end}
    statuses = {str(number): end[1] for number, end in ends.items() if end}
    return (
        sum(end is None for end in ends.values())
        + sum(state != states.get(number, state) for number, state in found.optuna)
        + sum(
            status == "RUNNING" if trial == "study" else status != statuses.get(trial, status)
            for trial, status in found.runs
        )
    )


def consistent(whole: Left) -> Findings:
    """Judge a study by itself: MLflow has just the ledger's finite points up to a stop."""
    stops = {number: one[2] for number, one in whole.ledger.items()}
    expected = Counter(
        {
            (place, bits): count
            for (place, bits), count in whole.rows.items()
            if place[1] != "(report)"
            and np.isfinite(np.frombuffer(bits, np.float64)[0])
            and (stops[place[0]] is None or place[2] < stops[place[0]] + (place[1] not in OF_ROWS))
        }
    )
    expected.update(
        ((number, "stopped_step", stop), _bits(stop))
        for number, stop in stops.items()
        if stop is not None
    )
    expected.update(
        ((number, "trial_value", steps), _bits(value))
        for number, (state, steps, _, _, value) in whole.ledger.items()
        if state == "completed"
    )
    steps = sum(one[1] for one in whole.ledger.values())
    rows = len({place for place in _places(whole.rows) if place[1] == "train_loss"})
    alone = compare(whole, whole)
    return Findings(
        lost=alone.lost,
        doubled=alone.doubled,
        stuck=alone.stuck,
        missing=len(_places(expected) - _places(whole.points)) + max(0, steps - rows),
        wrong=alone.wrong + sum((whole.points - expected).values()) + max(0, rows - steps),
        overrun=alone.overrun,
    )


def remains(ask: Query, name: str) -> Findings:
    """Judge a study that was deleted: what is left of it is stuck."""
    named = name.replace("'", "''")
    queries = [
        f"SELECT id FROM tuner.tuner_studies WHERE name = '{named}'",
        _orphans("trials", "study_id", "studies"),
        _orphans("chunks", "trial_id", "trials"),
        f"SELECT study_id FROM public.studies WHERE study_name = '{named}'",
        _runs(named, "g.value"),
    ]
    return Findings(stuck=sum(len(ask(query)) for query in queries))


def _orphans(table: str, key: str, parents: str) -> str:
    return (
        f"SELECT {key} FROM tuner.tuner_{table} "
        f"WHERE {key} NOT IN (SELECT id FROM tuner.tuner_{parents})"
    )
