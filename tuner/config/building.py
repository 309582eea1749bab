"""Study specifications that are written in Python: the tables of a study file, as values.

`toml` writes them as a file, and `tuner.config.reading` reads it, so a study that is written in
Python has the same validation, defaults and digest as its file.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from tuner.config.space import SETTINGS, Space
from tuner.core.errors import UsageError

RangeTable: TypeAlias = dict[str, Any]
"""The table of a range in a study file."""


def log(low: float, high: float, *, when: Mapping[str, Any] | None = None) -> RangeTable:
    """Return a range of numbers that is sampled on a log scale, as for learning rates.

    `when` is the condition under which the parameter exists, such as `{"optimizer": "sgd"}`.
    """
    return floats(low, high, log=True, when=when)


def floats(
    low: float, high: float, *, log: bool = False, when: Mapping[str, Any] | None = None
) -> RangeTable:
    """Return a range of numbers; `log` samples their logarithm evenly."""
    return _range(float(low), float(high), log=log, when=when)


def ints(
    low: int, high: int, *, log: bool = False, when: Mapping[str, Any] | None = None
) -> RangeTable:
    """Return a range of whole numbers; `log` samples their logarithm evenly."""
    try:
        ends = operator.index(low), operator.index(high)
    except TypeError as error:
        raise UsageError(
            f"tuner.ints: expected whole numbers, got {low!r} and {high!r}; tuner.floats has others"
        ) from error
    return _range(*ends, log=log, when=when)


def _range(low: float, high: float, *, log: bool, when: Mapping[str, Any] | None) -> RangeTable:
    table: RangeTable = {"low": low, "high": high}
    if log:
        table["log"] = True
    return table if when is None else table | {"when": dict(when)}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The budget of a study, and of a trial: `steps`, or else `epochs` or `examples`.

    See `[budget]` and `[training]` of the study file.
    """

    trials: int
    steps: int | None = None
    epochs: int | None = None
    examples: int | None = None
    wall_seconds: float | None = None
    compute_seconds: float | None = None
    no_improvement: int | None = None
    regret_below: float | None = None
    improvement_below: float | None = None
    stop_after_failures: int | None = None
    weight: float | None = None
    retries: Mapping[str, int] | None = None

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return its parts of the tables `budget` and `training`."""
        budget = {key: value for key, value in asdict(self).items() if value is not None}
        of_trial = ("steps", "epochs", "examples")
        training = {key: budget.pop(key) for key in of_trial if key in budget}
        return {"budget": budget, "training": training}


def space_table(space: Mapping[str, Any], *, own_loop: bool = False) -> dict[str, Any]:
    """Return the table `space`; names that it does not know are arguments of the workload.

    So are settings of `[training]`, such as `batch_size`, if what trains has its `own_loop`.
    """
    table: dict[str, Any] = {}
    arguments = dict(space.get("arguments", {}))
    for name, entry in space.items():
        if name in Space.model_fields and not (own_loop and name in SETTINGS):
            table[name] = entry
        elif name != "arguments":
            arguments[name] = entry
    return table | ({"arguments": arguments} if arguments else {})


def toml(document: Mapping[str, Any]) -> str:
    """Return the text of a study file with these tables."""
    return "\n".join(_lines(document, ())).lstrip("\n") + "\n"


def _lines(table: Mapping[str, Any], place: Sequence[str]) -> Iterator[str]:
    """Yield a table's own values, then the tables in it; tables in lists and ranges are inline."""
    inner = {
        key: value
        for key, value in table.items()
        if isinstance(value, Mapping) and len(place) < 2 and not (place and _is_inline(value))
    }
    own = {key: value for key, value in table.items() if key not in inner}
    if place and (own or not inner):
        yield f"\n[{'.'.join(map(_key, place))}]"
    for key, value in own.items():
        yield f"{_key(key)} = {toml_value(value)}"
    for key, value in inner.items():
        yield from _lines(value, (*place, key))


def _is_inline(value: Mapping[str, Any]) -> bool:
    """Return whether a table is one value: a range, an alternative or a conditional entry."""
    return bool(value.keys() & {"low", "name", "value", "values"})


def _key(key: str) -> str:
    is_bare = key.isascii() and key.replace("-", "_").isidentifier()
    return key if is_bare else toml_value(key)


def toml_value(value: object) -> str:
    """Return a value in TOML. Raise `UsageError` for what TOML does not have."""
    if hasattr(value, "tolist") and callable(value.tolist):  # a scalar or an array of NumPy
        value = value.tolist()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_key(str(k))} = {toml_value(v)}" for k, v in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple | range):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, str):
        escaped = (
            f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 or c in '"\\' else c for c in value
        )
        return '"' + "".join(escaped) + '"'
    if isinstance(value, int | float):
        return repr(value)
    raise UsageError(
        f"expected a number, a text, true or false, a list or a table, got {value!r}, of type "
        f"{type(value).__name__}"
    )
