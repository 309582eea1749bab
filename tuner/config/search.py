"""Samplers and pruners, by name with their options."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
)

from tuner.config.values import LIST, Arguments, FunctionName, ParameterValue, Table, as_choice


class TPE(Table):
    """Tree-structured Parzen estimator, once `startup_trials` have ended.

    `start` is what trials before that get: "random" draws, or the points of a scrambled Sobol
    sequence, by "textbook" after the usual values of the space as trial 0.
    """

    name: Literal["tpe"]
    startup_trials: Annotated[int, Field(ge=1)] = 10
    start: Literal["textbook", "sobol", "random"] = "textbook"


class Random(Table):
    """Independent draws from the whole space."""

    name: Literal["random"]


class Auto(Table):
    """gp while trials are few and the space is of moderate size, tpe from there on."""

    name: Literal["auto"]

    def at(self, number: int, dimensions: int) -> TPE | GP:
        """Return the sampler of trial `number`, in a space where so many parameters vary."""
        small = number < GP_TRIALS and dimensions <= GP_DIMENSIONS
        return GP(name="gp") if small else TPE(name="tpe")


GP_TRIALS, GP_DIMENSIONS = 400, 24
"""Up to here `auto` is gp, whose ask takes longer the more trials and parameters there are."""


class GP(Table):
    """A Gaussian process; the next trial has the largest expected improvement.

    The first `startup_trials` get the points of a scrambled Sobol sequence, where `start` is
    "textbook" after the usual values of the space as trial 0.
    """

    name: Literal["gp"]
    startup_trials: Annotated[int, Field(ge=1)] = 4
    start: Literal["textbook", "sobol"] = "textbook"


class OptunaGP(Table):
    """Optuna's Gaussian process; the first `startup_trials` are drawn at random."""

    name: Literal["optuna_gp"]
    startup_trials: Annotated[int, Field(ge=1)] = 10


class QMC(Table):
    """The points of a low-discrepancy sequence: random draws that leave no gaps."""

    name: Literal["qmc"]
    sequence: Literal["sobol", "halton"] = "sobol"
    scramble: bool = True


class CMAES(Table):
    """An evolution strategy on the ranges, updated after each generation of `population` trials.

    The first `startup_trials` are drawn at random, and so are parameters that are not ranges.
    """

    name: Literal["cmaes"]
    startup_trials: Annotated[int, Field(ge=1)] = 1
    population: Annotated[int, Field(ge=4)] | None = None


class NSGA2(Table):
    """Optuna's genetic algorithm for several objectives.

    Each generation of `population` trials is made from the best of the earlier ones.
    """

    name: Literal["nsga2"]
    population: Annotated[int, Field(ge=2)] = 20


class Grid(Table):
    """Every combination of the space's lists once, in the order of the study file."""

    name: Literal["grid"]


class Listed(Table):
    """The listed combinations of parameters, each once per round; each round has its own seed.

    Trials of one round differ in their parameters only, so they can be compared in pairs.
    """

    name: Literal["listed"]
    params: Annotated[tuple[dict[str, ParameterValue], ...], *LIST]

    def combination(self, number: int) -> dict[str, ParameterValue]:
        """Return the complete parameters of a trial."""
        return dict(self.params[number % len(self.params)])

    def round(self, number: int) -> int:
        """Return the round of a trial."""
        return number // len(self.params)


class Custom(Table):
    """A sampler of the user's own: a class derived from Optuna's, or a function that returns one.

    It is named as "module:Class" and made anew for each draw, from `arguments` and, if it takes
    one, a `seed`.
    """

    name: Literal["custom"]
    sampler: Annotated[FunctionName, Field(description='a class named as "module:Class"')]
    arguments: Arguments = Field(default_factory=dict)


def _as_sampler(value: object) -> object:
    """Return the table for a bare name, or for a sampler's class."""
    if isinstance(value, str) and ":" in value:
        return {"name": "custom", "sampler": value}
    return as_choice(value)


