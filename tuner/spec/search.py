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


AnySampler: TypeAlias = Annotated[TPE | Random | Grid | Listed, Field(discriminator="name")]
AnyPruner: TypeAlias = Annotated[ASHA | Median | NoPruner, Field(discriminator="name")]
SamplerName: TypeAlias = Literal["tpe", "random", "grid", "listed"]
PrunerName: TypeAlias = Literal["asha", "median", "none"]
Sampler: TypeAlias = Annotated[
    AnySampler, BeforeValidator(as_choice, json_schema_input_type=SamplerName | AnySampler)
]
Pruner: TypeAlias = Annotated[
    AnyPruner, BeforeValidator(as_choice, json_schema_input_type=PrunerName | AnyPruner)
]
