"""The messages for mistakes in a study file, one line each."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from pydantic_core import ErrorDetails

from tuner.config.optimizers import OptimizerChoice
from tuner.config.schedules import ScheduleChoice, ScheduleName
from tuner.config.search import AnyPruner, AnySampler
from tuner.config.study import StudySpec
from tuner.config.values import Range, Table
from tuner.core import text as texts

Place = tuple[str | int, ...]
"""The keys and indices that lead to a value in a study file."""


def tables_of(spec: type[Table]) -> dict[str, type[Table]]:
    """Return the tables of a file by their names."""
    return {
        name: table
        for name, field in spec.model_fields.items()
        if isinstance(table := field.annotation, type)
    }


TABLES = tables_of(StudySpec)
_ALTERNATIVES_OF: dict[str, dict[str, type[Table]]] = {
    name: {
        get_args(table.model_fields["name"].annotation)[0]: table
        for union in unions
        for table in get_args(get_args(union)[0])
    }
    for name, unions in {
        "space": (ScheduleChoice, OptimizerChoice),
        "search": (AnySampler, AnyPruner),
    }.items()
}
_ALTERNATIVES = _ALTERNATIVES_OF["space"] | _ALTERNATIVES_OF["search"]
_BOUNDS = ("gt", "ge", "lt", "le")
_FORMS = ("value", "list", "range")  # of an entry of the space; pydantic includes them in locations
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "int_type": "a whole number",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "model_attributes_type": "a name or a table",
    "model_type": "a table",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_long": "at most {max_length} characters",
    "string_too_short": "at least {min_length} character",
    "string_type": "a string",
    "string_unicode": "a string",
    "too_short": "at least {min_length} item",
    "tuple_type": "a list",
    "union_tag_not_found": "a table with a name",
}


class Mistake(NamedTuple):
    """One mistake."""

    place: Place
    expected: str
    got: str
    hint: str = ""

    def line(self, source: str) -> str:
        """Return the message; `source` is the name of the file."""
        where = f"{printable(source)}: {named(self.place)}"
        return f"{where}: expected {self.expected}, got {self.got}{self.hint}"


@dataclass(frozen=True)
class Unusable:
    """The mark of a TOML value that neither databases nor JSON can store."""

    expected: str
    got: str

    def __str__(self) -> str:
        return self.got


def mark_unusable(document: dict[str, Any]) -> None:
    """Replace values that databases or JSON cannot store by a mark, which no table accepts."""
    waiting: list[Any] = [document]
    while waiting:
        holder = waiting.pop()
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            if isinstance(value, dict | list):
                waiting.append(value)
            elif isinstance(value, int) and value.bit_length() > 63:
                holder[key] = Unusable("a number of 64 bits", f"one of {value.bit_length()}")
            elif isinstance(value, str) and any(
                c == "\0" or "\ud800" <= c < "\ue000" for c in value
            ):
                holder[key] = Unusable("text without null characters", shown(value))


def mistakes_of(
    table: str,
    errors: Iterable[ErrorDetails],
    document: Mapping[str, Any],
    tables: Mapping[str, type[Table]] = TABLES,
) -> Iterator[Mistake]:
    """Yield the mistakes of pydantic's errors in a table; the members of a union make one.

    `tables` are those of the file.
    """
    found: dict[Place, Mistake] = {}
    for error in errors:
        if error["type"] == "too_short" and error["input"]:
            continue  # pydantic counts valid items only; the others are reported already
        mistake = _mistake_of(table, error, document, tables)
        earlier = found.get(mistake.place)
        if earlier and earlier.expected != mistake.expected:
            mistake = earlier._replace(expected=f"{earlier.expected} or {mistake.expected}")
        found[mistake.place] = mistake
    yield from found.values()


def _mistake_of(
    table: str,
    error: ErrorDetails,
    document: Mapping[str, Any],
    tables: Mapping[str, type[Table]],
) -> Mistake:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    full = (table, *error["loc"])
    place = _place(full, kind, document)
    if kind == "extra_forbidden":
        return unknown(place, _owner(full, tables).model_fields)
    if isinstance(value, Unusable):
        return Mistake(place, value.expected, value.got)
    got = "nothing" if kind == "missing" else shown(value)
    hint = ""
    if kind == "mistake":
        expected = context["expected"]
        if context["got"] is not None:
            got = context["got"] if isinstance(context["got"], str) else shown(context["got"])
    elif kind == "union_tag_invalid":
        names = [name.strip("'") for name in context["expected_tags"].split(", ")]
        expected, got = f"one of {', '.join(names)}", shown(value["name"])
        hint = _did_you_mean(context["tag"], names)
    elif kind == "literal_error":
        expected = context["expected"].replace("'", '"').replace("True", "true")
        hint = _did_you_mean(value, [n.strip('"') for n in re.split(", | or ", expected)])
        if table == "space" and full[-1] == "value":
            expected += ", or a list of them"
    elif kind in {"missing", "string_pattern_mismatch"}:
        expected = _owner(full, tables).model_fields[str(full[-1])].description or "a value"
    else:
        bounds = {key: f"{bound:.15g}" for key, bound in context.items() if key in _BOUNDS}
        expected = _EXPECTED[kind].format_map({**context, **bounds})
        if full[-1] == "value" and table == "space":
            others = (
                ", or a list of them" if kind == "bool_type" else ", a list of them, or a range"
            )
            expected += others
    return Mistake(place, expected, got, hint)


def unknown(place: Place, known: Iterable[str]) -> Mistake:
    """Return the mistake of an unknown key, with a hint if an alternative has such a parameter."""
    key = str(place[-1])
    alternatives = _ALTERNATIVES_OF.get(str(place[0]), {})
    homes = [name for name, table in alternatives.items() if key in table.model_fields]
    hint = _did_you_mean(key, known)
    if not hint and key != "name" and homes:
        schedules = [name for name in homes if name in get_args(ScheduleName)]
        others = [name for name in homes if name not in schedules]
        listed = " and ".join(filter(None, [_listed(schedules), _listed(others)]))
        if schedules and others:
            listed = f"{_listed(schedules)} (schedules), and of {_listed(others)}"
        hint = f"; {printable(key)} is a parameter of {listed}"
        if len(place) == 2 and place[0] == "space":
            group = "schedule" if schedules else "optimizer"
            hint += f': {group} = {{ name = "{homes[0]}", {key} = ... }} searches it'
    elif not hint and len(place) == 2 and place[0] == "space":
        hint = _not_searched(key)
    what = "table" if len(place) == 1 else "key"
    return Mistake(place, f"one of {', '.join(known)}", f"an unknown {what}", hint)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _not_searched(key: str) -> str:
    """Return a hint where a key of [space] belongs, and what can be searched."""
    if key in TABLES["training"].model_fields:
        return f"; it can be fixed in [training] {key}"
    return f"; if it is an argument of the function, put it in [space.arguments] {_shown_key(key)}"


def _did_you_mean(word: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word)[:100], list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _place(full: Place, kind: str, document: Mapping[str, Any]) -> Place:
    """Return the place in the file for pydantic's location, which names branches of unions."""
    if full[0] == "search":  # after the name of a choice follows the name of the alternative
        return tuple(
            part
            for index, part in enumerate(full)
            if index == 0 or full[index - 1] not in {"sampler", "pruner", "wraps", "judge"}
        )
    if full[:2] == ("workload", "processes"):
        return full[:2]
    if full[0] in {"workload", "budget", "retrain"}:  # which have tables in them
        return full
    if full[0] != "space":
        return full[:2]
    last = len(full) - 1
    in_list = len(full) > 1 and isinstance(document["space"].get(full[1]), list)
    return tuple(
        part
        for index, part in enumerate(full)
        if (part not in _FORMS or (index == last and kind == "extra_forbidden"))
        and (in_list or index != 2 or not isinstance(part, int))
    )


