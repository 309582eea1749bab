"""The words for what is wrong in a study file: one line a mistake, never the library's own."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from pydantic_core import ErrorDetails

from tuner.spec.optimizers import OptimizerChoice
from tuner.spec.retrain import RetrainTable
from tuner.spec.schedules import ScheduleChoice
from tuner.spec.search import (
    CMAES,
    AnyPruner,
    AnySampler,
    Comparing,
    Grid,
    Halving,
    Listed,
    Patient,
)
from tuner.spec.space import Space
from tuner.spec.study import SearchTable, StudySpec, StudyTable, TrainingTable, WorkloadTable
from tuner.spec.values import Entry, Range, Table

Place = tuple[str | int, ...]
"""Where something is in a study file: the keys and indices that lead to it."""
TABLES: dict[str, type[Table]] = {
    name: table
    for name, field in StudySpec.model_fields.items()
    if isinstance(table := field.annotation, type)
}
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


class Mistake(NamedTuple):
    """One mistake, in words."""

    place: Place
    expected: str
    got: str
    hint: str = ""

    def line(self, source: str) -> str:
        """Give the line for a person; `source` names the file."""
        where = f"{printable(source)}: {named(self.place)}"
        return f"{where}: expected {self.expected}, got {self.got}{self.hint}"


@dataclass(frozen=True)
class Unusable:
    """Stands for a value that TOML can say but nothing after it can keep."""

    expected: str
    got: str

    def __str__(self) -> str:
        return self.got


def mark_unusable(document: dict[str, Any]) -> None:
    """Replace what no database and no JSON can keep by a mark, which no table accepts."""
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


def worded(
    table: str, errors: Iterable[ErrorDetails], document: Mapping[str, Any]
) -> Iterator[Mistake]:
    """Word what pydantic found in a table; the members of a union make one mistake."""
    found: dict[Place, Mistake] = {}
    for error in errors:
        if error["type"] == "too_short" and error["input"]:
            continue  # pydantic counts valid items only, and the others have been named
        mistake = _one_worded(table, error, document)
        earlier = found.get(mistake.place)
        if earlier and earlier.expected != mistake.expected:
            mistake = earlier._replace(expected=f"{earlier.expected} or {mistake.expected}")
        found[mistake.place] = mistake
    yield from found.values()


def _one_worded(table: str, error: ErrorDetails, document: Mapping[str, Any]) -> Mistake:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    full = (table, *error["loc"])
    place = _place(full, kind, document)
    if kind == "extra_forbidden":
        return unknown(place, _owner(full).model_fields)
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
        expected = _owner(full).model_fields[str(full[-1])].description or "a value"
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
    """Word a key that does not exist; a parameter of an alternative may have lost its table."""
    key = str(place[-1])
    alternatives = _ALTERNATIVES_OF.get(str(place[0]), {})
    homes = [name for name, table in alternatives.items() if key in table.model_fields]
    hint = _did_you_mean(key, known)
    if not hint and key != "name" and homes:
        listed = " and ".join(filter(None, [", ".join(homes[:-1]), homes[-1]]))
        hint = f"; {printable(key)} is a parameter of {listed}"
    what = "table" if len(place) == 1 else "key"
    return Mistake(place, f"one of {', '.join(known)}", f"an unknown {what}", hint)


def _did_you_mean(word: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(word)[:100], list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _place(full: Place, kind: str, document: Mapping[str, Any]) -> Place:
    """Turn pydantic's place of an error, which names branches of unions, into the file's."""
    if full[0] == "search":  # what follows the name of a choice is the alternative's
        return tuple(
            part
            for index, part in enumerate(full)
            if index == 0 or full[index - 1] not in {"sampler", "pruner", "wraps"}
        )
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


def _owner(full: Place) -> type[Table]:
    """Give the table whose key is at the end of pydantic's place of an error."""
    owner = str(full[-2])
    if owner == "range":
        return Range
    if full[0] in {"budget", "retrain"}:
        table = TABLES[full[0]]
        for key in full[1:-1]:
            inner = table.model_fields[str(key)].annotation
            assert isinstance(inner, type)
            table = inner
        return table
    return _ALTERNATIVES.get(owner) or TABLES[owner]


def contradictions(tables: Mapping[str, Table]) -> Iterator[Mistake]:
    """Find what valid tables say against each other."""
    space, search, training = (tables.get(name) for name in ("space", "search", "training"))
    if isinstance(training, TrainingTable):
        yield from _at_odds(training, tables.get("workload"))
    yield from _gate_without_direction(tables.get("study"), tables.get("retrain"))
    workload = tables.get("workload")
    if isinstance(workload, WorkloadTable) and workload.train is not None:
        yield from _stateful(space)
    if not isinstance(search, SearchTable):
        return
    if isinstance(search.sampler, Grid) and isinstance(space, Space):
        for place, entry in _entries(space):
            if isinstance(entry, Range):
                got = shown(entry.model_dump(exclude={"log"}))
                yield Mistake(place, 'a value or a list, as the sampler is "grid"', got)
    listed = search.sampler.params if isinstance(search.sampler, Listed) else ()
    for place, combinations in ((("sampler", "params"), listed), (("first",), search.first)):
        for index, params in enumerate(combinations):
            if isinstance(space, Space):
                for key, expected in space.missing(params).items():
                    got = shown(params.get(key))
                    yield Mistake(("search", *place, key, index), expected, got)
    if isinstance(search.sampler, CMAES) and isinstance(space, Space) and not space.shared_ranges():
        expected = 'a range, as the sampler is "cmaes", which searches ranges alone'
        yield Mistake(("space", "lr"), expected, shown(space.lr))
    if isinstance(training, TrainingTable):
        yield from _rungs_too_late(("search", "pruner"), search.pruner, training)


