"""The tables of a study file, and the steps and digests that follow from them.

A study file is TOML with the tables `study`, `workload`, `training`, `space`, `search`, `guard`,
`probe`, `budget`, `retrain` and `notify`, of which `study`, `workload`, `training` and `budget` are
required. Every entry of `space` is a value (fixed), a list (choices) or a table with `low` and
`high` (a range).
`tuner.config.reading` reads such a file and reports its mistakes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tuner.config.constraints import Limit
from tuner.config.retrain import MetricName, RetrainTable, StudyNotifyTable
from tuner.config.search import (
    AnyJudge,
    Auto,
    FastForward,
    Grid,
    Halving,
    Judge,
    Listed,
    OneRung,
    Patient,
    Pruner,
    Raw,
    Sampler,
    SingleRung,
)
from tuner.config.space import Space
from tuner.config.values import (
    Arguments,
    FunctionName,
    ParameterValue,
    Readable,
    Table,
    mistake,
    mistakes,
)
from tuner.core.text import (
    DEFAULT_PROJECT,
    NAME_LIMIT,
    PROJECT_PATTERN,
    in_project,
)

SECONDS = "seconds"
"""In constraints, the time of a trial's attempts, unless it reports a metric of this name."""


Direction: TypeAlias = Literal["minimize", "maximize"]


class Objective(Table):
    """One of several objectives of a study."""

    metric: MetricName
    direction: Direction = "minimize"


class StudyTable(Table):
    """The name of a study and its objective.

    - `project`: a name space. The study is called `project/name` everywhere; a name with a slash
      has its project before it. By default the project is that of `TUNER_PROJECT`, or "default",
      whose studies have no slash.
    - `objectives`: two or more metrics with their directions, in place of `metric` and `direction`,
      which are those of the first one then. The result of the study is the front: the trials that
      no other trial is as good as in every objective and better in one.
    - `constraints`: limits on the metrics of a trial, and on its `seconds`, such as
      `accuracy >= 0.97`. A trial that exceeds one at its end is infeasible: it ranks below every
      trial that exceeds none.
    """

    name: Annotated[str, Field(min_length=1, max_length=NAME_LIMIT, description="a name")]
    # part of the name once it is read, and so never stored
    project: Annotated[
        str,
        Field(pattern=PROJECT_PATTERN, exclude=True, description="letters, digits, '.', '_', '-'"),
    ] = DEFAULT_PROJECT
    description: Readable = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    metric: MetricName = "val_loss"
    direction: Direction = "minimize"
    # omitted if empty, so that earlier digests stay valid
    objectives: Annotated[
        tuple[Objective, ...], Field(strict=False, exclude_if=lambda objectives: not objectives)
    ] = ()
    value: Literal["last", "best"] = "last"  # of the evaluations so far, at rungs and at the end
    # omitted if empty, so that earlier digests stay valid
    constraints: Annotated[
        tuple[Readable, ...], Field(strict=False, exclude_if=lambda constraints: not constraints)
    ] = ()

    @field_validator("name")
    @classmethod
    def _is_printable(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip():
            raise mistake("printable characters, with no space at either end")
        return name

    @model_validator(mode="after")
    def _is_in_its_project(self) -> StudyTable:
        name = in_project(self.project, self.name)
        if len(name) > NAME_LIMIT:
            error = mistake(f"a name of at most {NAME_LIMIT} characters with its project")
            mistakes("StudyTable", {("name",): error})
        vars(self).update(name=name, project=DEFAULT_PROJECT)
        return self

    @model_validator(mode="before")
    @classmethod
    def _has_its_first_objective(cls, table: Any) -> Any:
        """Set metric and direction to those of the first objective, unless they are given."""
        objectives = table.get("objectives") if isinstance(table, dict) else None
        first = objectives[0] if isinstance(objectives, list | tuple) and objectives else None
        if not isinstance(first, dict) or not isinstance(first.get("metric"), str):
            return table
        maximized = first.get("direction") == "maximize"
        own = {"metric": first["metric"], "direction": "maximize" if maximized else "minimize"}
        return own | table

    @model_validator(mode="after")
    def _objectives_are_several(self) -> StudyTable:
        if not self.objectives:
            return self
        found: dict[tuple[str | int, ...], PydanticCustomError] = {}
        names = [one.metric for one in self.objectives]
        if len(set(names)) < max(2, len(names)):
            expected = "two or more different metrics, or metric and direction instead"
            found["objectives",] = mistake(expected, ", ".join(names))
        for key in ("metric", "direction"):
            if getattr(self, key) != getattr(self.objectives[0], key):
                expected = "nothing, as objectives have their own"
                found[key,] = mistake(expected, getattr(self, key))
        if self.value != "last":
            found["value",] = mistake('"last", as there are several objectives', self.value)
        mistakes("StudyTable", found)
        return self

    @field_validator("constraints")
    @classmethod
    def _are_limits(cls, constraints: tuple[str, ...]) -> tuple[str, ...]:
        for index, text in enumerate(constraints):
            try:
                Limit(text)
            except ValueError as error:
                raise mistake(str(error), text) from None
            if text in constraints[:index]:
                raise mistake("each constraint once", text)
        return constraints

    def limits(self) -> tuple[Limit, ...]:
        """Return the limits of `constraints`."""
        return tuple(map(Limit, self.constraints))


PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([A-Za-z_][\w.]*)\}")
"""A placeholder in a word of a command, or a doubled brace, which means a brace."""
PROGRAM_VALUES = (
    "number", "seed", "steps", "first_step", "device", "batch_size",
    "rates", "folder", "checkpoint_dir",
)  # fmt: skip
"""Names of placeholders beside the parameters of the trial."""

