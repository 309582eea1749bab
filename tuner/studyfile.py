"""Read a study file, change it by overrides, and word every mistake in it at once.

Each mistake is one line that names the file, the table and the key, what was expected and what
was got: `digits.toml: [training] steps: expected a whole number, got "300"`. Tables are validated
one by one, and what they say of each other is checked for those that are valid, so that one
mistake never hides another.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tuner import spec
from tuner.errors import StudyFileError
from tuner.spec import Range, StudySpec, Table

Place = tuple[str | int, ...]
"""Where something is in a study file: the keys and indices that lead to it."""

_TABLES: dict[str, type[Table]] = {
    name: table
    for name, field in StudySpec.model_fields.items()
    if isinstance(table := field.annotation, type)
}
_ALTERNATIVES: dict[str, type[Table]] = {
    get_args(table.model_fields["name"].annotation)[0]: table
    for union in (spec.ScheduleChoice, spec.OptimizerChoice, spec.AnySampler, spec.AnyPruner)
    for table in get_args(get_args(union)[0])
}
_BOUNDS = ("gt", "ge", "lt", "le")
_FORMS = ("value", "list", "range")  # of an entry of the space; pydantic puts them into places
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
    "too_short": "at least {min_length} of them",
    "tuple_type": "a list",
    "union_tag_not_found": "a table with a name",
}


class _Mistake(NamedTuple):
    place: Place
    expected: str
    got: str
    hint: str = ""

    def line(self, source: str) -> str:
        where = f"{_printable(source)}: {_named(self.place)}"
        return f"{where}: expected {self.expected}, got {self.got}{self.hint}"


@dataclass(frozen=True)
class _Unusable:
    """Stands for a value that TOML can say but nothing after it can keep."""

    expected: str
    got: str

    def __str__(self) -> str:
        return self.got


def load(path: Path, overrides: Sequence[str] = ()) -> StudySpec:
    """Read a study file; `overrides` such as `budget.trials=20` change it first.

    Raises `StudyFileError` with all mistakes, whether in the file or in the overrides.
    """
    source = str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise _unreadable(source, "UTF-8 text", f"byte 0x{byte:02x} in line {line}") from None
    except OSError as error:
        raise _unreadable(source, "a file to read", error.strerror or str(error)) from None
    except ValueError as error:  # a path with a null character
        raise _unreadable(source, "a file to read", str(error)) from None
    return parse(text, source, overrides)


def parse(text: str, source: str, overrides: Sequence[str] = ()) -> StudySpec:
    """Validate the text of a study file; `source` is what messages call it. Raises as `load`."""
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise _unreadable(source, "TOML", "tables or lists in each other, too deep") from None
    except ValueError as error:
        raise _unreadable(source, "TOML", f"a mistake in its syntax: {error}") from None
    found = [mistake for override in overrides for mistake in _override(document, override)]
    _mark_unusable(document)
    tables: dict[str, Table] = {}
    for name, table in _TABLES.items():
        if name in document or StudySpec.model_fields[name].is_required():
            try:
                if name not in document:
                    found.append(_Mistake((name,), "a table", "nothing"))
                    continue
                tables[name] = table.model_validate(document[name])
            except ValidationError as error:
                found += _worded(name, error.errors(include_url=False), document)
        else:
            tables[name] = StudySpec.model_fields[name].get_default()
    found += [_unknown((key,), _TABLES) for key in document if key not in _TABLES]
    found += _contradictions(tables)
    if found:
        raise StudyFileError(source, [mistake.line(source) for mistake in found])
    return StudySpec.model_validate(tables)


def json_schema() -> dict[str, Any]:
    """Give the JSON Schema of study files, for editors."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **StudySpec.model_json_schema()}


