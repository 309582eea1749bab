"""Turn rows into records: the one place where the content of rows is checked.

A row is data that anybody with a login of the database may have written, and SQLite stores any type
in any column. What is not checked here is not in a record. A row that cannot be read raises
`UnreadableError` and nothing else does. Where many rows are read, it is left out and logged, so
that it stops nobody else; `tuner doctor` and `tuner status` list it with the reason.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import JSON, Boolean, Column, Double, Integer, LargeBinary, Row, String, Table

from tuner.config import Range, StudySpec, horizon_of
from tuner.core import cron
from tuner.core.curves import LATEST
from tuner.core.errors import UnreadableError, WorkloadError
from tuner.core.outcome import COMPLETED, KINDS, RUNNING
from tuner.core.text import NAME_LIMIT
from tuner.ledger import event_tables, retraining_tables, tables
from tuner.ledger.records import (
    ADDED,
    CONFIRMATION,
    CONTINUED,
    COUNTS_FROM,
    DECIDED,
    ENDED,
    ENQUEUED,
    EXCESS,
    EXTENSION,
    FIXED,
    HISTORY,
    LARGEST,
    LARGEST_ID,
    OPEN,
    PARENT,
    PAUSED,
    RANGES,
    REASON,
    RETRIED,
    RETRY,
    ROUND,
    SEED,
    STOPPED,
    AttemptRecord,
    Report,
    SearchedTrial,
    StudyRecord,
    TrialRecord,
    UnreadableStudy,
    is_count,
    is_id,
    sizes_of,
    specification,
    titled,
)

RUNG = "completed_rung_"
"""Prefix of the attributes that hold the value with which a trial completed a rung."""
MOST_THREADS = 4096
"""More threads than any machine has, and more slots than a study file may ask for."""

log = logging.getLogger(__name__)
_logged: set[str] = set()

Check = Callable[[Any], bool]
R = TypeVar("R")


def is_number(value: object) -> bool:
    """Return whether a value is a finite number."""
    try:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer larger than any float
        return False


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_label(value: object) -> bool:
    """Return whether a value is a text that MLflow takes as a tag."""
    return isinstance(value, str) and len(value) <= NAME_LIMIT


def _is_no_longer_than(length: int) -> Check:
    return lambda value: isinstance(value, str) and len(value) <= length


def is_time(value: object) -> bool:
    """Return whether a value is a time in seconds since 1970, up to the year 9999."""
    return type(value) in (int, float) and 0.0 <= value <= LATEST  # type: ignore[operator]


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


@dataclass(frozen=True)
class _OneOf:
    """The check that a value is one of some texts."""

    options: tuple[str, ...]

    def __call__(self, value: object) -> bool:
        return isinstance(value, str) and value in self.options


def _one_of(*options: str) -> tuple[str, Check]:
    return f"one of {', '.join(options)}", _OneOf(options)


def _are_params(value: object) -> bool:
    return (
        isinstance(value, dict)
        and is_number(value.get("lr"))
        and value["lr"] > 0
        and isinstance(value.get("schedule"), str)
        and isinstance(value.get("optimizer"), str)
        and _are_values(value)
    )


def _is_workload(value: object) -> bool:
    if not isinstance(value, dict) or not _is_label(value.get("code")):
        return False
    texts, counts = ("data", "data_name"), ("training_rows", "validation_rows")
    files = value.get("files") or {}
    return (
        isinstance(files, dict)
        and all(_is_label(one) for pair in files.items() for one in pair)
        and all(value.get(one) is None or _is_label(value[one]) for one in texts)
        and all(value.get(one) is None or is_count(value[one]) for one in counts)
        and (value.get("baseline_loss") is None or is_number(value["baseline_loss"]))
        and isinstance(value.get("keeps_last", False), bool)
    )


def _is_settled(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.get("trainer", "reference") in ("reference", "cohort", "own", "ask and tell")
        and all(
            is_count(value.get(one, 1)) and 1 <= value.get(one, 1) <= MOST_THREADS
            for one in ("slots", "threads")
        )
        and "threads" in value
        and isinstance(value.get("reason", ""), str)
    )


def _are_study_attrs(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    ranges = value.get(RANGES, [])
    return (
        isinstance(ranges, list)
        and all(map(_is_range, ranges))
        and isinstance(value.get(REASON, ""), str)
        and is_count(value.get(COUNTS_FROM, 0))
        and is_count(value.get(DECIDED, 0))
    )


def _is_range(value: object) -> bool:
    return (
        isinstance(value, dict)
        and {"low", "high", "why"} <= value.keys() <= RANGE_KEYS
        and is_number(value["low"])
        and is_number(value["high"])
        and 0 < value["low"] < value["high"]
        and isinstance(value["why"], str)
        and is_count(value.get("revision", 0))
        and is_count(value.get("trials", 0))
        and is_time(value.get("at", 0.0))
        and isinstance(value.get("first", []), list)
        and all(map(_is_first, value.get("first", [])))
    )


def _is_first(value: object) -> bool:
    """Return whether a value is what a probe found for one of the first trials."""
    return (
        isinstance(value, dict)
        and value.keys() == {"lr", "optimizer"}
        and is_number(value["lr"])
        and isinstance(value["optimizer"], str)
    )


def are_trial_attrs(value: object) -> bool:
    """Return whether a value is the attributes of a trial."""
    return isinstance(value, dict) and all(
        OF_TRIALS[key](one)
        if key in OF_TRIALS
        else is_number(one)
        if key.startswith(EXCESS)
        else not key.startswith(RUNG)
        or (key.removeprefix(RUNG).isdecimal() and len(key) < 30 and is_number(one))
        for key, one in value.items()
    )


def _are_values(value: object) -> bool:
    """Return whether a value is a table of values of parameters."""
    return isinstance(value, dict) and all(map(_is_scalar, value.values()))


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | bool) or is_number(value)


def _is_parent(value: object) -> bool:
    is_title = _is_no_longer_than(len(titled("", LARGEST)) + NAME_LIMIT)
    return isinstance(value, dict) and is_count(value.get("trial")) and is_title(value.get("study"))


def _is_measured(value: object) -> bool:
    """Return whether a value is a measured number, which may be infinite, or None."""
    return value is None or type(value) in (int, float)


def _is_trained(value: object) -> bool:
    origin = value.get("origin") if isinstance(value, dict) else None
    return (
        isinstance(value, dict)
        and isinstance(origin, dict)
        and origin.keys() == {"params", "study", "version", "trial", "lr_range", "best"}
        and _are_params(origin["params"])
        and _is_label(origin["study"])
        and all(is_count(origin[one]) for one in ("version", "trial", "best"))
        and isinstance(origin["lr_range"], list)
        and len(origin["lr_range"]) == 2
        and all(map(is_number, origin["lr_range"]))
        and _is_measured(value.get("value"))
        and isinstance(value.get("failed"), str | None)
        and {"value", "failed"} <= value.keys()
    )


def _is_evaluated(value: object) -> bool:
    values = value.get("values") if isinstance(value, dict) else None
    return (
        isinstance(value, dict)
        and isinstance(value.get("promote"), bool)
        and isinstance(value.get("reason"), str)
        and "champion" in value
        and _or_none(is_count)(value["champion"])
        and isinstance(values, dict)
        and values.keys() == {"champion", "challenger"}
        and all(map(_is_measured, values.values()))
    )


def _is_logged(value: object) -> bool:
    return (
        isinstance(value, dict)
        and {"run_id", "version"} <= value.keys()
        and _or_none(_is_label)(value["run_id"])
        and _or_none(is_count)(value["version"])
        and _or_none(is_count)(value.get("champion"))
    )


OF_STAGES: Mapping[str, Check] = {
    "train": _is_trained,
    "evaluate": _is_evaluated,
    "log": _is_logged,
}
"""Results of a retraining's stages that are read."""


