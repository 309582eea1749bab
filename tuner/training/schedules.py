"""Schedules of the learning rate: pure functions from a step and a horizon to a multiplier.

Each function takes whole numbers or tensors that broadcast against each other (`step` [step] and
a whole `horizon`; or both [trial]) and gives float64 multipliers of the trial's rate, between 0
and 1, in the broadcast shape. A schedule is shaped by fractions of its horizon, so that a
shortened trial keeps its shape; where torch has the same schedule, it is equal to torch's.

All of them share a linear warm-up over w = round(warmup · horizon) steps, which leaves at least
one step: at step t < w the multiplier is (t + 1)/(w + 1) of the schedule's first one, which is
torch's `LinearLR(start_factor=1 / (w + 1), total_iters=w)`; then the schedule runs over the
horizon - w steps that are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from tuner.spec import ParameterValue

Number: TypeAlias = float | Tensor


def constant(step: Number, horizon: Number, *, warmup: Number = 0.0) -> Tensor:
    """Give the same multiplier, 1, at every step."""
    _, _, risen = _after_warmup(step, horizon, warmup)
    return risen


def step(
    step: Number, horizon: Number, *, gamma: Number, drops: Number, warmup: Number = 0.0
) -> Tensor:
    """Multiply by `gamma` at `drops` steps that part the horizon evenly (torch's `MultiStepLR`).

    The drops are counted in whole numbers: k of them have happened once step · (drops + 1) ≥
    k · horizon. A floor of a fraction of the horizon would be off by a whole drop at some horizons.
    """
    done, total, risen = _after_warmup(step, horizon, warmup)
    happened = (done * (_whole(drops) + 1)) // total
    return risen * _real(gamma) ** happened


def cosine(step: Number, horizon: Number, *, final: Number, warmup: Number = 0.0) -> Tensor:
    """Follow half a cosine from 1 to `final`, which would be reached at the horizon itself.

    Equal to torch's `CosineAnnealingLR(T_max=horizon, eta_min=final · lr)`: SGDR, equation 5
    (arXiv 1608.03983), without its restarts.
    """
    done, total, risen = _after_warmup(step, horizon, warmup)
    return risen * _anneal(1.0, _real(final), done.double() / total.double())


def one_cycle(
    step: Number,
    horizon: Number,
    *,
    pct_start: Number,
    div_factor: Number,
    final_div_factor: Number,
    warmup: Number = 0.0,
) -> Tensor:
    """Rise from 1/`div_factor` to 1, then fall to 1/(`div_factor` · `final_div_factor`).

    Equal to torch's two-phase `OneCycleLR(total_steps=horizon, anneal_strategy="cos")` relative to
    its `max_lr` (arXiv 1708.07120); the peak is at step pct_start · horizon - 1. Where that is
    step 0, torch divides by zero, and we begin at the peak. At horizon 1 the only step is the
    last one, and has the last multiplier.
    """
    done, total, risen = _after_warmup(step, horizon, warmup)
    at = done.double()
    peak = _real(pct_start) * total.double() - 1.0
    low = 1.0 / _real(div_factor)
    rising = _anneal(low, 1.0, torch.where(peak == 0.0, 1.0, at / peak))
    falling = _anneal(1.0, low / _real(final_div_factor), (at - peak) / (total - 1.0 - peak))
    return risen * torch.where(at <= peak, rising, falling)


SCHEDULES: Mapping[str, Callable[..., Tensor]] = {
    "constant": constant,
    "step": step,
    "cosine": cosine,
    "one_cycle": one_cycle,
}
"""Every schedule by its name in a study file; its keywords are the parameters of that name."""


def multipliers(params: Mapping[str, ParameterValue], horizon: int) -> Tensor:
    """Give a trial's multipliers, float64 [step], from its flat parameters.

    `params` has `schedule` and that schedule's own, as in {"schedule": "step", "step.gamma": 0.1,
    "step.drops": 3, "step.warmup": 0.0}; others are passed over.
    """
    name = str(params["schedule"])
    return SCHEDULES[name](torch.arange(horizon), horizon, **_own(params, name))


def warmup_steps(params: Mapping[str, ParameterValue], horizon: int) -> int:
    """Count a trial's steps before its rate is at its highest.

    They are the linear warm-up and, for one_cycle, the rising phase too.
    """
    name = str(params["schedule"])
    own = _own(params, name)
    steps = int(_warmup_length(horizon, float(own.get("warmup", 0.0))))
    if name == "one_cycle":
        steps += max(0, math.ceil(float(own["pct_start"]) * (horizon - steps) - 1))
    return steps


def _own(params: Mapping[str, ParameterValue], name: str) -> dict[str, ParameterValue]:
    """Pick the parameters of one schedule out of a trial's."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): value for key, value in params.items() if key.startswith(prefix)
    }


def _after_warmup(step: Number, horizon: Number, warmup: Number) -> tuple[Tensor, Tensor, Tensor]:
    """Give the steps done after the warm-up, all there are, and how far the warm-up has risen.

    During the warm-up, no step is done yet, so a schedule's own multiplier stays at its first.
    """
    at, total = _whole(step), _whole(horizon)
    length = _warmup_length(total, warmup)
    risen = torch.clamp((at + 1).double() / (length + 1).double(), max=1.0)
    return torch.clamp(at - length, min=0), total - length, risen


def _warmup_length(horizon: Number, warmup: Number) -> Tensor:
    """Round a fraction of the horizon to whole steps, and leave at least one."""
    total = _whole(horizon)
    return torch.minimum(torch.round(_real(warmup) * total.double()).long(), total - 1)


def _anneal(start: Number, end: Number, fraction: Tensor) -> Tensor:
    """Follow half a cosine from `start` to `end`."""
    return end + (start - end) * (torch.cos(math.pi * fraction) + 1.0) / 2.0


def _whole(number: Number) -> Tensor:
    return torch.as_tensor(number).long()


def _real(number: Number) -> Tensor:
    return torch.as_tensor(number, dtype=torch.float64)