ASK_AND_TELL = "ask and tell"
"""In place of a function's name, if the caller trains."""


class WorkloadTable(Table):
    """What to train: a `factory` of model, data and loss, a `train` function, or a `command`.

    The first two are named `module:function` and get the arguments by name. A train function has
    its own training loop and gets a `tuner.training.loop.Trial` as first argument.

    - `command`: the words of a program's command line. `{lr}` stands for a parameter of the trial;
      `{number}`, `{seed}`, `{steps}`, `{first_step}`, `{device}`, `{batch_size}`, `{rates}`,
      `{folder}` and `{checkpoint_dir}` for its number and so on; `{{` for a brace.
    - `patterns`: regular expressions for lines of its output, by the names that they report, each
      with a group `value`. `step` is the number of the step.
    - `counts_from`: the number of the program's first step, as patterns read it: 0 or 1.
    - `folder`: where the program runs, "trial" for a folder of its own, "worker" for the worker's.
    - `processes`: the ranks of each trial, on one machine, for a train function or a command that
      uses `torch.distributed`; "gpus" is one for each GPU.
    - `isolation`: "process" runs each trial of a train function in a process of its own, so that a
      crash does not end the worker; "thread" in the worker's. A command always has its own.
    - `ask_and_tell`: no worker trains the study. A program asks for its trials (`Study.ask`),
      trains them, and tells their values.
    """

    factory: Annotated[
        FunctionName | None, Field(description='a factory named as "module:function"')
    ] = None
    train: Annotated[
        FunctionName | None, Field(description='a train function named as "module:function"')
    ] = None
    # omitted if false, so that earlier digests stay valid
    ask_and_tell: Annotated[bool, Field(exclude_if=lambda asks: not asks)] = False
    arguments: Arguments = Field(default_factory=dict)
    # the next six are omitted from what is stored, so that earlier digests stay valid
    command: Annotated[
        tuple[Annotated[Readable, Field(min_length=1)], ...] | None,
        Field(strict=False, min_length=1, exclude_if=lambda command: command is None),
    ] = None
    patterns: Annotated[
        dict[MetricName, Readable], Field(exclude_if=lambda patterns: not patterns)
    ] = Field(default_factory=dict)
    counts_from: Annotated[int, Field(ge=0, le=1, exclude_if=lambda first: first == 0)] = 0
    folder: Annotated[
        Literal["trial", "worker"], Field(exclude_if=lambda folder: folder == "trial")
    ] = "trial"
    processes: Annotated[
        Annotated[int, Field(ge=1, le=64, description="a number")] | Literal["gpus"],
        Field(exclude_if=lambda processes: processes == 1),
    ] = 1
    isolation: Annotated[
        Literal["thread", "process"], Field(exclude_if=lambda isolation: isolation == "thread")
    ] = "thread"

    @field_validator("patterns")
    @classmethod
    def _patterns_have_a_value(cls, patterns: dict[str, str]) -> dict[str, str]:
        found: dict[tuple[str | int, ...], PydanticCustomError] = {}
        for name, text in patterns.items():
            try:
                groups = re.compile(text).groupindex
            except re.error as error:
                found[name,] = mistake("a regular expression", f"{text!r} ({error})")
                continue
            if "value" not in groups:
                expected = r"a regular expression with a group value, such as '(?P<value>\S+)'"
                found[name,] = mistake(expected, repr(text))
        mistakes("WorkloadTable", found)
        return patterns

    @model_validator(mode="after")
    def _is_one_of_two(self) -> WorkloadTable:
        if self.command is not None:
            self._refuse_beside_command()
            return self
        if self.ask_and_tell:
            error = mistake("nothing, as ask_and_tell leaves the training to its caller", "a value")
            own = {"factory": self.factory, "train": self.train, "arguments": self.arguments}
            mistakes("WorkloadTable", {(key,): error for key, value in own.items() if value})
        elif self.factory is None and self.train is None:
            error = mistake('this key or train, named as "module:function"', "neither")
            mistakes("WorkloadTable", {("factory",): error})
        for key in ("patterns", "counts_from", "folder"):
            if key in self.model_fields_set:
                error = mistake("nothing, since it is for a command", "this key")
                mistakes("WorkloadTable", {(key,): error})
        set_here = [key for key in ("processes", "isolation") if key in self.model_fields_set]
        if self.train is None:
            error = mistake("nothing, since it is for a train function or a command", "this key")
            mistakes("WorkloadTable", {(key,): error for key in set_here})
        elif self.processes != 1 and self.isolation == "thread" and "isolation" in set_here:
            error = mistake('"process", as processes are of their own', '"thread"')
            mistakes("WorkloadTable", {("isolation",): error})
        if self.factory is not None and self.train is not None:
            error = mistake("nothing, since factory is set and a study trains one of them", "both")
            mistakes("WorkloadTable", {("train",): error})
        return self

    def _refuse_beside_command(self) -> None:
        assert self.command is not None
        expected = "nothing, since command is set and a study trains one of them"
        both = [key for key in ("factory", "train", "ask_and_tell") if getattr(self, key)]
        found: dict[tuple[str | int, ...], PydanticCustomError] = {
            (key,): mistake(expected, "both") for key in both
        }
        if self.arguments:
            expected = "nothing, since a command has its arguments in command"
            found["arguments",] = mistake(expected, "arguments")
        if self.isolation == "thread" and "isolation" in self.model_fields_set:
            found["isolation",] = mistake('"process", as a command has its own', '"thread"')
        if any(match[1] for match in PLACEHOLDER.finditer(self.command[0])):
            expected = "a program without placeholders as first word"
            found["command",] = mistake(expected, self.command[0])
        mistakes("WorkloadTable", found)

    @property
    def is_isolated(self) -> bool:
        """Whether trials of a train function have processes of their own."""
        return self.train is not None and (self.isolation == "process" or self.processes != 1)

    @property
    def function(self) -> str:
        """The factory or train function, the command as in a shell, or `ask and tell`."""
        if self.command is not None:
            return shlex.join(self.command)
        return self.factory or self.train or ASK_AND_TELL