class Halving(Table):
    """The settings of successive halving: its lowest rung and its reduction factor."""

    name: str
    min_steps: Annotated[int, Field(ge=1)] | None = None
    reduction_factor: Annotated[int, Field(ge=2)] = 3

    def rungs(self, steps: int, evaluate_every: int, warmup: int = 0) -> tuple[int, ...]:
        """Return the steps at which a trial reports and may be pruned."""
        rung = self.first_rung(steps)
        rungs = []
        while rung < steps:
            rungs.append(rung)
            rung *= self.reduction_factor
        return tuple(rungs)

    def first_rung(self, steps: int) -> int:
        """Return the step of the lowest rung."""
        return self.min_steps or -(-steps // self.reduction_factor**3)


class ASHA(Halving):
    """Asynchronous successive halving: 1 in `reduction_factor` trials continues at a rung.

    The first rung is at step `min_steps`, by default such that there are about three rungs.
    """

    name: Literal["asha"]


class Hyperband(Halving):
    """Successive halving in brackets; each begins one rung later than the previous bracket.

    A trial belongs to one bracket and competes within it.
    """

    name: Literal["hyperband"]


class SingleRung(Table):
    """The settings of a pruner with one rung, from which a share of the trials goes on."""

    name: str

    def continuing(self, *, branches: bool) -> Fraction:
        """Return the share that goes on, compared by values of `branches` or by raw ones."""
        return Fraction(1, 2)

    def rungs(
        self, steps: int, evaluate_every: int, warmup: int = 0, share: int = 3
    ) -> tuple[int, ...]:
        """Return the step at which a trial reports and may be pruned, if there is one.

        `warmup` is the longest that a trial of the study may have, in steps. The rung is at one
        part of the horizon in `share`, or later where a trial may be in its warm-up or has had
        fewer than three evaluations after its start.
        """
        rung = max(-(-steps // share), 3 * evaluate_every, warmup + 1)
        return (rung,) if rung < steps else ()


class HalvingOnce(SingleRung):
    """Stop the worse half of the trials at one rung, at a third of the horizon.

    The rung is later if a trial may be in its warm-up there, or has had fewer than three
    evaluations after its start; there is no rung if it would not be before the horizon.
    """

    name: Literal["halving"]


BY_BRANCH = {"safe": Fraction(1, 2), "balanced": Fraction(1, 3), "fast": Fraction(1, 6)}
BY_RAW_VALUE = {"safe": Fraction(3, 4), "balanced": Fraction(1, 2), "fast": Fraction(1, 3)}
"""Shares of the trials that one_rung continues; raw values mislead more, so that more go on."""


class OneRung(SingleRung):
    """Stop the worse trials at one rung, by where their schedules lead. The default.

    The rung is at a third of the horizon, and at half of it where raw values are compared. It is
    later if a trial may be in its warm-up there, or has had fewer than three evaluations after its
    start; there is no rung if it would not be before the horizon.

    - `economy`: "safe" continues the better half, "balanced" a third, "fast" a sixth; where raw
      values are compared, three quarters, a half, a third.
    """

    name: Literal["one_rung"]
    economy: Literal["safe", "balanced", "fast"] = "safe"

    def continuing(self, *, branches: bool) -> Fraction:
        """Return the share that goes on, compared by values of `branches` or by raw ones."""
        return (BY_BRANCH if branches else BY_RAW_VALUE)[self.economy]


class Comparing(Table):
    """The settings of a comparison with completed trials at the same step."""

    name: str
    startup_trials: Annotated[int, Field(ge=0)] = 5
    warmup_steps: Annotated[int, Field(ge=0)] = 0

    def rungs(self, steps: int, evaluate_every: int, warmup: int = 0) -> tuple[int, ...]:
        """Return the steps at which a trial reports and may be pruned."""
        first = max(evaluate_every, self.warmup_steps)
        return tuple(range(first, steps, evaluate_every))


class Median(Comparing):
    """Stop trials that are worse than the median of earlier trials at the same step."""

    name: Literal["median"]


class Percentile(Comparing):
    """Stop trials that are not among the best `percentile` of earlier ones at the same step.

    No trial is stopped if fewer than `min_trials` of them have reported.
    """

    name: Literal["percentile"]
    percentile: Annotated[float, Field(gt=0, lt=100)] = 25.0
    min_trials: Annotated[int, Field(ge=1)] = 1


class NoPruner(Table):
    """Every trial runs to the horizon, unless it diverges."""

    name: Literal["none"]

    def rungs(self, steps: int, evaluate_every: int, warmup: int = 0) -> tuple[int, ...]:
        """Return no steps: trials report at their end only."""
        return ()


AnyWrapped: TypeAlias = Annotated[
    ASHA | Hyperband | Median | Percentile | NoPruner, Field(discriminator="name")
]
WrappedName: TypeAlias = Literal["asha", "hyperband", "median", "percentile", "none"]


class Patient(Table):
    """Let another pruner decide once a trial has stopped improving.

    A trial has stopped improving if its last `patience` + 1 reports are all worse, by more than
    `min_delta`, than the best report before them. With `wraps = "none"` it is stopped then.
    """

    name: Literal["patient"]
    wraps: Annotated[
        AnyWrapped, BeforeValidator(as_choice, json_schema_input_type=WrappedName | AnyWrapped)
    ] = Median(name="median")
    patience: Annotated[int, Field(ge=0)] = 2
    min_delta: Annotated[float, Field(ge=0)] = 0.0

    def rungs(self, steps: int, evaluate_every: int, warmup: int = 0) -> tuple[int, ...]:
        """Return the steps at which a trial reports and may be pruned."""
        regular = range(evaluate_every, steps, evaluate_every)
        return tuple(sorted({*regular, *self.wraps.rungs(steps, evaluate_every)}))

    def first_stop(self, steps: int, evaluate_every: int) -> int:
        """Return the first step at which a trial may be pruned."""
        regular = [*range(evaluate_every, steps, evaluate_every), steps]
        patient: int = regular[min(self.patience + 1, len(regular) - 1)]
        wrapped: tuple[int, ...] = self.wraps.rungs(steps, evaluate_every)
        return max(patient, wrapped[0]) if wrapped else patient


class Branching(Table):
    """The settings of a judge that trains copies of trials."""

    name: str
    fraction: Annotated[float, Field(gt=0, le=1)]

    def branch_steps(self, step: int) -> int:
        """Return the steps of a trial's branch at a step."""
        return max(1, round(self.fraction * step))


class FastForward(Branching):
    """Judge a trial by a copy that runs the rest of its schedule in a few steps.

    These are the `fraction` of its steps so far.
    """

    name: Literal["fast_forward"]
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.2


class Average(Branching):
    """Judge a trial by a copy that continues for a few steps and averages its weights over them.

    These are the `fraction` of its steps so far.
    """

    name: Literal["average"]
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.1


class Raw(Table):
    """Judge a trial by its value at the rung, in the middle of its schedule."""

    name: Literal["raw"]


AnyJudge: TypeAlias = Annotated[FastForward | Average | Raw, Field(discriminator="name")]
JudgeName: TypeAlias = Literal["fast_forward", "average", "raw"]
Judge: TypeAlias = Annotated[
    AnyJudge, BeforeValidator(as_choice, json_schema_input_type=JudgeName | AnyJudge)
]

AnySampler: TypeAlias = Annotated[
    Auto | TPE | Random | Grid | GP | OptunaGP | QMC | CMAES | NSGA2 | Listed | Custom,
    Field(discriminator="name"),
]
AnyPruner: TypeAlias = Annotated[
    ASHA | Median | NoPruner | Percentile | Hyperband | Patient | HalvingOnce | OneRung,
    Field(discriminator="name"),
]
SamplerName: TypeAlias = Literal[
    "auto", "tpe", "random", "grid", "gp", "optuna_gp", "qmc", "cmaes", "nsga2", "listed"
]
PrunerName: TypeAlias = Literal[
    "asha", "median", "none", "percentile", "hyperband", "patient", "halving", "one_rung"
]
Sampler: TypeAlias = Annotated[
    AnySampler,
    BeforeValidator(_as_sampler, json_schema_input_type=SamplerName | FunctionName | AnySampler),
]
Pruner: TypeAlias = Annotated[
    AnyPruner, BeforeValidator(as_choice, json_schema_input_type=PrunerName | AnyPruner)
]
