"""One study, frozen and validated: the tables of a study file and what follows from them.

A study file is TOML with the tables `study`, `workload`, `training`, `space`, `search`, `guard`
and `budget`. Every entry of `space` is a value (fixed), a list (choices) or a table with `low`
and `high` (a range). `tuner.studyfile` reads such a file and words its mistakes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

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
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

ParameterValue: TypeAlias = float | int | bool | str
"""A parameter of one trial, as the ledger, Optuna and MLflow have it."""


class Table(BaseModel):
    """A table of a study file: frozen, no unknown keys, no conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def mistake(expected: str, got: object = None) -> PydanticCustomError:
    """Make the error of a value that has the right type but cannot be; a `got` in words is a str.

    Without `got`, what was got is the value itself.
    """
    context = {"expected": expected, "got": f"{got:.15g}" if isinstance(got, float) else got}
    return PydanticCustomError("mistake", "expected {expected}, got {got}", context)


def mistakes(title: str, found: dict[tuple[str | int, ...], PydanticCustomError]) -> None:
    """Raise the errors of parts of a value, if there are any, each at its place in the value."""
    if found:
        details = [InitErrorDetails(type=what, loc=at, input=None) for at, what in found.items()]
        raise ValidationError.from_exception_data(title, details)


# --- the values of a search space -----------------------------------------------------------


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
    """Tell which of the three forms an entry of the space has."""
    if isinstance(value, dict | Range):
        return "range"
    return _plain_form(value)


def _plain_form(value: object) -> str:
    """Tell which form an entry has that cannot be a range."""
    return "list" if isinstance(value, list | tuple) else "value"


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a list with the same value twice: it would be tried twice as often."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise mistake("each value once", f"{value!r} twice".lower())
    return values


@dataclass(frozen=True, kw_only=True)
class Within:
    """The bounds that every number of an entry must keep; `log` is the default of its ranges."""

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
        said = [f"{word} {bound:.15g}" for word, bound in bounds if abs(bound) != float("inf")]
        return "a number " + " and ".join(said)


LIST = (Field(min_length=1, strict=False), AfterValidator(_once))
"""Of a tuple in a study: TOML and JSON give lists; `strict` is about the container alone."""

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
Entry: TypeAlias = Range | tuple[ParameterValue, ...] | ParameterValue
"""An entry of the space once it is validated."""


def options(entry: Entry) -> tuple[ParameterValue, ...]:
    """List the values of an entry that is no range."""
    assert not isinstance(entry, Range)
    return entry if isinstance(entry, tuple) else (entry,)


# --- schedules and optimisers ---------------------------------------------------------------


