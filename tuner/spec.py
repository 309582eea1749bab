"""One study, frozen and validated: the tables of a study file and what follows from them.

A study file is TOML with the tables `study`, `workload`, `training`, `space`, `search`, `guard`
and `budget`. Every entry of `space` is a value (fixed), a list (choices) or a table with `low`
and `high` (a range). `tuner.studyfile` reads such a file and words its mistakes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

ParameterValue: TypeAlias = float | int | bool | str
"""A parameter of one trial, as the ledger, Optuna and MLflow have it."""


class Table(BaseModel):
    """A table of a study file: frozen, no unknown keys, no conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# --- the values of a search space -----------------------------------------------------------


class Range(Table):
    """All numbers from `low` to `high`, both included; `log` samples their logarithm evenly."""

    low: float
    high: float
    log: bool | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if not self.low < self.high:
            raise PydanticCustomError(
                "range_order",
                "low below high",
                {"got": f"low = {self.low:g}, high = {self.high:g}"},
            )
        return self


class WholeRange(Range):
    """All whole numbers from `low` to `high`, both included."""

    low: int
    high: int


class ScaleRange(Range):
    """A range that is always sampled on a log scale."""

    log: Literal[True] = True


def _form(value: object) -> str:
    """Tell which of the three forms an entry of the space has."""
    if isinstance(value, dict | Range):
        return "range"
    return "list" if isinstance(value, list | tuple) else "value"


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

    def _check(self, entry: Any) -> Any:
        for number in (entry.low, entry.high) if isinstance(entry, Range) else options(entry):
            if not (self.gt < number < self.lt and self.ge <= number <= self.le):
                raise PydanticCustomError(
                    "out_of_bounds", "{expected}", {"expected": str(self), "got": f"{number:g}"}
                )
        if not isinstance(entry, Range):
            return entry
        entry = entry.model_copy(update={"log": self.log if entry.log is None else entry.log})
        if entry.log and entry.low <= 0:
            raise PydanticCustomError(
                "log_touches_zero",
                "a low above 0, since the range is on a log scale",
                {"got": f"low = {entry.low:g}"},
            )
        return entry

    def __str__(self) -> str:
        bounds = [("above", self.gt), ("at least", self.ge), ("below", self.lt)]
        bounds.append(("at most", self.le))
        said = [f"{word} {bound:g}" for word, bound in bounds if abs(bound) != float("inf")]
        return "a number " + " and ".join(said)


Real: TypeAlias = Annotated[
    Annotated[float, Tag("value")]
    | Annotated[tuple[float, ...], Field(min_length=1), Tag("list")]
    | Annotated[Range, Tag("range")],
    Discriminator(_form),
]
Scale: TypeAlias = Annotated[
    Annotated[float, Tag("value")]
    | Annotated[tuple[float, ...], Field(min_length=1), Tag("list")]
    | Annotated[ScaleRange, Tag("range")],
    Discriminator(_form),
]
Whole: TypeAlias = Annotated[
    Annotated[int, Tag("value")]
    | Annotated[tuple[int, ...], Field(min_length=1), Tag("list")]
    | Annotated[WholeRange, Tag("range")],
    Discriminator(_form),
]
Flag: TypeAlias = Annotated[
    Annotated[bool, Tag("value")] | Annotated[tuple[bool, ...], Field(min_length=1), Tag("list")],
    Discriminator(_form),
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

    lr: Annotated[Scale, Within(gt=0, log=True)]
    schedule: Annotated[
        tuple[ScheduleChoice, ...], Field(min_length=1), BeforeValidator(_as_choices)
    ]
    optimizer: Annotated[
        tuple[OptimizerChoice, ...], Field(min_length=1), BeforeValidator(_as_choices)
    ]

    @field_validator("schedule", "optimizer")
    @classmethod
    def _names_are_unique(cls, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        names = [choice.name for choice in choices]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise PydanticCustomError(
                "named_twice", "each name once", {"got": f"{', '.join(twice)} more than once"}
            )
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

    def rungs(self, steps: int, evaluate_every: int) -> tuple[int, ...]:  # noqa: ARG002
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

    def rungs(self, steps: int, evaluate_every: int) -> tuple[int, ...]:  # noqa: ARG002
        """Give no steps: nothing is reported before the end."""
        return ()


Sampler: TypeAlias = Annotated[
    TPE | Random | Grid, Field(discriminator="name"), BeforeValidator(_as_choice)
]
Pruner: TypeAlias = Annotated[
    ASHA | Median | NoPruner, Field(discriminator="name"), BeforeValidator(_as_choice)
]


# --- the tables of a study file -------------------------------------------------------------


class StudyTable(Table):
    """Who the study is and what it is judged by."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    metric: Annotated[str, Field(min_length=1)] = "val_loss"
    direction: Literal["minimize", "maximize"] = "minimize"

    @field_validator("name")
    @classmethod
    def _is_printable(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip():
            raise PydanticCustomError(
                "unprintable", "printable characters, no space at either end", {}
            )
        return name


class WorkloadTable(Table):
    """What is trained: a factory named `module:function` and its arguments."""

    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    arguments: dict[str, ParameterValue | tuple[ParameterValue, ...]] = {}


class TrainingTable(Table):
    """How long and on what a trial trains; a step is one update of the parameters."""

    steps: Annotated[int, Field(ge=1, le=10_000_000)]
    batch_size: Annotated[int, Field(ge=1)] | Literal["full"] = 64
    evaluate_every: Annotated[int, Field(ge=1)] | None = None
    dtype: Literal["float32", "float64"] = "float32"
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
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

    trials: Annotated[int, Field(ge=1, le=1_000_000)]


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
