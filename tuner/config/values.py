"""The values of a search space: fixed values, lists and ranges, and their mistakes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from tuner.core.text import is_readable

ParameterValue: TypeAlias = float | int | bool | str
"""A parameter of one trial in the ledger, in Optuna and in MLflow."""


def written(value: object) -> str:
    """Return a value as it is written in a study file, texts without quotes: `true`, `0.1`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class Table(BaseModel):
    """A table of a study file: frozen, no unknown keys, no conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def mistake(expected: str, got: object = None) -> PydanticCustomError:
    """Return the error of a value of the right type that is not allowed.

    `got` is the value itself by default; a str is used as it is.
    """
    context = {"expected": expected, "got": f"{got:.15g}" if isinstance(got, float) else got}
    return PydanticCustomError("mistake", "expected {expected}, got {got}", context)


def mistakes(title: str, found: dict[tuple[str | int, ...], PydanticCustomError]) -> None:
    """Raise the errors of parts of a value, if any, by their place in the value."""
    if found:
        details = [InitErrorDetails(type=what, loc=at, input=None) for at, what in found.items()]
        raise ValidationError.from_exception_data(title, details)


class Range(Table):
    """All numbers from `low` to `high`, both included; `log` samples their logarithm evenly."""

    low: Annotated[float, Field(description="a number")]
    high: Annotated[float, Field(description="a number")]
    log: bool | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if not self.low < self.high:
            error = mistake(f"a number below high = {self.high:.15g}", self.low)
            mistakes("Range", {("low",): error})
        return self


class WholeRange(Range):
    """All whole numbers from `low` to `high`, both included."""

    low: Annotated[int, Field(description="a whole number")]
    high: Annotated[int, Field(description="a whole number")]


class ScaleRange(Range):
    """A range that is always sampled on a log scale."""

    log: Literal[True] = True


def _form(value: object) -> str:
    """Return the form of an entry of the space: value, list or range."""
    if isinstance(value, dict | Range):
        return "range"
    return _plain_form(value)


def _plain_form(value: object) -> str:
    """Return the form of an entry that cannot be a range: value or list."""
    return "list" if isinstance(value, list | tuple) else "value"


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a list with a repeated value, which would be tried twice as often."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise mistake("each value once", f"{value!r} twice".lower())
    return values


@dataclass(frozen=True, kw_only=True)
class Within:
    """The bounds of every number of an entry; `log` is the default of its ranges."""

    gt: float = float("-inf")
    ge: float = float("-inf")
    lt: float = float("inf")
    le: float = float("inf")
    log: bool = False

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "description": f"{self}, a list of them, or a range"}

    def _check(self, entry: Any) -> Any:
        numbers: dict[tuple[str | int, ...], float]
        if isinstance(entry, Range):
            log = self.log if entry.log is None else entry.log
            entry = entry.model_copy(update={"log": log})
            numbers = {("low",): entry.low, ("high",): entry.high}
        elif isinstance(entry, tuple):
            numbers = {(index,): number for index, number in enumerate(entry)}
        else:
            numbers = {(): entry}
        found = {
            at: mistake(str(self), number)
            for at, number in numbers.items()
            if not (self.gt < number < self.lt and self.ge <= number <= self.le)
        }
        if isinstance(entry, Range) and entry.log and entry.low <= 0 and not found:
            found["low",] = mistake("a number above 0, unless log = false", entry.low)
        mistakes("Within", found)
        return entry

    def __str__(self) -> str:
        bounds = [("above", self.gt), ("of at least", self.ge), ("below", self.lt)]
        bounds.append(("of at most", self.le))
        limits = [f"{word} {bound:.15g}" for word, bound in bounds if abs(bound) != float("inf")]
        return "a number " + " and ".join(limits)


LIST = (Field(min_length=1, strict=False), AfterValidator(_once))
"""For tuples: TOML and JSON have lists; `strict` applies to the container only."""

Real: TypeAlias = Annotated[
    Annotated[float, Tag("value")]
    | Annotated[tuple[float, ...], *LIST, Tag("list")]
    | Annotated[Range, Tag("range")],
    Discriminator(_form),
]
Scale: TypeAlias = Annotated[
    Annotated[float, Tag("value")]
    | Annotated[tuple[float, ...], *LIST, Tag("list")]
    | Annotated[ScaleRange, Tag("range")],
    Discriminator(_form),
]
Whole: TypeAlias = Annotated[
    Annotated[int, Tag("value")]
    | Annotated[tuple[int, ...], *LIST, Tag("list")]
    | Annotated[WholeRange, Tag("range")],
    Discriminator(_form),
]
Flag: TypeAlias = Annotated[
    Annotated[bool, Tag("value")] | Annotated[tuple[bool, ...], *LIST, Tag("list")],
    Discriminator(_plain_form),
]
Text = TypeVar("Text", bound=str)
Word: TypeAlias = Annotated[
    Annotated[Text, Tag("value")] | Annotated[tuple[Text, ...], *LIST, Tag("list")],
    Discriminator(_plain_form),
]


def _as_fractions(entry: object) -> object:
    """Return fractions as text; a list of lists or of texts is a choice."""
    if isinstance(entry, list | tuple) and any(isinstance(i, list | tuple | str) for i in entry):
        return _once(tuple(_one_of_fractions(item) for item in entry))
    return _one_of_fractions(entry)


def _one_of_fractions(value: object) -> str:
    try:
        found = fractions(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if isinstance(found, list | tuple) and found and all(type(item) is float for item in found):
        bounded = (0.0, *found, 1.0)
        if all(before < after for before, after in pairwise(bounded)):
            return ",".join(map(repr, found))
    raise mistake(
        "ascending fractions of the horizon, such as [0.5, 0.75], or a list of such lists"
    )


def fractions(text: str) -> tuple[float, ...]:
    """Return the fractions in a trial's parameter such as `"0.5,0.75"`."""
    return tuple(map(float, text.split(",")))