def _owner(full: Place, tables: Mapping[str, type[Table]]) -> type[Table]:
    """Return the table that has the last key of pydantic's location."""
    owner = str(full[-2])
    if owner == "range":
        return Range
    if full[0] in {"budget", "retrain"}:
        table = tables[full[0]]
        for key in full[1:-1]:
            inner = table.model_fields[str(key)].annotation
            assert isinstance(inner, type)
            table = inner
        return table
    return _ALTERNATIVES.get(owner) or tables[owner]


def named(place: Place) -> str:
    """Return a place as `[table] key`, with the name of an alternative instead of its index."""
    words = [_shown_key(part) for part in place if isinstance(part, str)]
    index = f"[{place[-1]}]" if place and isinstance(place[-1], int) else ""
    if len(words) > 1:
        return f"[{'.'.join(words[:-1])}] {words[-1]}{index}"
    return f"[{words[0]}]" if words else "override"


def _shown_key(key: str) -> str:
    is_bare = key.isascii() and key.replace("-", "_").isidentifier()
    return _cut(key, 60) if is_bare else shown(key)


def shown(value: object, depth: int = 0) -> str:
    """Return a value in TOML, on one short line without control characters."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    if isinstance(value, str):
        return printable(json.dumps(_cut(value, 60), ensure_ascii=False), 400)
    if isinstance(value, dict | list | tuple):
        if depth > 2:
            return "..."
        if isinstance(value, dict):
            keys = list(value)[:5]
            items = [f"{_shown_key(key)} = {shown(value[key], depth + 1)}" for key in keys]
        else:
            items = [shown(item, depth + 1) for item in value[:5]]
        inside = ", ".join(items + ["..."] * (len(value) > 5))
        return printable(f"{{ {inside} }}" if isinstance(value, dict) else f"[{inside}]", 100)
    return printable(str(value), 60)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def printable(text: str, length: int = 1000) -> str:
    """Return the text without control characters, cut to a readable length."""
    return _cut(texts.printable(text), length)