Unit: TypeAlias = Literal["steps", "epochs", "examples"]
UNITS: tuple[Unit, ...] = ("steps", "epochs", "examples")
"""The units of the budget of a trial."""


class TrainingTable(Table):
    """How a trial is trained; a step is one update of the parameters.

    The budget of a trial is one of `steps`, `epochs` (passes over the training data, without an
    incomplete last batch) and `examples`. `evaluate_every`, the rungs of the pruner and its
    `min_steps` and `warmup_steps` are in the same unit.

    A train function has its own loop, so batches, dtype, clipping, accumulation and precision do
    not apply to it.

    - `clip_norm`: the maximum norm of the gradient; the norm before clipping is recorded.
    - `accumulate`: number of micro-batches of a batch, whose gradients are accumulated. It saves
      memory; results are equal up to rounding, unless layers (batch norm) depend on the batch.
    - `precision`: "bfloat16" or "float16" computes forward passes in it (autocast) and keeps
      parameters in float32; "float16" scales the loss and skips steps that overflow. A skipped step
      counts as a step, and the schedule moves on; `[guard] skipped_steps` in a row end the trial.
    - `ema`: decay of an exponential moving average of the parameters, such as 0.999, with which
      trials are evaluated. It is at most (1 + t) / (10 + t) after t updates.
    - `patience`: a trial is completed after this many consecutive evaluations without a better
      metric.
    - `seconds`: training time, over all attempts and including evaluations, after which a trial is
      evaluated and completed. Start-up and data loading do not count; for a train function,
      everything before its first report is start-up, in each attempt. Results then depend on the
      machine's speed. The trial of a train function ends with its last value reported after step
      0, or fails if there is none.
    - `trainer`: "reference" trains one trial at a time, "cohort" many in one step if the workload
      allows it, and "auto" measures for two seconds which is faster, unless the budget is too small
      for two slots. The choice of a study's first worker is stored and used by all others.
    - `slots`: number of trials that a cohort trains at a time; "auto" is an eighth of the budget,
      at most 64, since the sampler learns nothing between simultaneous trials.
    - `keep_checkpoint`: keep a checkpoint of each trial that was completed or pruned, for `tuner
      extend`: of the last step whose rates do not depend on the horizon. None is kept of a trial
      whose schedule depends on it from the start.
    - `threads`: CPU threads of each operator. With "auto" it is measured if trials train one at a
      time and a step takes at least 5 ms of processor time; else it is one, and also for a train
      function. The number found by a study's first worker is stored and used by all others, since
      results depend on it by rounding.
    """

    # 0: of each trial's own, from epochs or examples
    steps: Annotated[
        int,
        Field(
            ge=1, le=10_000_000, description="a whole number", exclude_if=lambda steps: steps == 0
        ),
    ] = 0
    epochs: Annotated[
        int | None, Field(ge=1, le=1_000_000, exclude_if=lambda epochs: epochs is None)
    ] = None
    examples: Annotated[
        int | None, Field(ge=1, le=2**40, exclude_if=lambda examples: examples is None)
    ] = None
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
    # omitted if not set, so that earlier digests stay valid
    ema: Annotated[float | None, Field(gt=0, lt=1, exclude_if=lambda ema: ema is None)] = None
    patience: Annotated[int, Field(ge=1)] | None = None
    seconds: Annotated[float, Field(gt=0)] | None = None
    trainer: Literal["auto", "cohort", "reference"] = "auto"
    slots: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"] = "auto"
    # omitted if false, so that earlier digests stay valid
    keep_checkpoint: Annotated[bool, Field(exclude_if=lambda keep: not keep)] = False
    # omitted for "auto", so that earlier digests stay valid
    threads: Annotated[
        Annotated[int, Field(ge=1, le=1024)] | Literal["auto"],
        Field(exclude_if=lambda threads: threads == "auto"),
    ] = "auto"

    @model_validator(mode="after")
    def _has_one_budget(self) -> TrainingTable:
        given = [unit for unit in UNITS if getattr(self, unit)]
        if not given:
            error = mistake("a whole number of steps, or epochs or examples instead", "nothing")
            mistakes("TrainingTable", {("steps",): error})
        expected = f"nothing, as {given[0]} is the budget of a trial"
        for unit in given[1:]:
            mistakes("TrainingTable", {(unit,): mistake(expected, str(getattr(self, unit)))})
        return self

    @property
    def unit(self) -> Unit:
        """The unit of a trial's budget."""
        return next(unit for unit in UNITS if getattr(self, unit))

    @property
    def length(self) -> int:
        """The budget of a trial, in its unit."""
        return int(getattr(self, self.unit))

    @property
    def evaluation_interval(self) -> int:
        """Units between two evaluations; by default a tenth of the budget."""
        return self.evaluate_every or max(1, self.length // 10)


class SearchTable(Table):
    """The sampler and the pruner.

    - `judge`: what the pruner compares at a rung. By default one_rung compares "fast_forward" where
      our trainers run, and everything else "raw" values. A train function may have "fast_forward"
      if it trains branches, see `Trial.branch`.
    - `first`: parameters of the first trials, before the sampler draws any.
    - `learn_from`: names of earlier studies of this database whose trials the sampler learns from;
      `*` stands for any characters.
    """

    sampler: Sampler = Auto(name="auto")
    pruner: Pruner = OneRung(name="one_rung")
    # omitted if not set, so that earlier digests stay valid
    judge: Annotated[Judge | None, Field(exclude_if=lambda judge: judge is None)] = None
    # omitted if empty, so that earlier digests stay valid
    first: Annotated[
        tuple[dict[str, ParameterValue], ...],
        Field(strict=False, exclude_if=lambda first: not first),
    ] = ()
    learn_from: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Field(strict=False, exclude_if=lambda names: not names),
    ] = ()