def changed(old: StudySpec, new: StudySpec) -> list[str]:
    """Say what differs, the budget aside, such as `[training] steps: was 300, is now 400`."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return [
        f"{_named(place)}: was {_shown(before.get(place))}, is now {_shown(after.get(place))}"
        for place in {**before, **after}
        # what an alternative has comes and goes with its name, which has a line of its own
        if (place[0] == "workload" or (place in before and place in after))
        and repr(before.get(place)) != repr(after.get(place))
    ]


def _leaves(study: StudySpec) -> Iterator[tuple[Place, object]]:
    """Yield all values of a study with their places; a range is a value."""
    tables = study.model_dump(exclude={"budget"})
    waiting: list[tuple[Place, Any]] = [((name,), table) for name, table in tables.items()]
    while waiting:
        place, value = waiting.pop(0)
        if place in {("space", "schedule"), ("space", "optimizer")}:
            yield place, [choice["name"] for choice in value]
            waiting += [((*place, choice.pop("name")), choice) for choice in value]
        elif isinstance(value, dict) and "low" not in value:
            waiting += [((*place, key), inner) for key, inner in value.items()]
        else:
            yield place, value


# --- overrides ------------------------------------------------------------------------------


def _override(document: dict[str, Any], override: str) -> Iterator[_Mistake]:
    """Set one value in a document; yield what is wrong with the override, if something is."""
    path, equals, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        yield _Mistake((), "TABLE.KEY=VALUE such as budget.trials=20", _shown(override))
        return
    holder: Any = document
    place: Place = ()
    for depth, key in enumerate(keys, 1):
        is_index = isinstance(holder, list) and key in map(str, range(len(holder)))
        if not is_index and not isinstance(holder, dict):
            expected = f"a table, or a list with an item {_printable(key, 60)}"
            hint = f", in the override {_shown(override)}"
            yield _Mistake(place, expected, _shown(holder), hint)
            return
        where: Any = int(key) if is_index else key
        place = (*place, where)
        if depth == len(keys):
            holder[where] = _toml_value(text.strip())
        else:
            holder = holder[where] if is_index else holder.setdefault(where, {})


def _toml_value(text: str) -> object:
    """Read a value as TOML; what is not TOML is a string, as quotes are lost in a shell."""
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return read["value"] if len(read) == 1 else text


# --- mistakes -------------------------------------------------------------------------------


def _unreadable(source: str, expected: str, got: str) -> StudyFileError:
    said = f"{_printable(source)}: expected {expected}, got {_printable(got, 200)}"
    return StudyFileError(source, [said])


def _mark_unusable(document: dict[str, Any]) -> None:
    """Replace what no database and no JSON can keep by a mark, which no table accepts."""
    waiting: list[Any] = [document]
    while waiting:
        holder = waiting.pop()
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            if isinstance(value, dict | list):
                waiting.append(value)
            elif isinstance(value, int) and value.bit_length() > 63:
                holder[key] = _Unusable("a number of 64 bits", f"one of {value.bit_length()}")
            elif isinstance(value, str) and any(
                c == "\0" or "\ud800" <= c < "\ue000" for c in value
            ):
                holder[key] = _Unusable("text without null characters", _shown(value))


def _worded(
    table: str, errors: Iterable[ErrorDetails], document: Mapping[str, Any]
) -> Iterator[_Mistake]:
    """Word what pydantic found in a table; the members of a union make one mistake."""
    found: dict[Place, _Mistake] = {}
    for error in errors:
        if error["type"] == "too_short" and error["input"]:
            continue  # pydantic counts valid items only, and the others have been named
        mistake = _one_worded(table, error, document)
        earlier = found.get(mistake.place)
        if earlier and earlier.expected != mistake.expected:
            mistake = earlier._replace(expected=f"{earlier.expected} or {mistake.expected}")
        found[mistake.place] = mistake
    yield from found.values()


def _one_worded(table: str, error: ErrorDetails, document: Mapping[str, Any]) -> _Mistake:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    full = (table, *error["loc"])
    place = _place(full, kind, document)
    if kind == "extra_forbidden":
        return _unknown(place, _owner(full).model_fields)
    if isinstance(value, _Unusable):
        return _Mistake(place, value.expected, value.got)
    got = "nothing" if kind == "missing" else _shown(value)
    hint = ""
    if kind == "mistake":
        expected = context["expected"]
        if context["got"] is not None:
            got = context["got"] if isinstance(context["got"], str) else _shown(context["got"])
    elif kind == "union_tag_invalid":
        names = [name.strip("'") for name in context["expected_tags"].split(", ")]
        expected, got = f"one of {', '.join(names)}", _shown(value["name"])
        hint = _did_you_mean(context["tag"], names)
    elif kind == "literal_error":
        expected = context["expected"].replace("'", '"').replace("True", "true")
        hint = _did_you_mean(value, [name.strip('"') for name in expected.split(" or ")])
    elif kind in {"missing", "string_pattern_mismatch"}:
        expected = _owner(full).model_fields[str(full[-1])].description or "a value"
    else:
        bounds = {key: f"{bound:.15g}" for key, bound in context.items() if key in _BOUNDS}
        expected = _EXPECTED[kind].format_map({**context, **bounds})
        if full[-1] == "value" and table == "space":
            others = (
                ", or a list of them" if kind == "bool_type" else ", a list of them, or a range"
            )
            expected += others
    return _Mistake(place, expected, got, hint)


def _unknown(place: Place, known: Iterable[str]) -> _Mistake:
    """Word a key that does not exist; a parameter of an alternative may have lost its table."""
    key = str(place[-1])
    homes = [name for name, table in _ALTERNATIVES.items() if key in table.model_fields]
    hint = _did_you_mean(key, known)
    if not hint and place[0] in {"space", "search"} and key != "name" and homes:
        hint = f"; {_printable(key)} is a parameter of {' and '.join(homes)}"
    what = "table" if len(place) == 1 else "key"
    return _Mistake(place, f"one of {', '.join(known)}", f"an unknown {what}", hint)


def _did_you_mean(word: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word)[:100], list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _place(full: Place, kind: str, document: Mapping[str, Any]) -> Place:
    """Turn pydantic's place of an error, which names branches of unions, into the file's."""
    if full[0] == "search":
        return full[:2] + full[3:]
    if full[0] == "workload":
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


def _owner(full: Place) -> type[Table]:
    """Give the table whose key is at the end of pydantic's place of an error."""
    owner = str(full[-2])
    if owner == "range":
        return Range
    return _ALTERNATIVES.get(owner) or _TABLES[owner]


