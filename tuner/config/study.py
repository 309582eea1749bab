"""One study, frozen and validated: the tables of a study file and what follows from them.

A study file is TOML with the tables `study`, `workload`, `training`, `space`, `search`, `guard`,
`probe`, `budget` and `retrain`, of which only `study`, `workload`, `training` and `budget` must be
there. Every entry of `space` is a value (fixed), a list (choices) or a table with `low` and `high`
(a range).
`tuner.config.reading` reads such a file and words its mistakes.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from tuner.config.retrain import MetricName, RetrainTable
from tuner.config.search import TPE, OneRung, Patient, Pruner, Sampler
from tuner.config.space import Space
from tuner.config.values import ParameterValue, Table, mistake, mistakes
from tuner.core.text import NAME_LIMIT, is_readable


def _readable(text: str) -> str:
    if not is_readable(text):
        raise mistake("text without control characters")
    return text


Readable: TypeAlias = Annotated[str, AfterValidator(_readable)]


class StudyTable(Table):
    """Who the study is and what it is judged by."""

    name: Annotated[str, Field(min_length=1, max_length=NAME_LIMIT, description="a name")]
    description: Readable = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    metric: MetricName = "val_loss"
    direction: Literal["minimize", "maximize"] = "minimize"
    value: Literal["last", "best"] = "last"  # of the evaluations so far, at rungs and at the end

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
        if isinstance(item, str):
            _readable(item)
    return tuple(value) if isinstance(value, list) else value


Argument: TypeAlias = Annotated[
    ParameterValue | tuple[ParameterValue, ...], BeforeValidator(_as_argument)
]


FunctionName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]


class WorkloadTable(Table):
    """What is trained: a `factory` of model, data and loss for our trainers, or a `train` function.

    Either is named `module:function` and gets the arguments by name; a train function is a whole
    loop of its own and gets a `tuner.training.trial.Trial` first.
    """

    factory: Annotated[
        FunctionName | None, Field(description='a factory named as "module:function"')
    ] = None
    train: Annotated[
        FunctionName | None, Field(description='a train function named as "module:function"')
    ] = None
    arguments: dict[str, Argument] = Field(default_factory=dict)

    @field_validator("arguments")
    @classmethod
    def _names_are_names(cls, arguments: dict[str, Argument]) -> dict[str, Argument]:
        wrong = [name for name in arguments if not name.isidentifier()]
        said = mistake("the name of an argument of the function", "this name")
        mistakes("WorkloadTable", {(name,): said for name in wrong})
        return arguments

    @model_validator(mode="after")
    def _is_one_of_two(self) -> WorkloadTable:
        if self.factory is None and self.train is None:
            error = mistake('this or train, named as "module:function"', "neither")
            mistakes("WorkloadTable", {("factory",): error})
        if self.factory is not None and self.train is not None:
            error = mistake("nothing beside factory, since a study trains one of them", "both")
            mistakes("WorkloadTable", {("train",): error})
        return self

    @property
    def function(self) -> str:
        """The name of whichever of the two there is."""
        name = self.factory or self.train
        assert name is not None
        return name


class TrainingTable(Table):
    """How long, on what and how a trial trains; a step is one update of the parameters.

    A train function's loop is its own: batches, dtype, clipping, accumulation and precision are not
    for it.

    - `clip_norm`: a longer gradient is shortened to this norm; its norm before that is recorded.
    - `accumulate`: a batch is cut into so many micro-batches, whose gradients add up to its own.
      Memory shrinks; the result stays, to rounding, unless layers (batch norm) see a whole batch.
    - `precision`: "bfloat16" or "float16" computes forward passes in it (autocast) and keeps
      parameters in float32; "float16" scales the loss and skips steps that overflow. A skipped step
      counts as a step, and the schedule moves on; `[guard] skipped_steps` in a row end the trial.
    - `patience`: after so many evaluations in a row without a better metric the trial is completed.
    - `seconds`: after so long in training, attempts together and evaluations included, the trial is
      evaluated where it is and completed. Start-up and loading of data do not count; of a train
      function, all before its first report is start-up, in each attempt. Results then depend on
      the machine's speed. A train function's trial ends with the last value it reported after step
      0, or fails without one.
    - `trainer`: "reference" trains one trial at a time, "cohort" many in one step, as far as the
      workload allows it, and "auto" measures for two seconds which is quicker, unless the budget is
      too small for two slots. What a study's first worker finds is kept for the study.
    - `slots`: how many trials a cohort trains at a time; "auto" is an eighth of the budget, at most
      64, since trials side by side do not learn from each other.
    - `threads`: CPU threads of each operator. "auto" measures, where trials train one at a time and
      a step keeps a processor busy for 5 ms or more, how many make it clearly quicker; else it is
      one. What a study's first worker finds is kept for the study, since results depend on it to
      rounding. A train function is not measured: "auto" is one.
    """

    steps: Annotated[int, Field(ge=1, le=10_000_000, description="a whole number")]
    batch_size: Annotated[int, Field(ge=1)] | Literal["full"] = 64
    evaluate_every: Annotated[int, Field(ge=1)] | None = None
    dtype: Literal["float32", "float64"] = "float32"
    device: Annotated[
        str, Field(pattern=r"^(cpu|cuda(:[0-9]{1,3})?)$", description='"cpu", "cuda" or "cuda:0"')
    ] = "cpu"
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 10.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    patience: Annotated[int, Field(ge=1)] | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None
    trainer: Literal["auto", "cohort", "reference"] = "auto"
    slots: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    # left out where it is measured, so that digests stay what they were
    threads: Annotated[
        Annotated[int, Field(ge=1, le=1024)] | Literal["auto"],
        Field(exclude_if=lambda threads: threads == "auto"),
    ] = "auto"

    @property
    def evaluation_interval(self) -> int:
        """Steps between two evaluations; a tenth of the horizon unless it is given."""
        return self.evaluate_every or max(1, self.steps // 10)


class SearchTable(Table):
    """Who chooses the parameters and who stops trials that lag behind.

    - `first`: combinations of parameters that the first trials have, before the sampler draws any.
    """

    sampler: Sampler = TPE(name="tpe")
    pruner: Pruner = OneRung(name="halving")
    # left out where there are none, so that digests stay what they were
    first: Annotated[
        tuple[dict[str, ParameterValue], ...],
        Field(strict=False, exclude_if=lambda first: not first),
    ] = ()


class GuardTable(Table):
    """The bounds of the divergence guard; `tuner.training.guard.rules` says what each one means."""

    window: Annotated[int, Field(ge=8, multiple_of=4)] = 16
    far: Annotated[float, Field(gt=1)] = 10.0
    growth: Annotated[float, Field(gt=1)] = 1.05
    runaway: Annotated[float, Field(gt=1)] = 1e6
    late: Annotated[float, Field(gt=0, le=1)] = 0.5
    late_margin: Annotated[float, Field(ge=1)] = 1.5
    skipped_steps: Annotated[int, Field(ge=1)] = 20


class ProbeTable(Table):
    """A probe of the learning rate before the search, which starts from what it finds.

    - `enabled`: probe, once for the study, before its first trial. The search then keeps to an
      active range of the rate inside that of `[space]`, begins with the rates that the probe
      suggests, and extends the range where the best trial sits at its edge.
    - `rates`: how many rates are tried at a time, for each optimizer.
    - `steps`: how many updates each of them trains for, at most those of a trial.
    - `margin`: by this factor the active range goes below the suggested and above the largest
      stable rates; an extension is by this factor too.
    """

    enabled: bool = False
    rates: Annotated[int, Field(ge=8, le=512)] = 31
    steps: Annotated[int, Field(ge=8)] = 100
    margin: Annotated[float, Field(gt=1)] = 4.0


class RetriesTable(Table):
    """How many attempts at a trial may end so before the next one that does fails the trial.

    - `stale`: lost with their worker, or silent for longer than their lease.
    - `failed`: an exception of the workload's; the same code on the same data raises it again,
      unless it depends on something outside.
    - `out_of_memory`: each next attempt halves the micro-batches.

    An attempt that was told to stop is none of these: a trial may be interrupted without end.
    """

    stale: Annotated[int, Field(ge=0)] = 3
    failed: Annotated[int, Field(ge=0)] = 0
    out_of_memory: Annotated[int, Field(ge=0, le=30)] = 6


class BudgetTable(Table):
    """How much the study may spend; the only table that may change once it is submitted.

    Once one of its rules holds no trial is started any more, what waits is cancelled, what runs
    goes on to its end, and the study has ended. A larger budget opens it again.

    - `wall_seconds`: since its first trial was started.
    - `compute_seconds`: of all attempts together.
    - `no_improvement`: so many trials have ended since the best one.
    - `regret_below`: the best value is unlikely to be further than this from the best there is, by
      the bound of a Gaussian process on the completed trials (at least twenty).
    - `weight`: the study's share of workers that several studies have in common.
    """

    trials: Annotated[int, Field(ge=1, le=1_000_000, description="a whole number")]
    # so many trials that fail for one reason, before any other has ended, stop the study; 0: never
    stop_after_failures: Annotated[int, Field(ge=0)] = 3
    wall_seconds: Annotated[float, Field(gt=0)] | None = None
    compute_seconds: Annotated[float, Field(gt=0)] | None = None
    no_improvement: Annotated[int, Field(ge=1)] | None = None
    regret_below: Annotated[float, Field(gt=0)] | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    retries: RetriesTable = RetriesTable()


class StudySpec(Table):
    """A whole study file."""

    study: StudyTable
    workload: WorkloadTable
    training: TrainingTable
    space: Space = Space()
    search: SearchTable = SearchTable()
    guard: GuardTable = GuardTable()
    probe: ProbeTable = ProbeTable()
    budget: BudgetTable
    retrain: RetrainTable = RetrainTable()

    def rungs(self) -> tuple[int, ...]:
        """Give the steps at which every trial reports to the pruner, fixed for good."""
        training = self.training
        warmup = self.space.longest_warmup(training.steps)
        return self.search.pruner.rungs(training.steps, training.evaluation_interval, warmup)

    def first_stop(self) -> int | None:
        """Return the first step at which the pruner may stop a trial; None where it never does."""
        training, pruner = self.training, self.search.pruner
        if isinstance(pruner, Patient):
            return pruner.first_stop(training.steps, training.evaluation_interval)
        return min(self.rungs(), default=None)

    def evaluation_steps(self) -> tuple[int, ...]:
        """Give the steps at which every trial is evaluated: regular ones, rungs, and the last."""
        steps = self.training.steps
        regular = range(0, steps, self.training.evaluation_interval)
        return tuple(sorted({*regular, *self.rungs(), steps}))

    def digest(self) -> str:
        """Name all but budget and retraining by 16 hexadecimal digits of a SHA-256."""
        content = self.model_dump(mode="json", exclude={"budget", "retrain"})
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]
