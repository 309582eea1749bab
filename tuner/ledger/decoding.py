"""Turn rows into records.

A row is data that anybody with a login of the database may have written, and SQLite stores any type
in any column. Where many rows are read, one that cannot be read is left out and logged, so that it
stops nobody else; `tuner doctor` and `tuner studies` list it with the reason.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy import Row

from tuner.core.errors import UnreadableError
from tuner.core.outcome import COMPLETED, KINDS, RUNNING
from tuner.ledger.records import (
    COUNTS_FROM,
    ENDED,
    OPEN,
    PAUSED,
    RANGES,
    REASON,
    STOPPED,
    AttemptRecord,
    SearchedTrial,
    StudyRecord,
    TrialRecord,
    UnreadableStudy,
    is_count,
    specification,
)

LATEST = 253_402_300_799.0
"""The end of the year 9999, in seconds since 1970."""

log = logging.getLogger(__name__)
_logged: set[str] = set()

Check = Callable[[Any], bool]


def is_number(value: object) -> bool:
    """Return whether a value is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and -LATEST < value < LATEST  # type: ignore[operator]


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _are_params(value: object) -> bool:
    return (
        isinstance(value, dict)
        and is_number(value.get("lr"))
        and value["lr"] > 0
        and isinstance(value.get("schedule"), str)
        and isinstance(value.get("optimizer"), str)
        and all(isinstance(one, str | bool) or is_number(one) for one in value.values())
    )


def _is_workload(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("code"), str)
        and isinstance(value.get("data", ""), str | None)
    )


def _is_settled(value: object) -> bool:
    return isinstance(value, dict) and is_count(value.get("threads")) and "trainer" in value


def _are_study_attrs(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    ranges = value.get(RANGES, [])
    return (
        isinstance(ranges, list)
        and all(map(_is_range, ranges))
        and isinstance(value.get(REASON, ""), str)
        and is_count(value.get(COUNTS_FROM, 0))
    )


def _is_range(value: object) -> bool:
    return (
        isinstance(value, dict)
        and {"low", "high", "why"} <= value.keys() <= RANGE_KEYS
        and is_number(value["low"])
        and is_number(value["high"])
        and isinstance(value["why"], str)
        and is_count(value.get("revision", 0))
        and isinstance(value.get("first", []), list)
    )


RANGE_KEYS = {"low", "high", "why", "trials", "first", "revision", "at"}
STUDY: Mapping[str, tuple[str, Check]] = {
    "id": ("a whole number", is_count),
    "name": ("text", _is_text),
    "version": ("a whole number", is_count),
    "digest": ("text", _is_text),
    "spec": ("text", _is_text),
    "state": ("a state of a study", {OPEN, PAUSED, STOPPED, ENDED}.__contains__),
    "rungs": ("steps", lambda value: isinstance(value, list) and all(map(is_count, value))),
    "workload": ("the digests of code and data", _is_workload),
    "settled": ("what was settled", _or_none(_is_settled)),
    "attrs": ("attributes", _are_study_attrs),
    "limit": ("a whole number", lambda value: type(value) is int),
    "reserved": ("a whole number", is_count),
    "next_number": ("a whole number", is_count),
    "revision": ("a whole number", is_count),
    "created_at": ("a time", _is_time),
}
TRIAL: Mapping[str, tuple[str, Check]] = {
    "number": ("a whole number", is_count),
    "imported": ("true or false", lambda value: isinstance(value, bool)),
    "params": ("parameters", _or_none(_are_params)),
    "attrs": ("attributes", _is_table),
    "state": ("a state of a trial", {RUNNING, *KINDS}.__contains__),
    "value": ("a number", _or_none(is_number)),
    "created_at": ("a time", _is_time),
    "ended_at": ("a time", _or_none(_is_time)),
}
"""What search reads; the rest of the columns follows."""
WHOLE_TRIAL: Mapping[str, tuple[str, Check]] = {
    **TRIAL,
    "asked_revision": ("a whole number", _or_none(is_count)),
    "reason": ("text", _or_none(_is_text)),
    "stopped_step": ("a whole number", _or_none(is_count)),
    "steps": ("a whole number", is_count),
    "last_time": ("a number", lambda value: isinstance(value, int | float)),
    "revision": ("a whole number", is_count),
}


def study_of(row: Row[Any]) -> StudyRecord:
    """Return the record of a row of `tuner_studies`. Raise `UnreadableError`."""
    title = f"study {row.name!r}" if isinstance(row.name, str) else f"study {row.id}"
    _check(title, row._asdict(), STUDY)
    try:
        spec = specification(row.spec)
    except ValueError as error:
        first = str(error).partition("\n")[2].replace("\n", " ")[:200] or str(error)
        raise UnreadableError(f"{title} cannot be read: its specification: {first}") from error
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
        attrs=row.attrs,
        limit=row.limit,
        reserved=row.reserved,
        revision=row.revision,
        created_at=row.created_at,
    )


