"""Constructors of the optimizers of a study: torch's, and those that torch lacks.

torch's default for `foreach` is kept: its kernels are elementwise, hence bitwise reproducible.
`fused` is never used: its rounding differs between builds of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, optim
from torch.optim import Optimizer

from tuner.config import ParameterValue, own
from tuner.training.lion import Lion
from tuner.training.muon import Muon
from tuner.training.rate_free import DoG, Prodigy
from tuner.training.schedule_free import AveragingOptimizer, ScheduleFreeAdamW, ScheduleFreeSGD


def sgd(
    parameters: Iterable[Tensor], lr: float, *, momentum: float, nesterov: bool, weight_decay: float
) -> Optimizer:
    """Return torch's SGD."""
    # torch refuses Nesterov's momentum without momentum
    nesterov = nesterov and momentum > 0
    return optim.SGD(
        parameters, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )


def adam(
    parameters: Iterable[Tensor],
    lr: float,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Optimizer:
    """Return torch's Adam."""
    return optim.Adam(parameters, lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)


def adamw(
    parameters: Iterable[Tensor],
    lr: float,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Optimizer:
    """Return torch's AdamW."""
    return optim.AdamW(parameters, lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)


def nadam(
    parameters: Iterable[Tensor],
    lr: float,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    momentum_decay: float,
    decoupled_weight_decay: bool,
) -> Optimizer:
    """Return torch's NAdam."""
    return optim.NAdam(
        parameters,
        lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        momentum_decay=momentum_decay,
        decoupled_weight_decay=decoupled_weight_decay,
    )


def rmsprop(
    parameters: Iterable[Tensor],
    lr: float,
    *,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    centered: bool,
) -> Optimizer:
    """Return torch's RMSprop."""
    return optim.RMSprop(
        parameters,
        lr,
        alpha=alpha,
        eps=eps,
        weight_decay=weight_decay,
        momentum=momentum,
        centered=centered,
    )


def adagrad(
    parameters: Iterable[Tensor],
    lr: float,
    *,
    eps: float,
    weight_decay: float,
    initial_accumulator_value: float,
) -> Optimizer:
    """Return torch's Adagrad."""
    return optim.Adagrad(
        parameters,
        lr,
        eps=eps,
        weight_decay=weight_decay,
        initial_accumulator_value=initial_accumulator_value,
    )


def lion(
    parameters: Iterable[Tensor], lr: float, *, beta1: float, beta2: float, weight_decay: float
) -> Optimizer:
    """Return Lion."""
    return Lion(parameters, lr, betas=(beta1, beta2), weight_decay=weight_decay)


def muon(
    parameters: Iterable[Tensor],
    lr: float,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    adjust: Literal["match_rms_adamw", "original"],
) -> Optimizer:
    """Return Muon for matrices, with AdamW for other parameters."""
    return Muon(parameters, lr, momentum, nesterov, weight_decay, adjust)


def schedule_free_sgd(
    parameters: Iterable[Tensor], lr: float, *, momentum: float, weight_decay: float
) -> Optimizer:
    """Return schedule-free SGD."""
    return ScheduleFreeSGD(parameters, lr, momentum, weight_decay)


def schedule_free_adamw(
    parameters: Iterable[Tensor],
    lr: float,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> Optimizer:
    """Return schedule-free AdamW."""
    return ScheduleFreeAdamW(parameters, lr, (beta1, beta2), eps, weight_decay)


def prodigy(
    parameters: Iterable[Tensor],
    lr: float,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    d_coef: float,
    bias_correction: bool,
    safeguard_warmup: bool,
) -> Optimizer:
    """Return Prodigy."""
    return Prodigy(
        parameters,
        lr,
        (beta1, beta2),
        eps,
        weight_decay,
        d_coef,
        use_bias_correction=bias_correction,
        safeguard_warmup=safeguard_warmup,
    )


def dog(
    parameters: Iterable[Tensor], lr: float, *, reps_rel: float, weight_decay: float, gamma: float
) -> Optimizer:
    """Return DoG."""
    return DoG(parameters, lr, reps_rel, weight_decay, gamma)


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "nadam": nadam,
    "rmsprop": rmsprop,
    "adagrad": adagrad,
    "lion": lion,
    "muon": muon,
    "schedule_free_sgd": schedule_free_sgd,
    "schedule_free_adamw": schedule_free_adamw,
    "prodigy": prodigy,
    "dog": dog,
}
"""Optimizers by their names in study files; keywords are the names of their parameters."""


def make(
    params: Mapping[str, ParameterValue], parameters: Iterable[Tensor] | Iterable[dict[str, Any]]
) -> Optimizer:
    """Return the optimizer of a trial from its flat parameters.

    `params` has `lr`, `optimizer`, and that optimizer's own, as in {"lr": 0.1, "optimizer": "sgd",
    "sgd.momentum": 0.9, "sgd.nesterov": False, "sgd.weight_decay": 0.0}; others are ignored.
    """
    name = str(params["optimizer"])
    return OPTIMIZERS[name](parameters, float(params["lr"]), **own(params, name))


def averages(optimizer: Optimizer, parameters: Sequence[Tensor]) -> list[Tensor] | None:
    """Return the averages of parameters that an optimizer keeps, or None if it keeps none."""
    if not isinstance(optimizer, AveragingOptimizer):
        return None
    groups = {one: group for group in optimizer.param_groups for one in group["params"]}
    kept = [optimizer.average_of(one, groups[one]) for one in parameters]
    return [
        own.detach() if average is None else average
        for own, average in zip(parameters, kept, strict=True)
    ]


def restore(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a state dict exactly.

    `load_state_dict` casts tensors to the parameter's dtype, also those that had another: NAdam
    keeps its product of momenta in single precision. Undo those casts.
    """
    optimizer.load_state_dict(state)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, saved in state["state"].items():
        loaded = optimizer.state[parameters[index]]
        for key, value in saved.items():
            if isinstance(value, Tensor) and value.dtype != loaded[key].dtype:
                loaded[key] = value.to(loaded[key].device)