class Choice(Table):
    """A named alternative with parameters of its own, which exist only when it is chosen."""

    name: str

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Yield each parameter as (`"cosine.final"`, its entry)."""
        for key in type(self).model_fields:
            if key != "name":
                yield f"{self.name}.{key}", getattr(self, key)


class Schedule(Choice):
    """A schedule of the learning rate; `warmup` is the fraction of the horizon that it rises."""

    warmup: Annotated[Real, Within(ge=0, lt=1)] = 0.0


class Constant(Schedule):
    """The same rate at every step."""

    name: Literal["constant"]


class Step(Schedule):
    """The rate is multiplied by `gamma` at `drops` evenly spaced steps."""

    name: Literal["step"]
    gamma: Annotated[Real, Within(gt=0, le=1, log=True)] = 0.1
    drops: Annotated[Whole, Within(ge=1)] = 3


class Cosine(Schedule):
    """Half a cosine from the rate down to `final` times the rate."""

    name: Literal["cosine"]
    final: Annotated[Real, Within(ge=0, le=1)] = 0.0


class OneCycle(Schedule):
    """Up from rate/`div_factor` for `pct_start` of the horizon, then down (torch's OneCycleLR)."""

    name: Literal["one_cycle"]
    pct_start: Annotated[Real, Within(gt=0, lt=1)] = 0.3
    div_factor: Annotated[Real, Within(ge=1, log=True)] = 25.0
    final_div_factor: Annotated[Real, Within(ge=1, log=True)] = 1e4


class SGD(Choice):
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum."""

    name: Literal["sgd"]
    momentum: Annotated[Real, Within(ge=0, lt=1)] = 0.0
    nesterov: Flag = False
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.0

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGD:
        momentum = self.momentum
        lowest = momentum.low if isinstance(momentum, Range) else min(map(float, options(momentum)))
        if True in options(self.nesterov) and lowest == 0:
            error = mistake("a number above 0, since nesterov may be true", lowest)
            mistakes("SGD", {("momentum",): error})
        return self


class AdamW(Choice):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]
    beta1: Annotated[Real, Within(ge=0, lt=1)] = 0.9
    beta2: Annotated[Real, Within(ge=0, lt=1)] = 0.999
    eps: Annotated[Real, Within(gt=0, log=True)] = 1e-8
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.01


ScheduleChoice: TypeAlias = Annotated[
    Constant | Step | Cosine | OneCycle, Field(discriminator="name")
]
OptimizerChoice: TypeAlias = Annotated[SGD | AdamW, Field(discriminator="name")]
ScheduleName: TypeAlias = Literal["constant", "step", "cosine", "one_cycle"]
OptimizerName: TypeAlias = Literal["sgd", "adamw"]


def _as_choice(value: object) -> object:
    """Let a bare name stand for the table that has only that name."""
    return {"name": value} if isinstance(value, str) else value


def _as_choices(value: object) -> object:
    """Let one alternative stand for the list that has only it."""
    if isinstance(value, list | tuple):
        return tuple(_as_choice(item) for item in value)
    return (_as_choice(value),)


class Space(Table):
    """What the search may choose: the learning rate, and a schedule and optimiser with theirs."""

    lr: Annotated[
        Scale,
        Within(gt=0, log=True),
        Field(description="a number above 0, a list of them, or a range"),
    ]
    schedule: Annotated[
        tuple[ScheduleChoice, ...],
        Field(min_length=1, description="the name of a schedule, a table, or a list of them"),
        BeforeValidator(
            _as_choices,
            json_schema_input_type=(
                ScheduleName
                | ScheduleChoice
                | Annotated[tuple[ScheduleName | ScheduleChoice, ...], Field(min_length=1)]
            ),
        ),
    ]
    optimizer: Annotated[
        tuple[OptimizerChoice, ...],
        Field(min_length=1, description="the name of an optimizer, a table, or a list of them"),
        BeforeValidator(
            _as_choices,
            json_schema_input_type=(
                OptimizerName
                | OptimizerChoice
                | Annotated[tuple[OptimizerName | OptimizerChoice, ...], Field(min_length=1)]
            ),
        ),
    ]

    @field_validator("schedule", "optimizer")
    @classmethod
    def _names_are_unique(cls, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        names = [choice.name for choice in choices]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise mistake("each name once", f"{', '.join(twice)} more than once")
        return choices

    def entries(self, schedule: str, optimizer: str) -> dict[str, Entry]:
        """Give the parameters that exist once a schedule and an optimiser are chosen."""
        chosen = [choice for choice in self.schedule if choice.name == schedule]
        chosen_too = [choice for choice in self.optimizer if choice.name == optimizer]
        return {key: entry for choice in chosen + chosen_too for key, entry in choice.entries()}


# --- search ---------------------------------------------------------------------------------


class TPE(Table):
    """Tree-structured Parzen estimator; the first `startup_trials` are drawn at random."""

    name: Literal["tpe"]
    startup_trials: Annotated[int, Field(ge=1)] = 10


class Random(Table):
    """Independent draws from the whole space."""

    name: Literal["random"]


class Grid(Table):
    """Every combination of the space's lists, once, in the order of the study file."""

    name: Literal["grid"]


class ASHA(Table):
    """Asynchronous successive halving: of the trials at a rung, 1 in `reduction_factor` goes on.

    The first rung is at step `min_steps` (by default such that there are three or so).
    """

    name: Literal["asha"]
    min_steps: Annotated[int, Field(ge=1)] | None = None
    reduction_factor: Annotated[int, Field(ge=2)] = 3

    def rungs(self, steps: int, evaluate_every: int) -> tuple[int, ...]:
        """Give the steps at which a trial reports and may be pruned."""
        rung = self.first_rung(steps)
        rungs = []
        while rung < steps:
            rungs.append(rung)
            rung *= self.reduction_factor
        return tuple(rungs)

    def first_rung(self, steps: int) -> int:
        """Give the resource of the lowest rung."""
        return self.min_steps or -(-steps // self.reduction_factor**3)


class Median(Table):
    """Stop what is worse than the median of the earlier trials at the same step."""

    name: Literal["median"]
    startup_trials: Annotated[int, Field(ge=0)] = 5
    warmup_steps: Annotated[int, Field(ge=0)] = 0

    def rungs(self, steps: int, evaluate_every: int) -> tuple[int, ...]:
        """Give the steps at which a trial reports and may be pruned."""
        first = max(evaluate_every, self.warmup_steps)
        return tuple(range(first, steps, evaluate_every))


class NoPruner(Table):
    """Every trial runs to the horizon, unless it diverges."""

    name: Literal["none"]

    def rungs(self, steps: int, evaluate_every: int) -> tuple[int, ...]:
        """Give no steps: nothing is reported before the end."""
        return ()


AnySampler: TypeAlias = Annotated[TPE | Random | Grid, Field(discriminator="name")]
AnyPruner: TypeAlias = Annotated[ASHA | Median | NoPruner, Field(discriminator="name")]
SamplerName: TypeAlias = Literal["tpe", "random", "grid"]
PrunerName: TypeAlias = Literal["asha", "median", "none"]
Sampler: TypeAlias = Annotated[
    AnySampler, BeforeValidator(_as_choice, json_schema_input_type=SamplerName | AnySampler)
]
Pruner: TypeAlias = Annotated[
    AnyPruner, BeforeValidator(_as_choice, json_schema_input_type=PrunerName | AnyPruner)
]


# --- the tables of a study file -------------------------------------------------------------


class StudyTable(Table):
    """Who the study is and what it is judged by."""

    name: Annotated[str, Field(min_length=1, max_length=200, description="a name")]
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    metric: Annotated[
        str,
        Field(
            pattern=r"^\w[\w./-]{0,199}$",
            description="the name of a metric, of letters, digits, '_', '.', '/' and '-'",
        ),
    ] = "val_loss"
    direction: Literal["minimize", "maximize"] = "minimize"

    @field_validator("name")
    @classmethod
    def _is_printable(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip():
            raise mistake("printable characters, with no space at either end")
        return name


def _as_argument(value: object) -> object:
    """Check in one go what a union would refuse once for each of its members."""
    for item in value if isinstance(value, list | tuple) else (value,):
        if not isinstance(item, bool | int | float | str):
            raise mistake("a number, a boolean, a string or a list of them")
        if isinstance(item, float) and not math.isfinite(item):
            raise mistake("finite numbers")
    return tuple(value) if isinstance(value, list) else value


Argument: TypeAlias = Annotated[
    ParameterValue | tuple[ParameterValue, ...], BeforeValidator(_as_argument)
]


class WorkloadTable(Table):
    """What is trained: a factory named `module:function` and its arguments."""

    factory: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
            description='a factory named as "module:function"',
        ),
    ]
    arguments: dict[str, Argument] = {}

    @field_validator("arguments")
    @classmethod
    def _names_are_names(cls, arguments: dict[str, Argument]) -> dict[str, Argument]:
        wrong = [name for name in arguments if not name.isidentifier()]
        said = mistake("the name of an argument of the factory", "this name")
        mistakes("WorkloadTable", {(name,): said for name in wrong})
        return arguments


class TrainingTable(Table):
    """How long and on what a trial trains; a step is one update of the parameters."""

    steps: Annotated[int, Field(ge=1, le=10_000_000, description="a whole number")]
    batch_size: Annotated[int, Field(ge=1)] | Literal["full"] = 64
    evaluate_every: Annotated[int, Field(ge=1)] | None = None
    dtype: Literal["float32", "float64"] = "float32"
    device: Annotated[
        str, Field(pattern=r"^(cpu|cuda(:[0-9]{1,3})?)$", description='"cpu", "cuda" or "cuda:0"')
    ] = "cpu"
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 10.0

    @property
    def evaluation_interval(self) -> int:
        """Steps between two evaluations; a tenth of the horizon unless it is given."""
        return self.evaluate_every or max(1, self.steps // 10)


class SearchTable(Table):
    """Who chooses the parameters and who stops trials that lag behind."""

    sampler: Sampler = TPE(name="tpe")
    pruner: Pruner = ASHA(name="asha")


class GuardTable(Table):
    """The bounds of the divergence guard; `tuner.training.guard` says what each one means."""

    window: Annotated[int, Field(ge=8, multiple_of=4)] = 16
    far: Annotated[float, Field(gt=1)] = 10.0
    growth: Annotated[float, Field(gt=1)] = 1.05
    runaway: Annotated[float, Field(gt=1)] = 1e6
    late: Annotated[float, Field(gt=0, le=1)] = 0.5
    late_margin: Annotated[float, Field(ge=1)] = 1.5


class BudgetTable(Table):
    """How much the study may spend; the only table that may change once it is submitted."""

    trials: Annotated[int, Field(ge=1, le=1_000_000, description="a whole number")]


class StudySpec(Table):
    """A whole study file."""

    study: StudyTable
    workload: WorkloadTable
    training: TrainingTable
    space: Space
    search: SearchTable = SearchTable()
    guard: GuardTable = GuardTable()
    budget: BudgetTable

    def rungs(self) -> tuple[int, ...]:
        """Give the steps at which every trial reports to the pruner, fixed for good."""
        training = self.training
        return self.search.pruner.rungs(training.steps, training.evaluation_interval)

    def evaluation_steps(self) -> tuple[int, ...]:
        """Give the steps at which every trial is evaluated: regular ones, rungs, and the last."""
        steps = self.training.steps
        regular = range(0, steps, self.training.evaluation_interval)
        return tuple(sorted({*regular, *self.rungs(), steps}))

    def digest(self) -> str:
        """Name everything but the budget by 16 hexadecimal digits of a SHA-256."""
        content = self.model_dump(mode="json", exclude={"budget"})
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]
