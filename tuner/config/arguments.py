"""Entries of `[space]` whose type is not known in advance: arguments, settings and rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import Field, PlainSerializer, PlainValidator

from tuner.config.parameters import Condition
from tuner.config.values import Entry, ParameterValue, Range, Table, WholeRange, mistake
from tuner.core.text import is_readable

LARGEST = 2**53
"""Whole numbers up to this size are exact in Optuna's tables, which store floats."""
LONGEST = 200
"""Characters of a text."""
FORMS = (
    "a number, a text, true or false, a list of them, or a table with low and high, value, or "
    "values"
)


class EntryTable(Table):
    """An entry as a table of a study file: a range, a list or a value, with a condition or not."""

    low: float | int | None = None
    high: float | int | None = None
    log: bool | None = None
    value: ParameterValue | None = None
    values: Annotated[tuple[ParameterValue, ...] | None, Field(min_length=1)] = None
    when: dict[str, ParameterValue | tuple[ParameterValue, ...]] | None = None


@dataclass(frozen=True)
class Conditional:
    """An entry with the condition under which it exists."""

    entry: Entry
    when: Condition


Searched: TypeAlias = Entry | Conditional
"""A validated entry, with a condition or without."""


def entry_of(searched: Searched) -> Entry:
    """Return an entry without its condition."""
    return searched.entry if isinstance(searched, Conditional) else searched


def condition_of(searched: Searched) -> Condition:
    """Return the condition of an entry."""
    return searched.when if isinstance(searched, Conditional) else {}


def _searched(raw: object) -> Searched:
    """Return the entry of a value of a study file. Raise an error of pydantic."""
    if isinstance(raw, Range | Conditional):
        return raw
    if isinstance(raw, list | tuple):
        return _list(raw)
    if not isinstance(raw, Mapping):
        return _value(raw)
    return _table(dict(raw))


def _table(table: dict[str, Any]) -> Searched:
    when = _when(table.pop("when")) if "when" in table else None
    forms = [{"low", "high"}, {"low", "high", "log"}, {"values"}, {"value"}]
    if set(table) not in forms:
        known = "low and high (and log), values, or value, and when"
        raise mistake(f"a table with {known}", "one with " + (", ".join(sorted(table)) or "none"))
    entry: Entry
    if "values" in table:
        if not isinstance(table["values"], list | tuple):
            raise mistake("a list of values", str(table["values"]))
        entry = _list(table["values"])
    elif "value" in table:
        entry = _value(table["value"])
    else:
        entry = _range(table["low"], table["high"], table.get("log"))
    return Conditional(entry, when) if when else entry


def _value(raw: object) -> ParameterValue:
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, int):
        if abs(raw) > LARGEST:
            raise mistake(f"a whole number of at most {LARGEST}", str(raw))
        return raw
    if isinstance(raw, float):
        if not math.isfinite(raw):
            raise mistake("a finite number", str(raw))
        return raw
    if isinstance(raw, str):
        if not is_readable(raw) or len(raw) > LONGEST:
            raise mistake(f"a text of at most {LONGEST} characters, without control characters")
        return raw
    raise mistake(FORMS)


def _list(raw: list[Any] | tuple[Any, ...]) -> tuple[ParameterValue, ...]:
    if not raw:
        raise mistake("at least one value", "none")
    values = tuple(_value(item) for item in raw)
    numbers = [one for one in values if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(numbers) == len(values) and any(isinstance(one, float) for one in values):
        values = tuple(float(one) for one in numbers)
    for index, one in enumerate(values):
        if one in values[:index]:  # true and 1 are one value to Optuna
            raise mistake("each value once", f"{one!r} twice".lower())
    return values


def _range(low: object, high: object, log: object) -> Range:
    for raw in (low, high):
        if isinstance(raw, bool) or not isinstance(raw, int | float):
            raise mistake("numbers as low and high", str(raw))
        _value(raw)
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if not low < high:
        raise mistake("a range whose low is below its high", f"{low} and {high}")
    if not isinstance(log, bool | None):
        raise mistake("log = true or log = false", str(log))
    if log and low <= 0:
        raise mistake("a range above 0, or log = false", f"low = {low}")
    if isinstance(low, int) and isinstance(high, int):
        return WholeRange(low=low, high=high, log=bool(log))
    return Range(low=float(low), high=float(high), log=bool(log))


def _when(raw: object) -> Condition:
    if not isinstance(raw, Mapping):
        raise mistake('a condition such as when = { optimizer = "sgd" }', str(raw))
    return {
        str(name): _list(value) if isinstance(value, list | tuple) else (_value(value),)
        for name, value in raw.items()
    }


def _numbers(entry: Entry) -> tuple[Any, ...]:
    if isinstance(entry, Range):
        return (entry.low, entry.high)
    return entry if isinstance(entry, tuple) else (entry,)


def _checked(
    expected: str, allowed: Callable[[Any], bool], *, log: bool = False
) -> Callable[[object], Searched]:
    """Return a validator of entries whose values are all `allowed`; `log` is that of ranges."""

    def check(raw: object) -> Searched:
        if log and isinstance(raw, Mapping) and "low" in raw:
            raw = {"log": True, **raw}
        searched = _searched(raw)
        for number in _numbers(entry_of(searched)):
            if not allowed(number):
                raise mistake(f"{expected}, a list of them, or a range", str(number))
        return searched

    return check


def _is_whole(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_above_zero(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _raw(searched: Searched) -> object:
    """Return an entry as in a study file."""
    entry, when = entry_of(searched), condition_of(searched)
    if isinstance(entry, Range):
        raw: dict[str, Any] = {"low": entry.low, "high": entry.high, "log": bool(entry.log)}
    else:
        raw = {"values": list(entry)} if isinstance(entry, tuple) else {"value": entry}
    if when:
        return raw | {"when": {name: list(values) for name, values in when.items()}}
    return raw if isinstance(entry, Range) else next(iter(raw.values()))


_File: TypeAlias = (
    ParameterValue | Annotated[tuple[ParameterValue, ...], Field(min_length=1)] | EntryTable
)
_STORED = PlainSerializer(_raw, return_type=Any)

Argument: TypeAlias = Annotated[
    Searched, PlainValidator(_searched, json_schema_input_type=_File), _STORED
]
"""An argument of a factory or train function."""

Count: TypeAlias = Annotated[
    Searched,
    PlainValidator(
        _checked("a whole number of at least 1", _is_whole), json_schema_input_type=_File
    ),
    _STORED,
]
"""A number of rows or micro-batches."""

Positive: TypeAlias = Annotated[
    Searched,
    PlainValidator(
        _checked("a number above 0", _is_above_zero, log=True), json_schema_input_type=_File
    ),
    _STORED,
]
"""A number above 0; its ranges are sampled on a log scale."""

PRECISIONS = ("float32", "bfloat16", "float16")
Precision: TypeAlias = Annotated[
    Searched,
    PlainValidator(
        _checked(f"one of {', '.join(PRECISIONS)}", lambda value: value in PRECISIONS),
        json_schema_input_type=_File,
    ),
    _STORED,
]
"""A precision of forward passes."""