def _gate_without_direction(study: Table | None, retrain: Table | None) -> Iterator[Mistake]:
    """Find a gate by another metric than the study's that does not say which way is better."""
    if isinstance(study, StudyTable) and isinstance(retrain, RetrainTable):
        gate = retrain.gate
        if gate.metric not in (None, study.metric) and gate.direction is None:
            expected = f'"minimize" or "maximize", as {gate.metric} is not the study\'s metric'
            yield Mistake(("retrain", "gate", "direction"), expected, "nothing")


def _stateful(space: Table | None) -> Iterator[Mistake]:
    """Find schedules that listen to evaluations: a train function asks for rates ahead of them."""
    if isinstance(space, Space):
        for choice in space.schedule:
            if choice.name == "plateau":
                expected = "another schedule, since plateau needs a workload's evaluations"
                yield Mistake(("space", "schedule"), expected, "plateau beside [workload] train")


def _at_odds(training: TrainingTable, workload: Table | None) -> Iterator[Mistake]:
    """Find settings of the training that exclude each other, or that nothing would heed."""
    if isinstance(workload, WorkloadTable) and workload.train is not None:
        for key in (
            "batch_size",
            "dtype",
            "clip_norm",
            "accumulate",
            "precision",
            "trainer",
            "slots",
        ):
            if key in training.model_fields_set:
                hint = "; give it as one of [workload] arguments"
                expected = "nothing, since the train function's loop is its own"
                yield Mistake(("training", key), expected, shown(getattr(training, key)), hint)
        return
    if training.precision and training.dtype != "float32":
        expected = 'nothing, or dtype = "float32", which mixed precision keeps parameters in'
        yield Mistake(("training", "precision"), expected, shown(training.precision))
    size = training.batch_size
    if isinstance(size, int) and training.accumulate > size:
        expected = f"at most the {size} rows of [training] batch_size"
        yield Mistake(("training", "accumulate"), expected, shown(training.accumulate))


def _entries(space: Space) -> Iterator[tuple[Place, Entry]]:
    yield ("space", "lr"), space.lr
    for group, choices in (("schedule", space.schedule), ("optimizer", space.optimizer)):
        for choice in choices:
            for key, entry in choice.entries():
                yield ("space", group, *key.split(".")), entry


def _rungs_too_late(place: Place, pruner: AnyPruner, training: TrainingTable) -> Iterator[Mistake]:
    """Find settings that leave no rung: the pruner would never prune."""
    below = f"a number below the {training.steps} of [training] steps, so that there is a rung"
    settings: list[tuple[Place, int | None]] = []
    if isinstance(pruner, Halving):
        settings.append(((*place, "min_steps"), pruner.min_steps))
    elif isinstance(pruner, Comparing):
        settings.append(((*place, "warmup_steps"), pruner.warmup_steps))
    if isinstance(pruner, Comparing | Patient):
        settings.append((("training", "evaluate_every"), training.evaluate_every))
    late = [(at, steps) for at, steps in settings if steps is not None and steps >= training.steps]
    for at, steps in late:
        yield Mistake(at, below, str(steps))
    if isinstance(pruner, Patient):
        if not late:
            yield from _impatient(place, pruner, training)
        yield from _rungs_too_late((*place, "wraps"), pruner.wraps, training)


def _impatient(place: Place, pruner: Patient, training: TrainingTable) -> Iterator[Mistake]:
    """Find a patience that no trial can lose."""
    reports = len(pruner.rungs(training.steps, training.evaluation_interval))
    if reports < 2:
        expected = 'enough of them for two reports before the end, as the pruner is "patient"'
        yield Mistake(("training", "steps"), expected, str(training.steps))
    elif pruner.patience > reports - 2:
        expected = f"a number of at most {reports - 2}, as a trial reports {reports} times"
        yield Mistake((*place, "patience"), expected, str(pruner.patience))


def named(place: Place) -> str:
    """Name a place as `[table] key`; the index of an alternative gives way to its name."""
    words = [_shown_key(part) for part in place if isinstance(part, str)]
    index = f"[{place[-1]}]" if place and isinstance(place[-1], int) else ""
    if len(words) > 1:
        return f"[{'.'.join(words[:-1])}] {words[-1]}{index}"
    return f"[{words[0]}]" if words else "override"


def _shown_key(key: str) -> str:
    is_bare = key.isascii() and key.replace("-", "_").isidentifier()
    return _cut(key, 60) if is_bare else shown(key)


def shown(value: object, depth: int = 0) -> str:
    """Show a value as TOML would have it, on one short line without control characters."""
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
    """Escape what a terminal might obey, and cut what is too long to read."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _cut("".join(escaped), length)