def _are_results(value: object) -> bool:
    return isinstance(value, dict) and all(
        OF_STAGES[stage](found) for stage, found in value.items() if stage in OF_STAGES
    )


OF_TRIALS: Mapping[str, Check] = {
    FIXED: _are_values,
    ADDED: lambda value: value in (ENQUEUED, RETRY, EXTENSION, CONFIRMATION),
    RETRIED: is_count,
    HISTORY: lambda value: isinstance(value, list) and all(map(is_count, value)),
    PARENT: _is_parent,
    CONTINUED: is_count,
    SEED: lambda value: type(value) is int and 0 <= value < 2**32,
    ROUND: is_count,
}
"""Attributes of trials that are read."""


def _are_rungs(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(is_count(one) and one > 0 for one in value)
        and value == sorted(set(value))
    )


def _is_launch_key(value: object) -> bool:
    """Return whether a value may be part of the names of files and of an engine's jobs."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{12}", value) is not None


def _are_handles(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_label, value))


RANGE_KEYS = {"low", "high", "why", "trials", "first", "revision", "at"}
_STUDIES, _TRIALS = tables.studies.c, tables.trials.c
_TIMETABLES, _RUNS = retraining_tables.timetables.c, retraining_tables.timetable_runs.c
RULES: Mapping[Column[Any], tuple[str, Check]] = {
    _STUDIES.state: _one_of(OPEN, PAUSED, STOPPED, ENDED),
    _STUDIES.rungs: ("ascending steps", _are_rungs),
    _STUDIES.workload: ("the digests of code and data", _is_workload),
    _STUDIES.settled: ("what was settled", _is_settled),
    _STUDIES.attrs: ("attributes", _are_study_attrs),
    _STUDIES.limit: ("a whole number", lambda value: type(value) is int and abs(value) <= LARGEST),
    _TRIALS.params: ("parameters", _are_params),
    _TRIALS.attrs: ("attributes", are_trial_attrs),
    _TRIALS.objectives: ("numbers", _are_numbers),
    _TRIALS.state: _one_of(RUNNING, *KINDS),
    retraining_tables.retrainings.c.stage: _one_of("train", "evaluate", "log", "promote", "done"),
    retraining_tables.retrainings.c.result: ("results of stages", _are_results),
    retraining_tables.retrainings.c.outcome: _one_of(
        "promoted", "kept", "failed", "proposed", "canary", "rejected"
    ),
    event_tables.events.c.action: _one_of(*event_tables.ACTIONS),
    event_tables.notifications.c.channel: _one_of(*event_tables.CHANNELS),
    event_tables.notifications.c.state: _one_of(*event_tables.STATES),
    _TIMETABLES.catch_up: _one_of(cron.LATEST, cron.ALL, cron.SKIP),
    _TIMETABLES.overlap: _one_of(cron.SKIP, cron.QUEUE),
    tables.launches.c.key: ("12 hexadecimal digits", _is_launch_key),
    tables.launches.c.handles: ("a list of handles", _are_handles),
    _RUNS.state: _one_of("waiting", "running", "ended", "skipped", "missed"),
}
"""What columns hold whose type alone does not say it."""
TIMES = ("_at",)
"""Endings of the names of columns that hold a time."""
BY_TYPE: Sequence[tuple[type, tuple[str, Check]]] = (
    (Boolean, ("true or false", lambda value: isinstance(value, bool))),
    (Integer, ("a whole number", is_count)),
    (Double, ("a number", is_number)),
    (JSON, ("a table", _is_table)),
    (LargeBinary, ("bytes", lambda value: isinstance(value, bytes))),
    (String, ("text", _is_text)),
)
STORAGE: Sequence[tuple[type | tuple[type, ...], str]] = (
    ((Boolean, Integer), "integer"),
    (Double, "real"),
    (LargeBinary, "blob"),
    ((JSON, String), "text"),
)
"""The storage classes of SQLite for the types of columns."""

Rules = Sequence[tuple[str, str, Check]]


def condition(column: Column[Any], row: str = "") -> str | None:
    """Return the rule of a column as SQL, beside what PostgreSQL's type of the column requires.

    Return None if there is nothing beside it: lengths and numbers' kinds are types, and JSON is
    checked here alone. `row` is what the column's name is qualified with, as `NEW.`.
    """
    name = f'{row}"{column.name}"'
    _, check = RULES.get(column, ("", None))
    if isinstance(check, _OneOf):
        return f"{name} IN ({', '.join(repr(one) for one in check.options)})"
    if check is not None:
        return None
    if isinstance(column.type, Integer) and not column.foreign_keys:
        return f"{name} >= 0"
    if isinstance(column.type, Double):
        if column.name.endswith(TIMES):
            return f"{name} BETWEEN 0 AND {LATEST!r}"
        largest = sys.float_info.max
        return f"{name} BETWEEN {-largest!r} AND {largest!r}"
    return None


def condition_with_type(column: Column[Any], row: str = "") -> str:
    """Return the rule of a column as SQL of SQLite, which stores any type in any column."""
    name, kind = f'{row}"{column.name}"', column.type
    storage = next(one for types, one in STORAGE if isinstance(kind, types))
    parts = [f"typeof({name}) IN ('{storage}', 'null')"]
    if isinstance(kind, Boolean):
        parts.append(f"{name} IN (0, 1)")
    if isinstance(kind, Integer):
        # an id is not refused for being large: all that come after it are larger
        largest = LARGEST_ID if _is_id(column) else LARGEST
        parts.append(f"{name} BETWEEN {-largest} AND {largest}")
    if isinstance(kind, String) and kind.length is not None:
        parts.append(f"length({name}) <= {kind.length}")
    rule = condition(column, row)
    return " AND ".join(parts if rule is None else [*parts, rule])


def expected_in(column: Column[Any]) -> str:
    """Return what a column is expected to hold, in words."""
    return _rule(column)[0]


def rules_of(table: Table) -> Rules:
    """Return the rule of each column: its name, what is expected, and the check."""
    return [(column.name, *_rule(column)) for column in table.columns]


def _is_id(column: Column[Any]) -> bool:
    """Return whether a column has ids, of its own rows or of those of another table."""
    return isinstance(column.type, Integer) and (column.name == "id" or bool(column.foreign_keys))


def _rule(column: Column[Any]) -> tuple[str, Check]:
    expected, check = next(rule for kind, rule in BY_TYPE if isinstance(column.type, kind))
    if isinstance(column.type, Double) and column.name.endswith(TIMES):
        expected, check = "a time", is_time
    if _is_id(column):
        check = is_id
    if isinstance(column.type, String) and column.type.length is not None:
        expected = f"text of at most {column.type.length} characters"
        check = _is_no_longer_than(column.type.length)
    expected, check = RULES.get(column, (expected, check))
    return (expected, _or_none(check)) if column.nullable else (expected, check)


ALL_RULES: Mapping[str, Rules] = {
    table.name: rules_of(table) for table in tables.metadata.sorted_tables
}
STUDY = ALL_RULES["tuner_studies"]
TRIAL = ALL_RULES["tuner_trials"]
_SEARCHED = {
    "number",
    "imported",
    "params",
    "attrs",
    "state",
    "value",
    "created_at",
    "ended_at",
    "objectives",
}
SEARCHED_TRIAL: Rules = [rule for rule in TRIAL if rule[0] in _SEARCHED]


def study_of(row: Row[Any]) -> StudyRecord:
    """Return the record of a row of `tuner_studies`. Raise `UnreadableError`."""
    title = f"study {row.name!r}" if isinstance(row.name, str) else f"study {row.id!r}"
    _check(title, row._asdict(), STUDY)
    try:
        spec = specification(row.spec)
    except (ValueError, RecursionError) as error:
        first = str(error).partition("\n")[2].replace("\n", " ")[:200] or str(error)[:200]
        raise UnreadableError(f"{title} cannot be read: its specification: {first}") from error
    if row.version < 1:
        raise UnreadableError(f"{title} cannot be read: version: expected at least 1, got 0")
    if row.rungs and row.rungs[-1] > spec.length:
        raise UnreadableError(
            f"{title} cannot be read: rungs: expected up to {spec.length}, got {row.rungs[-1]}"
        )
    if spec.unit != "steps" and row.workload.get("training_rows") == 0:
        raise UnreadableError(f"{title} cannot be read: workload: it has no training examples")
    try:
        horizon_of(spec, {}, *sizes_of(row.workload))
    except WorkloadError as error:
        raise UnreadableError(f"{title} cannot be read: {error}") from error
    return StudyRecord(
        id=row.id,
        name=row.name,
        version=row.version,
        digest=row.digest,
        spec=spec,
        state=row.state,
        rungs=tuple(row.rungs),
        workload=row.workload,
        settled=row.settled,
        attrs=study_attrs_of(title, row.attrs, spec),
        limit=row.limit,
        reserved=row.reserved,
        revision=row.revision,
        created_at=row.created_at,
    )


def study_attrs_of(title: str, value: Any, spec: StudySpec) -> Mapping[str, Any]:
    """Return the attributes of a study. Raise `UnreadableError`."""
    if not _are_study_attrs(value):
        raise UnreadableError(
            f"{title} cannot be read: attrs: expected attributes, got {value!r:.60}"
        )
    lr = spec.space.lr
    for one in value.get(RANGES, []):
        inside = isinstance(lr, Range) and lr.low <= one["low"] and one["high"] <= lr.high
        if not (spec.probe.enabled and inside):
            raise UnreadableError(
                f"{title} cannot be read: attrs: expected ranges within that of the rate, got "
                f"{one['low']:g} to {one['high']:g}"
            )
    return dict(value)


def settled_of(title: str, value: Any) -> Mapping[str, Any]:
    """Return what the first start of a study settled on. Raise `UnreadableError`."""
    if not _is_settled(value):
        raise UnreadableError(f"{title} cannot be read: settled: got {value!r:.60}")
    return dict(value)


def studies_of(rows: Iterable[Row[Any]]) -> list[StudyRecord]:
    """Return the records of the rows that can be read."""
    return list(readable(study_of, rows))


def readable(read: Callable[..., R], rows: Iterable[Any], where: str = "") -> Iterator[R]:
    """Yield what `read` makes of the rows that can be read; log the others."""
    for row in rows:
        try:
            yield read(row)
        except UnreadableError as error:
            log_once(f"{error}; it is left out{where}")


def unreadable_study_of(row: Row[Any]) -> UnreadableStudy | None:
    """Return the identity of a study and why it cannot be read; None if it can."""
    try:
        study_of(row)
    except UnreadableError as error:
        version = row.version if is_count(row.version) else 1
        return UnreadableStudy(id=row.id, name=str(row.name), version=version, why=str(error))
    return None


def trial_of(values: Mapping[str, Any], reports: Sequence[Report] = ()) -> TrialRecord:
    """Return the record of a row of `tuner_trials`. Raise `UnreadableError`."""
    title = f"trial {values['number']!r} of study {values['study_id']!r}"
    _check(title, values, TRIAL)
    _check_trial(title, values)
    if values["state"] == COMPLETED and values["params"] is None:
        raise UnreadableError(f"{title} cannot be read: it is completed and has no parameters")
    _check_reports(title, [(one.step, one.value) for one in reports])
    if not all(isinstance(one.reason, str) for one in reports):
        raise UnreadableError(f"{title} cannot be read: the reason of a report")
    return TrialRecord(**values, reports=tuple(reports))


def searched_trial_of(found: tuple[Mapping[str, Any], Mapping[Any, Any]]) -> SearchedTrial:
    """Return what search reads of a row of `tuner_trials` and its reports.

    Raise `UnreadableError`.
    """
    values, reports = found
    title = f"trial {values['number']!r}"
    _check(title, values, SEARCHED_TRIAL)
    _check_trial(title, values)
    _check_reports(title, reports.items())
    return SearchedTrial(**values, reports=dict(sorted(reports.items())))


def _check_trial(title: str, values: Mapping[str, Any]) -> None:
    if values["state"] == COMPLETED and values["value"] is None:
        raise UnreadableError(f"{title} cannot be read: it is completed and has no value")
    if values["state"] != RUNNING and values["ended_at"] is None:
        raise UnreadableError(f"{title} cannot be read: it has ended at no time")


def _check_reports(title: str, reports: Iterable[tuple[Any, Any]]) -> None:
    if not all(is_count(step) and is_number(value) for step, value in reports):
        raise UnreadableError(f"{title} cannot be read: its reports")


def attempt_of(values: Mapping[str, Any]) -> AttemptRecord:
    """Return the record of a row of `tuner_attempts`. Raise `UnreadableError`."""
    _check(f"attempt {values['id']!r}", values, ALL_RULES["tuner_attempts"])
    return AttemptRecord(**values)


MEMORY = ("peak_memory_mib", "peak_gpu_memory_mib")
"""Of an attempt's environment: the most MiB that its process had had by its end, or by now."""


