"""The schedules of a search space, by name with their parameters.

`docs/catalogue.md` has formulas and sources; `tuner.training.schedules` computes each schedule,
under the same name and with the same parameters.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from tuner.config.choice import Choice
from tuner.config.values import (
    Fractions,
    Range,
    Real,
    Whole,
    Within,
    Word,
    bounds,
    mistake,
    mistakes,
    options,
)


class Schedule(Choice):
    """A schedule of the learning rate; `warmup` is a fraction of the horizon."""

    warmup: Annotated[Real, Within(ge=0, lt=1)] = 0.0

    def longest_rise(self) -> float:
        """Return the largest fraction of the horizon before the rate has its maximum."""
        warmup = bounds(self.warmup)[1]
        return warmup + (1 - warmup) * self._longest_rise_after_warmup()

    def _longest_rise_after_warmup(self) -> float:
        return 0.0


class Constant(Schedule):
    """The same rate at every step."""

    name: Literal["constant"]


class Linear(Schedule):
    """A straight line from the rate down to `final` times the rate."""

    name: Literal["linear"]
    final: Annotated[Real, Within(ge=0, le=1)] = 0.0


class Polynomial(Schedule):
    """Down to `final` times the rate by a power of the fraction of the horizon that is left."""

    name: Literal["polynomial"]
    power: Annotated[Real, Within(gt=0)] = 2.0
    final: Annotated[Real, Within(ge=0, le=1)] = 0.0


class Exponential(Schedule):
    """By the same factor at every step, down to `final` times the rate."""

    name: Literal["exponential"]
    final: Annotated[Real, Within(gt=0, le=1, log=True)] = 0.01


class Step(Schedule):
    """The rate is multiplied by `gamma` at `drops` evenly spaced steps."""

    name: Literal["step"]
    gamma: Annotated[Real, Within(gt=0, le=1, log=True)] = 0.1
    drops: Annotated[Whole, Within(ge=1)] = 3


class MultiStep(Schedule):
    """The rate is multiplied by `gamma` at `milestones`, fractions of the horizon."""

    name: Literal["multistep"]
    milestones: Fractions = "0.5,0.75"
    gamma: Annotated[Real, Within(gt=0, le=1, log=True)] = 0.1


class Cosine(Schedule):
    """Half a cosine from the rate down to `final` times the rate."""

    name: Literal["cosine"]
    final: Annotated[Real, Within(ge=0, le=1)] = 0.0


class CosineRestarts(Schedule):
    """Half a cosine, `cycles` times, each `growth` times as long as the previous one (SGDR).

    The bounds keep the sum of the lengths of all cycles within 64 bits.
    """

    name: Literal["cosine_restarts"]
    cycles: Annotated[Whole, Within(ge=1, le=20)] = 3
    growth: Annotated[Whole, Within(ge=1, le=4)] = 2
    final: Annotated[Real, Within(ge=0, le=1)] = 0.0


class OneCycle(Schedule):
    """Up from rate/`div_factor` for `pct_start` of the horizon, then down (torch's OneCycleLR)."""

    name: Literal["one_cycle"]
    pct_start: Annotated[Real, Within(gt=0, lt=1)] = 0.3
    div_factor: Annotated[Real, Within(ge=1, log=True)] = 25.0
    final_div_factor: Annotated[Real, Within(ge=1, log=True)] = 1e4

    def _longest_rise_after_warmup(self) -> float:
        return bounds(self.pct_start)[1]


class Cyclic(Schedule):
    """Up from `base` times the rate and down again, `cycles` times (torch's CyclicLR).

    The height is constant (triangular), halves with each cycle (triangular2), or decays
    exponentially to `final` times the height at the horizon (exp_range, which alone uses it).
    """

    name: Literal["cyclic"]
    mode: Word[Literal["triangular", "triangular2", "exp_range"]] = "triangular"
    cycles: Annotated[Whole, Within(ge=1, le=1_000_000)] = 4
    base: Annotated[Real, Within(ge=0, lt=1)] = 0.25
    final: Annotated[Real, Within(gt=0, le=1, log=True)] = 0.1

    def _longest_rise_after_warmup(self) -> float:
        return 0.5 / bounds(self.cycles)[0]

    @model_validator(mode="after")
    def _final_is_used(self) -> Cyclic:
        varies = isinstance(self.final, Range | tuple)
        if varies and "exp_range" not in options(self.mode):
            error = mistake('one number, or the mode "exp_range", which alone uses it', "several")
            mistakes("Cyclic", {("final",): error})
        return self


class InverseSqrt(Schedule):
    """The inverse square root of the steps, in units of `timescale` of the horizon."""

    name: Literal["inverse_sqrt"]
    timescale: Annotated[Real, Within(gt=0, log=True)] = 0.1


class WSD(Schedule):
    """Warm-up, stable, decay: the rate is constant until the last `decay` of the horizon."""

    name: Literal["wsd"]
    decay: Annotated[Real, Within(gt=0, le=1)] = 0.2
    shape: Word[Literal["linear", "cosine", "1-sqrt"]] = "1-sqrt"
    final: Annotated[Real, Within(ge=0, le=1)] = 0.0


class Plateau(Schedule):
    """The rate is multiplied by `factor` after more than `patience` evaluations without progress.

    Progress is an improvement by more than `threshold` of the best value. The rate never falls
    below `floor` times the initial rate. The only schedule with state: it depends on the study's
    metric at evaluations.
    """

    name: Literal["plateau"]
    factor: Annotated[Real, Within(gt=0, lt=1, log=True)] = 0.1
    patience: Annotated[Whole, Within(ge=0)] = 2
    threshold: Annotated[Real, Within(ge=0, lt=1, log=True)] = 1e-4
    floor: Annotated[Real, Within(ge=0, le=1, log=True)] = 0.0


ScheduleChoice: TypeAlias = Annotated[
    Constant
    | Linear
    | Polynomial
    | Exponential
    | Step
    | MultiStep
    | Cosine
    | CosineRestarts
    | OneCycle
    | Cyclic
    | InverseSqrt
    | WSD
    | Plateau,
    Field(discriminator="name"),
]
ScheduleName: TypeAlias = Literal[
    "constant",
    "linear",
    "polynomial",
    "exponential",
    "step",
    "multistep",
    "cosine",
    "cosine_restarts",
    "one_cycle",
    "cyclic",
    "inverse_sqrt",
    "wsd",
    "plateau",
]