class GuardTable(Table):
    """The bounds of the divergence guard, as described in `tuner.training.guard.rules`."""

    window: Annotated[int, Field(ge=8, multiple_of=4)] = 16
    far: Annotated[float, Field(gt=1)] = 10.0
    growth: Annotated[float, Field(gt=1)] = 1.05
    runaway: Annotated[float, Field(gt=1)] = 1e6
    late: Annotated[float, Field(gt=0, le=1)] = 0.5
    late_margin: Annotated[float, Field(ge=1)] = 1.5
    skipped_steps: Annotated[int, Field(ge=1)] = 20


class ProbeTable(Table):
    """A probe of the learning rate before the search.

    - `enabled`: probe once before the study's first trial. The search then draws rates from an
      active range within that of `[space]`, begins with the rates that the probe suggests, and
      extends the range if the best trial is at its edge.
    - `rates`: number of rates of each optimizer that are tried at a time.
    - `steps`: number of updates for each rate, at most those of a trial.
    - `margin`: factor by which the active range extends below the suggested and above the largest
      stable rates, and by which it is extended later.
    """

    enabled: bool = False
    rates: Annotated[int, Field(ge=8, le=512)] = 31
    steps: Annotated[int, Field(ge=8)] = 100
    margin: Annotated[float, Field(gt=1)] = 4.0