def _contradictions(tables: Mapping[str, Table]) -> Iterator[_Mistake]:
    """Find what valid tables say against each other."""
    space, search, training = (tables.get(name) for name in ("space", "search", "training"))
    if not isinstance(search, spec.SearchTable):
        return
    if isinstance(search.sampler, spec.Grid) and isinstance(space, spec.Space):
        for place, entry in _entries(space):
            if isinstance(entry, Range):
                got = _shown(entry.model_dump(exclude={"log"}))
                yield _Mistake(place, 'a value or a list, as the sampler is "grid"', got)
    if isinstance(training, spec.TrainingTable):
        yield from _rungs_too_late(search.pruner, training)


def _entries(space: spec.Space) -> Iterator[tuple[Place, spec.Entry]]:
    yield ("space", "lr"), space.lr
    for group, choices in (("schedule", space.schedule), ("optimizer", space.optimizer)):
        for choice in choices:
            for key, entry in choice.entries():
                yield ("space", group, *key.split(".")), entry


def _rungs_too_late(pruner: spec.AnyPruner, training: spec.TrainingTable) -> Iterator[_Mistake]:
    """Find settings that leave no rung: the pruner would never prune."""
    expected = f"a number below the {training.steps} of [training] steps, so that there is a rung"
    settings: list[tuple[Place, int | None]] = []
    if isinstance(pruner, spec.ASHA):
        settings.append((("search", "pruner", "min_steps"), pruner.min_steps))
    elif isinstance(pruner, spec.Median):
        settings.append((("search", "pruner", "warmup_steps"), pruner.warmup_steps))
        settings.append((("training", "evaluate_every"), training.evaluate_every))
    for place, steps in settings:
        if steps is not None and steps >= training.steps:
            yield _Mistake(place, expected, str(steps))


# --- words ----------------------------------------------------------------------------------


def _named(place: Place) -> str:
    """Name a place as `[table] key`; the index of an alternative gives way to its name."""
    words = [_shown_key(part) for part in place if isinstance(part, str)]
    index = f"[{place[-1]}]" if place and isinstance(place[-1], int) else ""
    if len(words) > 1:
        return f"[{'.'.join(words[:-1])}] {words[-1]}{index}"
    return f"[{words[0]}]" if words else "override"


def _shown_key(key: str) -> str:
    is_bare = key.isascii() and key.replace("-", "_").isidentifier()
    return _cut(key, 60) if is_bare else _shown(key)


def _shown(value: object, depth: int = 0) -> str:
    """Show a value as TOML would have it, on one short line without control characters."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    if isinstance(value, str):
        return _printable(json.dumps(_cut(value, 60), ensure_ascii=False), 400)
    if isinstance(value, dict | list | tuple):
        if depth > 2:
            return "..."
        if isinstance(value, dict):
            keys = list(value)[:5]
            items = [f"{_shown_key(key)} = {_shown(value[key], depth + 1)}" for key in keys]
        else:
            items = [_shown(item, depth + 1) for item in value[:5]]
        inside = ", ".join(items + ["..."] * (len(value) > 5))
        return _printable(f"{{ {inside} }}" if isinstance(value, dict) else f"[{inside}]", 100)
    return _printable(str(value), 60)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _printable(text: str, length: int = 1000) -> str:
    """Escape what a terminal might obey, and cut what is too long to read."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _cut("".join(escaped), length)