def environment_of(trial: int, value: Any) -> Mapping[str, Any]:
    """Return the environment of an attempt at a trial, empty if it had none.

    Raise `UnreadableError`.
    """
    if value is None or value == {}:  # it was added and cancelled before any attempt
        return {}
    texts = ("device", "host", "python")
    if not (
        isinstance(value, dict)
        and all(_is_label(value.get(one)) for one in texts)
        and (value.get("git_commit") is None or _is_label(value["git_commit"]))
        and isinstance(value.get("git_dirty"), bool | None)
        and isinstance(value.get("packages"), dict)
        and all(map(_is_label, value["packages"]))
        and all(map(_is_label, value["packages"].values()))
        and _is_settled(value.get("settled"))
        and all(one not in value or _is_label(value[one]) for one in ("device_name", "launch"))
        and all(one not in value or is_count(value[one]) for one in (*MEMORY, "index"))
    ):
        raise UnreadableError(
            f"trial {trial} cannot be read: the environment of an attempt at it: got {value!r:.60}"
        )
    return value


def checked(title: str, table: Table, row: Row[*tuple[Any, ...]]) -> Mapping[str, Any]:
    """Return the values of a row by the names of its columns. Raise `UnreadableError`."""
    values = row._asdict()
    _check(title, values, [rule for rule in ALL_RULES[table.name] if rule[0] in values])
    return values


def log_once(message: str) -> None:
    """Log a warning that this process has not logged before: rows are read again and again."""
    if message not in _logged:
        _logged.add(message)
        log.warning("%s", message)


def _check(title: str, values: Mapping[str, Any], rules: Rules) -> None:
    for name, expected, check in rules:
        value = values[name]
        if not check(value):
            shown = f"{value!r:.60}"
            raise UnreadableError(
                f"{title} cannot be read: {name}: expected {expected}, got {shown}"
            )