class RetriesTable(Table):
    """How many attempts of each kind may fail before the next one fails the trial.

    - `stale`: the worker died, or its lease expired.
    - `failed`: the workload raised an exception, which is usually reproducible.
    - `out_of_memory`: each further attempt halves the micro-batches.

    Interrupted attempts do not count: a trial may be interrupted any number of times.
    """

    stale: Annotated[int, Field(ge=0)] = 3
    failed: Annotated[int, Field(ge=0)] = 0
    out_of_memory: Annotated[int, Field(ge=0, le=30)] = 6


DECIDE, DECIDE_FROM, LEAST_DECIDING = 0.15, 50, 6
"""The default of `[budget] decide`, and from how many trials on; the fewest trials that decide."""


class BudgetTable(Table):
    """How much the study may spend; the only table that may change after the submission.

    When a limit is reached, no more trials are started, waiting ones are cancelled, running ones
    continue to their end, and the study has ended. A larger budget reopens it.

    - `wall_seconds`: time since the start of its first trial.
    - `compute_seconds`: time of all attempts together.
    - `no_improvement`: number of trials that ended since the best one.
    - `regret_below`: distance of the best value to the best possible one, bounded by a Gaussian
      process on at least twenty completed trials.
    - `improvement_below`: what one more trial is expected to improve the best value by, by the
      process of gp on at least twenty completed trials.
    - `decide`: share of the trials that is reserved to decide between the best ones after the
      search, and of `wall_seconds` and `compute_seconds`; 0 disables it. By default 0.15 in studies
      of at least 50 trials, unless a list of combinations is trained.
    - `weight`: the study's share of common workers.
    """

    trials: Annotated[int, Field(ge=1, le=1_000_000, description="a whole number")]
    decide: Annotated[float, Field(ge=0, lt=1)] | None = None
    # number of first trials failing for the same reason that stops the study; 0: never
    stop_after_failures: Annotated[int, Field(ge=0)] = 3
    wall_seconds: Annotated[float, Field(gt=0)] | None = None
    compute_seconds: Annotated[float, Field(gt=0)] | None = None
    no_improvement: Annotated[int, Field(ge=1)] | None = None
    regret_below: Annotated[float, Field(gt=0)] | None = None
    improvement_below: Annotated[float, Field(gt=0)] | None = None
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
    notify: StudyNotifyTable = StudyNotifyTable()

    @property
    def unit(self) -> Unit:
        """The unit of the budget of a trial, its rungs and its evaluations."""
        return self.training.unit

    @property
    def length(self) -> int:
        """The budget of a trial, in its unit."""
        return self.training.length

    @property
    def evaluation_interval(self) -> int:
        """Units between two evaluations."""
        return self.training.evaluation_interval

    @property
    def deciding_trials(self) -> int:
        """The trials of the budget that are reserved for deciding; the others are for the search.

        Fewer than `LEAST_DECIDING` decide nothing, so none is reserved then.
        """
        trials, share = self.budget.trials, self.budget.decide
        if self.workload.ask_and_tell or self.study.objectives:
            return 0
        if share is None:
            listed = isinstance(self.search.sampler, Grid | Listed)
            share = DECIDE if trials >= DECIDE_FROM and not listed else 0.0
        reserved = math.floor(share * trials + 1e-9)  # 0.29 of 100 is 29
        return reserved if reserved >= LEAST_DECIDING else 0

    def rungs(self) -> tuple[int, ...]:
        """Return the positions, in the study's unit, at which every trial reports to the pruner.

        They never change.
        """
        pruner, warmup = self.search.pruner, self.space.longest_warmup(self.length)
        if isinstance(pruner, OneRung) and isinstance(self.judge, Raw):
            return pruner.rungs(self.length, self.evaluation_interval, warmup, share=2)
        return pruner.rungs(self.length, self.evaluation_interval, warmup)

    @property
    def judge(self) -> AnyJudge:
        """How trials are judged at rungs; a train function has branches only if it trains them."""
        pruner, raw = self.search.pruner, Raw(name="raw")
        if not isinstance(pruner, SingleRung | Halving):
            return raw
        ours = self.workload.factory is not None and isinstance(pruner, OneRung)
        default = FastForward(name="fast_forward") if ours else raw
        return self.search.judge or default

    def first_stop(self) -> int | None:
        """Return the first position at which the pruner may stop a trial; None if it never does."""
        pruner = self.search.pruner
        if isinstance(pruner, Patient):
            return pruner.first_stop(self.length, self.evaluation_interval)
        return min(self.rungs(), default=None)

    def evaluation_steps(self) -> tuple[int, ...]:
        """Return the positions, in the study's unit, at which every trial is evaluated.

        These are regular ones, rungs, and the last.
        """
        regular = range(0, self.length, self.evaluation_interval)
        return tuple(sorted({*regular, *self.rungs(), self.length}))

    def digest(self) -> str:
        """Return 16 hexadecimal digits of the SHA-256 of the tables that may not change."""
        content = self.model_dump(mode="json", exclude={"budget", "retrain", "notify"})
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]
