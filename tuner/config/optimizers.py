"""The optimizers of a search space, by name with their parameters.

Names and defaults are those of PyTorch, or of the authors for what it lacks, except that `betas`
are two parameters. `docs/catalogue.md` describes each one; `tuner.training.optimizers` creates it,
under the same name.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from tuner.config.choice import Choice
from tuner.config.values import Flag, Range, Real, Within, Word, mistake, mistakes, options


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


class Adam(Choice):
    """Adam; its weight decay is added to the gradient, as an L2 penalty is."""

    name: Literal["adam"]
    beta1: Annotated[Real, Within(ge=0, lt=1)] = 0.9
    beta2: Annotated[Real, Within(ge=0, lt=1)] = 0.999
    eps: Annotated[Real, Within(gt=0, log=True)] = 1e-8
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.0


class AdamW(Choice):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"]
    beta1: Annotated[Real, Within(ge=0, lt=1)] = 0.9
    beta2: Annotated[Real, Within(ge=0, lt=1)] = 0.999
    eps: Annotated[Real, Within(gt=0, log=True)] = 1e-8
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.01


class NAdam(Choice):
    """Adam with Nesterov momentum; with decoupled weight decay it is NAdamW."""

    name: Literal["nadam"]
    beta1: Annotated[Real, Within(ge=0, lt=1)] = 0.9
    beta2: Annotated[Real, Within(ge=0, lt=1)] = 0.999
    eps: Annotated[Real, Within(gt=0, log=True)] = 1e-8
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.0
    momentum_decay: Annotated[Real, Within(ge=0, log=True)] = 4e-3
    decoupled_weight_decay: Flag = False


class RMSprop(Choice):
    """The gradient divided by its running root mean square."""

    name: Literal["rmsprop"]
    alpha: Annotated[Real, Within(ge=0, lt=1)] = 0.99
    eps: Annotated[Real, Within(gt=0, log=True)] = 1e-8
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.0
    momentum: Annotated[Real, Within(ge=0, lt=1)] = 0.0
    centered: Flag = False


class Adagrad(Choice):
    """The gradient divided by the root of the sum of its squares so far.

    PyTorch's `lr_decay` is not a parameter: the schedule sets the rate, and the recorded rate must
    be the rate that was used.
    """

    name: Literal["adagrad"]
    eps: Annotated[Real, Within(gt=0, log=True)] = 1e-10
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.0
    initial_accumulator_value: Annotated[Real, Within(ge=0, log=True)] = 0.0


class Lion(Choice):
    """The sign of an interpolation of momentum and gradient, with decoupled weight decay."""

    name: Literal["lion"]
    beta1: Annotated[Real, Within(ge=0, lt=1)] = 0.9
    beta2: Annotated[Real, Within(ge=0, lt=1)] = 0.99
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.0


class Muon(Choice):
    """Orthogonalized momentum for matrices, and AdamW for other parameters, at one rate."""

    name: Literal["muon"]
    momentum: Annotated[Real, Within(ge=0, lt=1)] = 0.95
    nesterov: Flag = True
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.1
    adjust: Word[Literal["match_rms_adamw", "original"]] = "match_rms_adamw"


class ScheduleFreeSGD(Choice):
    """SGD that averages its weights instead of decaying the rate."""

    name: Literal["schedule_free_sgd"]
    momentum: Annotated[Real, Within(gt=0, lt=1)] = 0.9
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.0


class ScheduleFreeAdamW(Choice):
    """AdamW that averages its weights instead of decaying the rate."""

    name: Literal["schedule_free_adamw"]
    beta1: Annotated[Real, Within(gt=0, lt=1)] = 0.9
    beta2: Annotated[Real, Within(ge=0, lt=1)] = 0.999
    eps: Annotated[Real, Within(gt=0, log=True)] = 1e-8
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.0


class Prodigy(Choice):
    """Adam that estimates its rate; the study's rate is a factor, usually 1."""

    name: Literal["prodigy"]
    beta1: Annotated[Real, Within(ge=0, lt=1)] = 0.9
    beta2: Annotated[Real, Within(gt=0, lt=1)] = 0.999
    eps: Annotated[Real, Within(gt=0, log=True)] = 1e-8
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.0
    d_coef: Annotated[Real, Within(gt=0, log=True)] = 1.0
    bias_correction: Flag = False
    safeguard_warmup: Flag = False


class DoG(Choice):
    """SGD that estimates its rate and averages its weights; the study's rate is a factor."""

    name: Literal["dog"]
    reps_rel: Annotated[Real, Within(gt=0, log=True)] = 1e-6
    weight_decay: Annotated[Real, Within(ge=0, log=True)] = 0.0
    gamma: Annotated[Real, Within(ge=0)] = 8.0


NEED_NO_RATE = frozenset({"prodigy", "dog"})
"""Optimizers that estimate their rate; the study's rate is a factor, usually 1."""
NEED_NO_SCHEDULE = frozenset({"schedule_free_sgd", "schedule_free_adamw", *NEED_NO_RATE})
"""Optimizers that are made for a constant rate."""

OptimizerChoice: TypeAlias = Annotated[
    SGD
    | Adam
    | AdamW
    | NAdam
    | RMSprop
    | Adagrad
    | Lion
    | Muon
    | ScheduleFreeSGD
    | ScheduleFreeAdamW
    | Prodigy
    | DoG,
    Field(discriminator="name"),
]
OptimizerName: TypeAlias = Literal[
    "sgd",
    "adam",
    "adamw",
    "nadam",
    "rmsprop",
    "adagrad",
    "lion",
    "muon",
    "schedule_free_sgd",
    "schedule_free_adamw",
    "prodigy",
    "dog",
]
