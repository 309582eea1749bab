"""Rows to predict: read from a file or from standard input, and matched with a model's columns.

Tables have named columns, which are matched by name: CSV with a header, JSON objects, Parquet,
structured arrays of numpy. Rows without names are matched by position. Nothing is guessed: a
mistake is a `UsageError` that names the file, the row and the column.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import pandas as pd

from tuner.core.errors import UsageError
from tuner.core.features import Feature

CSV, JSON, JSON_LINES, PARQUET, NPY = FORMATS = ("csv", "json", "jsonl", "parquet", "npy")
SUFFIXES = {f".{name}": name for name in FORMATS} | {".ndjson": JSON_LINES}
LARGEST = 2**53 - 1
"""Above it, double precision has not every whole number."""
SOME = 5
"""How many names a message lists."""

Place: TypeAlias = Callable[[int], str]
"""Name a row of a file by its index."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The columns of a model's inputs."""

    features: tuple[Feature, ...]  # in the model's order; empty: they are unnamed
    shape: tuple[int, ...]  # of a row
    dtype: str  # numpy's name

    @property
    def width(self) -> int:
        """The number of columns."""
        return math.prod(self.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns; unnamed ones are called 0, 1, 2, as by pandas."""
        return tuple(one.name for one in self.features) or self.numbers

    @property
    def numbers(self) -> tuple[str, ...]:
        """What pandas calls columns without names."""
        return tuple(map(str, range(self.width)))

    def title(self, column: int) -> str:
        """Return what a column is called in messages."""
        if self.features:
            return f"column {self.features[column].name!r}"
        if len(self.shape) == 1:
            return f"column {column + 1}"
        return f"position {tuple(map(int, np.unravel_index(column, self.shape)))}"


@dataclass(frozen=True, kw_only=True)
class _Table:
    names: Sequence[str] | None  # of the columns; None: they have none
    rows: (
        Sequence[Any] | np.ndarray
    )  # of cells, which may be numbers, texts or anything that JSON has
    place: Place


def format_of(file: Path) -> str:
    """Return the format of a file by its suffix. Raise `UsageError`."""
    found = SUFFIXES.get(file.suffix.lower())
    if found is None:
        raise UsageError(
            f"{file}: expected a name that ends in {', '.join(SUFFIXES)}, or --format, got "
            f"{file.suffix or 'no suffix'}"
        )
    return found


def read(
    stream: BinaryIO, source: str, kind: str, wanted: Wanted, *, by_position: bool = False
) -> np.ndarray:  # [row, ...]
    """Return the rows of a file as a model's inputs. Raise `UsageError`.

    With `by_position`, columns without names are accepted as the model's, in its order.
    """
    named = bool(wanted.features) and not by_position
    try:
        return _read(stream, kind, wanted, named)
    except _MistakeError as mistake:
        raise UsageError(f"{source}: {mistake}") from mistake


def _read(stream: BinaryIO, kind: str, wanted: Wanted, named: bool) -> np.ndarray:  # [row, ...]
    if kind == NPY:
        return _from_array(_array(stream), wanted, named)
    table = _csv(stream, wanted, named) if kind == CSV else _READERS[kind](stream)
    if not len(table.rows):
        raise _MistakeError("expected at least one row, got none")
    return _converted(_matched(table, wanted, named), table.place, wanted)


class _Cell(str):
    """A cell of CSV, where numbers are texts."""

    __slots__ = ()


class _MistakeError(ValueError):
    """What is wrong with a file; the message lacks the file's name."""


# --- the formats


def _csv(stream: BinaryIO, wanted: Wanted, named: bool) -> _Table:
    reader = csv.reader(io.StringIO(_text(stream), newline=""), strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            lines.append((reader.line_num, [_Cell(cell.strip()) for cell in cells]))  # noqa: PERF401
    except csv.Error as error:
        raise _MistakeError(
            f"line {reader.line_num}: expected comma-separated values: {error}"
        ) from None
    while lines and not any(lines[-1][1]) and len(lines[-1][1]) <= 1:
        lines.pop()
    names = None
    if named and lines:
        names, lines = lines[0][1], lines[1:]
        _refuse_numbers(names, wanted)
    elif lines and tuple(lines[0][1]) in (wanted.names, wanted.numbers):
        if wanted.features and tuple(lines[0][1]) == wanted.names:
            what = "the model has named features; leave out --by-position"
        else:
            where = "with --by-position the model" if wanted.features else "the model"
            what = (
                f"{where} has no named features; remove that line (with pandas: to_csv(..., "
                "header=False, index=False)), or write a row of these numbers as 0.0, 1.0, ..."
            )
        raise _MistakeError(f"line {lines[0][0]}: this looks like a header, and {what}")
    numbers = [number for number, _ in lines]

    def place(row: int) -> str:
        return f"row {row + 1} (line {numbers[row]})"

    return _Table(names=names, rows=[cells for _, cells in lines], place=place)


def _refuse_numbers(names: Sequence[str], wanted: Wanted) -> None:
    """Raise with advice if there are numbers where the model's names are expected."""
    if not all(_is_number(name) for name in names):
        return
    try:
        _order(names, wanted, "")
    except _MistakeError as error:
        raise _MistakeError(
            f"{error}. The first line has numbers, not names; for rows without a header use "
            "--by-position"
        ) from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _json(stream: BinaryIO) -> _Table:
    rows = _parsed(_text(stream), "")
    if not isinstance(rows, list):
        raise _MistakeError(f"expected a JSON list of rows, got {_kind(rows)}")
    return _Table(names=None, rows=rows, place=lambda row: f"row {row + 1}")


def _json_lines(stream: BinaryIO) -> _Table:
    lines = [
        (number, line)
        for number, line in enumerate(_text(stream).split("\n"), start=1)
        if line.strip()
    ]

    def place(row: int) -> str:
        return f"row {row + 1} (line {lines[row][0]})"

    rows = [_parsed(line, f"line {number}: ") for number, line in lines]
    return _Table(names=None, rows=rows, place=place)


def _parquet(stream: BinaryIO) -> _Table:
    try:
        frame = pd.read_parquet(io.BytesIO(stream.read()))
    except (OSError, ValueError, TypeError) as error:
        raise _MistakeError(f"expected Parquet, got {_line(error)}") from error
    names = [str(name) for name in frame.columns]
    for name, kind in zip(names, frame.dtypes, strict=True):
        if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_complex_dtype(kind):
            raise _MistakeError(f"column {name!r}: expected numbers, got {kind}")
    rows = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    return _Table(names=names, rows=rows, place=lambda row: f"row {row + 1}")


_READERS: dict[str, Callable[[BinaryIO], _Table]] = {
    JSON: _json,
    JSON_LINES: _json_lines,
    PARQUET: _parquet,
}


def _array(stream: BinaryIO) -> np.ndarray:
    try:
        found = np.load(io.BytesIO(stream.read()), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _MistakeError(f"expected an array in a .npy file, got {_line(error)}") from error
    if not isinstance(found, np.ndarray) or found.ndim == 0:
        raise _MistakeError("expected an array of rows in a .npy file, got another object of numpy")
    if not len(found):
        raise _MistakeError("expected at least one row, got none")
    return found


def _from_array(found: np.ndarray, wanted: Wanted, named: bool) -> np.ndarray:  # [row, ...]
    """Return the rows of an array; only a structured one has names."""

    def place(row: int) -> str:
        return f"row {row + 1}"

    if found.dtype.names is not None:
        columns = [found[name] for name in found.dtype.names]
        if found.ndim != 1 or any(one.ndim > 1 or one.dtype.kind not in "iufb" for one in columns):
            raise _MistakeError("expected a number in each field of a structured array")
        rows = np.stack([one.astype(np.float64) for one in columns], axis=1)
        table = _Table(names=found.dtype.names, rows=rows, place=place)
        return _converted(_matched(table, wanted, named), place, wanted)
    if named:
        raise _nameless("an array", wanted)
    if found.shape[1:] != wanted.shape or found.dtype.kind not in "iuf":
        raise _MistakeError(
            f"expected rows of shape {wanted.shape} of {wanted.dtype}, got rows of shape "
            f"{found.shape[1:]} of {found.dtype}"
        )
    return _converted(found.reshape(len(found), -1), place, wanted)


# --- matching and checking


def _matched(table: _Table, wanted: Wanted, named: bool) -> np.ndarray:  # float64 [row, column]
    """Return the cells of a table in the order of the model's columns."""
    if table.names is not None:
        order = _order(table.names, wanted, "")
        if isinstance(table.rows, np.ndarray):
            found: np.ndarray = table.rows[:, order]
            return found
    values = np.empty((len(table.rows), wanted.width))
    for index, row in enumerate(table.rows):
        where = table.place(index)
        if isinstance(row, dict):
            cells = [row[name] for name in _names(row, wanted, where)]
        elif not isinstance(row, list):
            raise _MistakeError(f"{where}: expected an object or a list, got {_kind(row)}")
        elif table.names is None:
            if named:
                raise _nameless(where, wanted)
            cells = _flat(row, wanted, where)
        elif len(row) != len(table.names):
            raise _MistakeError(
                f"{where}: expected {len(table.names)} columns, as in the header, got {len(row)}"
            )
        else:
            cells = [row[at] for at in order]
        for column, cell in enumerate(cells):
            values[index, column] = _number(cell, wanted, where, column)
    return values


def _names(row: dict[str, Any], wanted: Wanted, where: str) -> Sequence[str]:
    names = list(row)
    if names != list(wanted.names):
        _order(names, wanted, f"{where}: ")
    return wanted.names


def _order(names: Sequence[str], wanted: Wanted, where: str) -> list[int]:
    """Return the position of each of the model's columns among names, which must be the same."""
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise _MistakeError(
            f"{where}expected each column once, got {_listed(twice)} more than once"
        )
    missing = [one for one in wanted.names if one not in names]
    unknown = [one for one in names if one not in wanted.names]
    parts = [
        f"{title} {_listed(some)}"
        for title, some in (("missing", missing), ("unknown", unknown))
        if some
    ]
    if parts:
        expected = "the model's features" if wanted.features else "the model's unnamed columns"
        raise _MistakeError(
            f"{where}columns: {'; '.join(parts)}; expected {expected}: {_listed(wanted.names)}"
        )
    at = {name: index for index, name in enumerate(names)}
    return [at[name] for name in wanted.names]


def _flat(row: list[Any], wanted: Wanted, where: str) -> list[Any]:
    """Return the cells of a row of numbers, or of nested lists of a row's shape."""
    if len(row) == wanted.width and not any(isinstance(one, list) for one in row):
        return row
    cells: list[Any] = [row]
    for size in wanted.shape:
        if not all(isinstance(one, list) and len(one) == size for one in cells):
            expected = (
                f"{wanted.width} columns"
                if len(wanted.shape) == 1
                else f"{wanted.width} columns or lists of shape {wanted.shape}"
            )
            raise _MistakeError(f"{where}: expected {expected}, got {len(row)}")
        cells = [inner for one in cells for inner in one]
    return cells


def _number(cell: Any, wanted: Wanted, where: str, column: int) -> float:
    """Return a cell as a number."""
    is_bool = bool(wanted.features) and wanted.features[column].dtype == "bool"
    expected = "0, 1, true or false" if is_bool else "a number"
    if isinstance(cell, _Cell) and is_bool and cell.lower() in ("true", "false"):
        return float(cell.lower() == "true")
    is_number = isinstance(cell, int | float) and (is_bool or not isinstance(cell, bool))
    try:
        if is_number or (isinstance(cell, _Cell) and "_" not in cell):
            return float(cell)
    except (ValueError, OverflowError):
        pass
    raise _MistakeError(f"{where}, {wanted.title(column)}: expected {expected}, got {_shown(cell)}")


def _converted(values: np.ndarray, place: Place, wanted: Wanted) -> np.ndarray:  # [row, ...]
    """Return values [row, column] in the model's type and shape, if it has all of them."""
    dtype = np.dtype(wanted.dtype)
    own = [one.dtype for one in wanted.features]
    checks = [(kind, [at for at, one in enumerate(own) if one == kind]) for kind in set(own)]
    for kind, columns in [*sorted(checks), (wanted.dtype, list(range(wanted.width)))]:
        expected, good = _checked(values[:, columns], np.dtype(kind))
        wrong = np.argwhere(~good)
        if len(wrong):
            row, column = int(wrong[0, 0]), columns[int(wrong[0, 1])]
            more = f", and {len(wrong) - 1} more like it" if len(wrong) > 1 else ""
            raise _MistakeError(
                f"{place(row)}, {wanted.title(column)}: expected {expected}, got "
                f"{values[row, column]:g}{more}"
            )
    # in one memory layout, of which the last bits of predictions may depend
    converted = np.ascontiguousarray(values.astype(dtype))
    return converted.reshape(len(values), *wanted.shape)


def _checked(values: np.ndarray, kind: np.dtype[Any]) -> tuple[str, np.ndarray]:
    """Return which values a column of a type may have, and where values are such."""
    finite = np.isfinite(values)
    if kind.kind == "b":
        return "0 or 1", (values == 0) | (values == 1)
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            fits = np.isfinite(values.astype(kind))
        return f"a finite number that {kind} has", finite & fits
    limits = np.iinfo(kind)
    exact = values.dtype.kind in "iu"
    low, high = (
        (limits.min, limits.max)
        if exact
        else (
            max(limits.min, -LARGEST),
            min(limits.max, LARGEST),
        )
    )
    with np.errstate(invalid="ignore"):
        whole = finite & (values == np.trunc(values))
    return f"a whole number from {low} to {high}", whole & (values >= low) & (values <= high)


# --- words


def _nameless(what: str, wanted: Wanted) -> _MistakeError:
    return _MistakeError(
        f"{what}: expected the model's features by name ({_listed(wanted.names)}), got columns "
        "without names; give a table with names, or --by-position if the columns are in this order"
    )


def _text(stream: BinaryIO) -> str:
    try:
        return stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _MistakeError(f"expected text in UTF-8, got {error}") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise _MistakeError(f"{where}expected JSON, got {_line(error)}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} twice in one object")
    return found


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name!r:.60}" for name in names[:SOME])
    return shown if len(names) <= SOME else f"{shown} and {len(names) - SOME} others"


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a text", bool: "a boolean"}.get(
        type(value), "null" if value is None else "a number"
    )


def _shown(cell: object) -> str:
    return "null" if cell is None else f"{cell!r:.60}"


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
