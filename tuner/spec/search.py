"""Samplers and pruners, by name with their options."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import (
    BeforeValidator,
    Field,
)

from tuner.spec.values import (
    LIST,
    ParameterValue,
    Table,
    as_choice,
)


class TPE(Table):
    """Tree-structured Parzen estimator; the first `startup_trials` are drawn at random."""

    name: Literal["tpe"]
    startup_trials: Annotated[int, Field(ge=1)] = 10


class Random(Table):
    """Independent draws from the whole space."""

    name: Literal["random"]


class GP(Table):
    """A Gaussian process; the next trial is where the most improvement is expected.

    The first `startup_trials` are drawn at random.
    """

    name: Literal["gp"]
    startup_trials: Annotated[int, Field(ge=1)] = 10


class QMC(Table):
    """The points of a low-discrepancy sequence: random draws that leave no gaps."""

    name: Literal["qmc"]
    sequence: Literal["sobol", "halton"] = "sobol"
    scramble: bool = True


class CMAES(Table):
    """An evolution strategy on the ranges: each generation of `population` trials moves it.

    The first `startup_trials` are drawn at random, and so is what is no range.
    """

    name: Literal["cmaes"]
    startup_trials: Annotated[int, Field(ge=1)] = 1
    population: Annotated[int, Field(ge=4)] | None = None


class Grid(Table):
    """Every combination of the space's lists, once, in the order of the study file."""

    name: Literal["grid"]


class Listed(Table):
    """The listed combinations of parameters, each once a round; a round has a seed of its own.

    So trials of one round differ by their parameters alone and can be compared in pairs.
    """

    name: Literal["listed"]
    params: Annotated[tuple[dict[str, ParameterValue], ...], *LIST]

    def combination(self, number: int) -> dict[str, ParameterValue]:
        """Give the complete parameters of a trial."""
        return dict(self.params[number % len(self.params)])

    def round(self, number: int) -> int:
        """Give the round that a trial belongs to."""
        return number // len(self.params)


class Halving(Table):
    """What successive halving needs: its lowest rung and how many go on from a rung."""

    name: str
    min_steps: Annotated[int, Field(ge=1)] | None = None
    reduction_factor: Annotated[int, Field(ge=2)] = 3

    def rungs(self, steps: int, evaluate_every: int, warmup: int = 0) -> tuple[int, ...]:
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


class ASHA(Halving):
    """Asynchronous successive halving: of the trials at a rung, 1 in `reduction_factor` goes on.

    The first rung is at step `min_steps` (by default such that there are three or so).
    """

    name: Literal["asha"]


class Hyperband(Halving):
    """Successive halving in brackets, each of which begins a rung later than the one before.

    A trial belongs to one bracket and competes there alone.
    """

    name: Literal["hyperband"]


class OneRung(Table):
    """Stop the worse half of the trials at one rung, at a third of the horizon.

    The rung is later where a trial could be within its warm-up there, or would have had fewer than
    three evaluations after its beginning; where it would be no earlier than the horizon, there is
    none. The default.
    """

    name: Literal["halving"]

    def rungs(self, steps: int, evaluate_every: int, warmup: int = 0) -> tuple[int, ...]:
        """Return the step at which a trial reports and may be pruned, if there is one.

        `warmup` is the longest that a trial of the study may have, in steps.
        """
        rung = max(-(-steps // 3), 3 * evaluate_every, warmup + 1)
        return (rung,) if rung < steps else ()


class Comparing(Table):
    """What a comparison with the completed trials at the same step needs."""

    name: str
    startup_trials: Annotated[int, Field(ge=0)] = 5
    warmup_steps: Annotated[int, Field(ge=0)] = 0

    def rungs(self, steps: int, evaluate_every: int, warmup: int = 0) -> tuple[int, ...]:
        """Give the steps at which a trial reports and may be pruned."""
        first = max(evaluate_every, self.warmup_steps)
        return tuple(range(first, steps, evaluate_every))


class Median(Comparing):
    """Stop what is worse than the median of the earlier trials at the same step."""

    name: Literal["median"]


class Percentile(Comparing):
    """Stop what is not among the best `percentile` of the earlier trials at the same step.

    Nothing is stopped where fewer than `min_trials` of them have reported.
    """

    name: Literal["percentile"]
    percentile: Annotated[float, Field(gt=0, lt=100)] = 25.0
    min_trials: Annotated[int, Field(ge=1)] = 1


class NoPruner(Table):
    """Every trial runs to the horizon, unless it diverges."""

    name: Literal["none"]

    def rungs(self, steps: int, evaluate_every: int, warmup: int = 0) -> tuple[int, ...]:
        """Give no steps: nothing is reported before the end."""
        return ()


AnyWrapped: TypeAlias = Annotated[
    ASHA | Hyperband | Median | Percentile | NoPruner, Field(discriminator="name")
]
WrappedName: TypeAlias = Literal["asha", "hyperband", "median", "percentile", "none"]


class Patient(Table):
    """Let a trial go on while it improves, and another pruner decide once it no longer does.

    That is when its last `patience` + 1 reports are all worse, by more than `min_delta`, than its
    best one before them. Where it wraps none, such a trial is stopped.
    """

    name: Literal["patient"]
    wraps: Annotated[
        AnyWrapped, BeforeValidator(as_choice, json_schema_input_type=WrappedName | AnyWrapped)
    ] = Median(name="median")
    patience: Annotated[int, Field(ge=0)] = 2
    min_delta: Annotated[float, Field(ge=0)] = 0.0

    def rungs(self, steps: int, evaluate_every: int, warmup: int = 0) -> tuple[int, ...]:
        """Give the steps at which a trial reports and may be pruned."""
        regular = range(evaluate_every, steps, evaluate_every)
        return tuple(sorted({*regular, *self.wraps.rungs(steps, evaluate_every)}))

    def first_stop(self, steps: int, evaluate_every: int) -> int:
        """Return the first step at which a trial may be pruned."""
        regular = [*range(evaluate_every, steps, evaluate_every), steps]
        patient = regular[min(self.patience + 1, len(regular) - 1)]
        wrapped: tuple[int, ...] = self.wraps.rungs(steps, evaluate_every)
        first: int = max([patient, *wrapped[:1]])
        return first


AnySampler: TypeAlias = Annotated[
    TPE | Random | Grid | GP | QMC | CMAES | Listed, Field(discriminator="name")
]
AnyPruner: TypeAlias = Annotated[
    ASHA | Median | NoPruner | Percentile | Hyperband | Patient | OneRung,
    Field(discriminator="name"),
]
SamplerName: TypeAlias = Literal["tpe", "random", "grid", "gp", "qmc", "cmaes", "listed"]
PrunerName: TypeAlias = Literal[
    "asha", "median", "none", "percentile", "hyperband", "patient", "halving"
]
Sampler: TypeAlias = Annotated[
    AnySampler, BeforeValidator(as_choice, json_schema_input_type=SamplerName | AnySampler)
]
Pruner: TypeAlias = Annotated[
    AnyPruner, BeforeValidator(as_choice, json_schema_input_type=PrunerName | AnyPruner)
]
