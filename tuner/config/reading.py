"""Read a study file, apply overrides, and report all its mistakes at once.

Each mistake is one line with the file, the table, the key, what was expected and what was found:
`digits.toml: [training] steps: expected a whole number, got "300"`. Tables are validated one by one
and contradictions are checked between the valid ones, so that no mistake hides another.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tuner.config import StudySpec, Table
from tuner.config.contradictions import contradictions
from tuner.config.mistakes import (
    Mistake,
    Place,
    mark_unusable,
    mistakes_of,
    named,
    printable,
    shown,
    tables_of,
    unknown,
)
from tuner.config.study import UNITS
from tuner.core.errors import StudyFileError
from tuner.core.text import DEFAULT_PROJECT

LARGEST = 1_000_000
"""The maximum size of a study file, in bytes."""


def load(path: Path, overrides: Sequence[str] = (), project: str = DEFAULT_PROJECT) -> StudySpec:
    """Read a study file after applying `overrides` such as `budget.trials=20`.

    The study is in `project` unless the file or its name says otherwise. Raise `StudyFileError`
    with all mistakes of the file and of the overrides.
    """
    return parse(read(path), str(path), overrides, project)


def read(path: Path) -> str:
    """Return the text of a file. Raise `StudyFileError`."""
    source = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise _unreadable(source, f"at most {LARGEST} bytes", "more")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise _unreadable(source, "UTF-8 text", f"byte 0x{byte:02x} in line {line}") from None
    except OSError as error:
        raise _unreadable(source, "a file to read", error.strerror or str(error)) from None
    except ValueError as error:  # a path with a null character
        raise _unreadable(source, "a file to read", str(error)) from None


def parse(
    text: str, source: str, overrides: Sequence[str] = (), project: str = DEFAULT_PROJECT
) -> StudySpec:
    """Validate the text of a study file; messages name `source`. Raise as `load` does."""
    document = document_of(text, source)
    found = [mistake for override in overrides for mistake in _override(document, override)]
    study = document.get("study")
    if isinstance(study, dict) and "/" not in str(study.get("name")):
        study.setdefault("project", project)
    tables, more = validated(document, StudySpec)
    found += more
    found += contradictions(tables)
    if found:
        raise StudyFileError(source, [mistake.line(source) for mistake in found])
    return StudySpec.model_validate(tables)


def document_of(text: str, source: str) -> dict[str, Any]:
    """Return the content of TOML. Raise `StudyFileError`."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise _unreadable(source, "TOML", "tables or lists that are nested too deeply") from None
    except ValueError as error:
        raise _unreadable(source, "TOML", f"a syntax error: {error}") from None


def validated(
    document: dict[str, Any], spec: type[Table]
) -> tuple[dict[str, Table], list[Mistake]]:
    """Return the valid tables of a document, and the mistakes of the others."""
    mark_unusable(document)
    known, found = tables_of(spec), list[Mistake]()
    tables: dict[str, Table] = {}
    for name, table in known.items():
        if name in document or spec.model_fields[name].is_required():
            try:
                if name not in document:
                    found.append(Mistake((name,), "a table", "nothing"))
                    continue
                tables[name] = table.model_validate(document[name])
            except ValidationError as error:
                errors = error.errors(include_url=False)
                found += mistakes_of(name, errors, document, known)
        else:
            tables[name] = spec.model_fields[name].get_default()
    found += [unknown((key,), known) for key in document if key not in known]
    return tables, found


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of study files, for editors."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **StudySpec.model_json_schema()}


def changed(old: StudySpec, new: StudySpec) -> list[str]:
    """Return the changed values; a key that only one of them has counts only in [workload].

    So does the budget of a trial, whose key is its unit.
    Each is text such as `[training] steps: was 300, is now 400`. Budget, retraining
    and notifications are left out, since they may change.
    """
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return [
        f"{named(place)}: was {shown(before.get(place))}, is now {shown(after.get(place))}"
        for place in {**before, **after}
        # parameters of an alternative appear with its name, which has its own line
        if (place[0] == "workload" or place in UNIT_PLACES or (place in before and place in after))
        and repr(before.get(place)) != repr(after.get(place))
    ]


UNIT_PLACES = {("training", unit) for unit in UNITS}
"""The budget of a trial, which is in one of them."""


def _leaves(study: StudySpec) -> Iterator[tuple[Place, object]]:
    """Yield all values of a study with their places; a range is one value."""
    tables = study.model_dump(exclude={"budget", "retrain", "notify"})
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


def _override(document: dict[str, Any], override: str) -> Iterator[Mistake]:
    """Apply an override to a document; yield its mistake, if any."""
    path, equals, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        yield Mistake((), "TABLE.KEY=VALUE such as budget.trials=20", shown(override))
        return
    holder: Any = document
    place: Place = ()
    for depth, key in enumerate(keys, 1):
        is_index = isinstance(holder, list) and key in map(str, range(len(holder)))
        if not is_index and not isinstance(holder, dict):
            expected = f"a table, or a list with an item {printable(key, 60)}"
            hint = f", in the override {shown(override)}"
            yield Mistake(place, expected, shown(holder), hint)
            return
        where: Any = int(key) if is_index else key
        place = (*place, where)
        if depth == len(keys):
            holder[where] = toml_value(text.strip())
        else:
            holder = holder[where] if is_index else holder.setdefault(where, {})


def toml_value(text: str) -> object:
    """Return the value of a TOML text; other text is a string, since shells remove quotes."""
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return read["value"] if len(read) == 1 else text


def _unreadable(source: str, expected: str, got: str) -> StudyFileError:
    problem = f"{printable(source)}: expected {expected}, got {printable(got, 200)}"
    return StudyFileError(source, [problem])