def studies_of(rows: Iterable[Row[Any]]) -> list[StudyRecord]:
    """Return the records of the rows that can be read."""
    found = []
    for row in rows:
        try:
            found.append(study_of(row))
        except UnreadableError as error:
            log_once(f"{error}; it is left out")
    return found


def unreadable_study_of(row: Row[Any]) -> UnreadableStudy | None:
    """Return the identity of a study and why it cannot be read; None if it can."""
    try:
        study_of(row)
    except UnreadableError as error:
        version = row.version if is_count(row.version) else 1
        return UnreadableStudy(id=row.id, name=str(row.name), version=version, why=str(error))
    return None


def trial_of(values: Mapping[str, Any], **more: Any) -> TrialRecord:
    """Return the record of a row of `tuner_trials`. Raise `UnreadableError`."""
    _check(_title(values), values, WHOLE_TRIAL)
    _check_outcome(values)
    return TrialRecord(**values, **more)


def searched_trial_of(values: Mapping[str, Any], reports: Mapping[Any, Any]) -> SearchedTrial:
    """Return what search reads of a row of `tuner_trials`. Raise `UnreadableError`."""
    _check(f"trial {values['number']!r}", values, TRIAL)
    _check_outcome(values)
    if not (all(map(is_count, reports)) and all(map(is_number, reports.values()))):
        raise UnreadableError(f"trial {values['number']} cannot be read: its reports")
    return SearchedTrial(**values, reports=dict(sorted(reports.items())))


def attempt_of(values: Mapping[str, Any]) -> AttemptRecord:
    """Return the record of a row of `tuner_attempts`; an unreadable environment is empty."""
    environment = values["environment"]
    if not isinstance(environment, dict):
        environment = {}
    elif not isinstance(environment.get("packages", {}), dict):
        environment = {**environment, "packages": {}}
    return AttemptRecord(**{**values, "environment": environment})


def log_once(message: str) -> None:
    """Log a warning that this process has not logged before: rows are read again and again."""
    if message not in _logged:
        _logged.add(message)
        log.warning("%s", message)


def _title(values: Mapping[str, Any]) -> str:
    return f"trial {values['number']!r} of study {values['study_id']}"


def _check(title: str, values: Mapping[str, Any], columns: Mapping[str, tuple[str, Check]]) -> None:
    for name, (expected, check) in columns.items():
        value = values[name]
        try:
            right = check(value)
        except TypeError:  # such as an unhashable value
            right = False
        if not right:
            shown = f"{value!r:.60}"
            raise UnreadableError(
                f"{title} cannot be read: {name}: expected {expected}, got {shown}"
            )


def _check_outcome(values: Mapping[str, Any]) -> None:
    if values["state"] == COMPLETED and values["value"] is None:
        raise UnreadableError(f"trial {values['number']} cannot be read: it has no value")