Fractions: TypeAlias = Annotated[
    str | tuple[str, ...],
    BeforeValidator(
        _as_fractions,
        json_schema_input_type=(
            str
            | Annotated[tuple[float, ...], Field(min_length=1)]
            | Annotated[
                tuple[Annotated[tuple[float, ...], Field(min_length=1)] | str, ...],
                Field(min_length=1),
            ]
        ),
    ),
]
"""Ascending fractions of the horizon. One value is a list, which is stored as text, since a
parameter of a trial is a number, a boolean or a text in the ledger, in Optuna and in MLflow."""
Entry: TypeAlias = Range | tuple[ParameterValue, ...] | ParameterValue
"""A validated entry of the space."""


def options(entry: Entry) -> tuple[ParameterValue, ...]:
    """Return the values of an entry that is not a range."""
    assert not isinstance(entry, Range)
    return entry if isinstance(entry, tuple) else (entry,)


def bounds(entry: Range | tuple[float, ...] | float) -> tuple[float, float]:
    """Return the lowest and the highest number of an entry."""
    if isinstance(entry, Range):
        return entry.low, entry.high
    numbers = entry if isinstance(entry, tuple) else (entry,)
    return min(numbers), max(numbers)


def as_choice(value: object) -> object:
    """Return the table for a bare name."""
    return {"name": value} if isinstance(value, str) else value


def as_choices(value: object) -> object:
    """Return the list for a single alternative."""
    if isinstance(value, list | tuple):
        return tuple(as_choice(item) for item in value)
    return (as_choice(value),)


def _readable(text: str) -> str:
    if not is_readable(text):
        raise mistake("text without control characters")
    return text


Readable: TypeAlias = Annotated[str, AfterValidator(_readable)]


def _as_argument(value: object) -> object:
    """Check an argument once, where a union would report a mistake for each of its members."""
    for item in value if isinstance(value, list | tuple) else (value,):
        if not isinstance(item, bool | int | float | str):
            raise mistake("a number, a boolean, a string or a list of them")
        if isinstance(item, float) and not math.isfinite(item):
            raise mistake("finite numbers")
        if isinstance(item, str):
            _readable(item)
    return tuple(value) if isinstance(value, list) else value


Argument: TypeAlias = Annotated[
    ParameterValue | tuple[ParameterValue, ...], BeforeValidator(_as_argument)
]


def _names_are_names(arguments: dict[str, Any]) -> dict[str, Any]:
    wrong = [name for name in arguments if not name.isidentifier()]
    error = mistake("the name of an argument of the function", "this name")
    mistakes("Arguments", {(name,): error for name in wrong})
    return arguments


Arguments: TypeAlias = Annotated[dict[str, Argument], AfterValidator(_names_are_names)]


FunctionName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
