"""Schedules of the learning rate: pure functions from a step and a horizon to a multiplier.

Each function takes integers or tensors that broadcast against each other (`step` [step] and a
scalar `horizon`; or both [trial]) and returns float64 multipliers of the trial's rate, between 0
and 1, in the broadcast shape. The shape of a schedule is given in fractions of its horizon, so a
shortened trial keeps it. Where torch has the same schedule, the values equal torch's.

All schedules share a linear warm-up over w = round(warmup · horizon) steps, which leaves at least
one step: at step t < w the multiplier is (t + 1)/(w + 1) times the schedule's first one, which is
torch's `LinearLR(start_factor=1 / (w + 1), total_iters=w)`. The schedule then runs over the
remaining horizon - w steps, which are the horizon in the formulas below.

The one schedule that depends on more than the step, plateau, is in `tuner.training.rate_source`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from tuner.config import ParameterValue, fractions, own

Number: TypeAlias = float | Tensor


def constant(step: Number, horizon: Number, *, warmup: Number = 0.0) -> Tensor:
    """Return 1 at every step."""
    _, _, risen = _after_warmup(step, horizon, warmup)
    return risen


def linear(step: Number, horizon: Number, *, final: Number, warmup: Number = 0.0) -> Tensor:
    """Decay linearly from 1 to `final`, which would be reached at the horizon itself.

    Equal to torch's `LinearLR(start_factor=1, end_factor=final, total_iters=horizon)`.
    """
    done, total, risen = _after_warmup(step, horizon, warmup)
    return risen * _above(final, 1.0 - _share(done, total))


def polynomial(
    step: Number, horizon: Number, *, power: Number, final: Number, warmup: Number = 0.0
) -> Tensor:
    """Decay to `final` with a power of the remaining share of the horizon.

    Equal to torch's `PolynomialLR(total_iters=horizon, power=power)` where `final` is 0.
    """
    done, total, risen = _after_warmup(step, horizon, warmup)
    return risen * _above(final, (1.0 - _share(done, total)) ** _real(power))


def exponential(step: Number, horizon: Number, *, final: Number, warmup: Number = 0.0) -> Tensor:
    """Decay by the same factor at every step, to `final` at the horizon itself.

    Equal to torch's `ExponentialLR(gamma=final ** (1 / horizon))`.
    """
    done, total, risen = _after_warmup(step, horizon, warmup)
    return risen * _real(final) ** _share(done, total)


def step(
    step: Number, horizon: Number, *, gamma: Number, drops: Number, warmup: Number = 0.0
) -> Tensor:
    """Multiply by `gamma` at `drops` evenly spaced steps (torch's `MultiStepLR`).

    Drops are counted in integers: k have happened once step · (drops + 1) ≥ k · horizon. The floor
    of a floating-point fraction would be off by one drop at some horizons.
    """
    done, total, risen = _after_warmup(step, horizon, warmup)
    happened = (done * (_whole(drops) + 1)) // total
    return risen * _real(gamma) ** happened


def multistep(
    step: Number, horizon: Number, *, milestones: str, gamma: Number, warmup: Number = 0.0
) -> Tensor:
    """Multiply by `gamma` at given fractions of the horizon (torch's `MultiStepLR`).

    A milestone is rounded to a step, but never to the first one.
    """
    done, total, risen = _after_warmup(step, horizon, warmup)
    shares = _real(fractions(milestones))  # [milestone]
    steps = torch.clamp(torch.round(shares * total.double()[..., None]), min=1.0)
    happened = (done[..., None] >= steps).sum(dim=-1)
    return risen * _real(gamma) ** happened


def cosine(step: Number, horizon: Number, *, final: Number, warmup: Number = 0.0) -> Tensor:
    """Decay along half a cosine from 1 to `final`, which would be reached at the horizon itself.

    Equal to torch's `CosineAnnealingLR(T_max=horizon, eta_min=final · lr)`: SGDR, equation 5
    (arXiv 1608.03983), without its restarts.
    """
    done, total, risen = _after_warmup(step, horizon, warmup)
    return risen * _anneal(1.0, _real(final), _share(done, total))


def cosine_restarts(
    step: Number,
    horizon: Number,
    *,
    cycles: Number,
    growth: Number,
    final: Number,
    warmup: Number = 0.0,
) -> Tensor:
    """Decay along half a cosine from 1 to `final` in `cycles` cycles, each `growth` times as long.

    Equal to torch's `CosineAnnealingWarmRestarts(T_0, T_mult=growth, eta_min=final · lr)` where
    T_0 = horizon / (1 + growth + ... + growth^(cycles - 1)) is an integer (SGDR, arXiv 1608.03983).
    Otherwise a cycle begins at the first step at or after its share of the horizon, counted in
    integers, and ends where the next one begins.
    """
    done, total, risen = _after_warmup(step, horizon, warmup)
    count, factor = _whole(cycles), _whole(growth)
    number = torch.arange(int(count.max()))  # [cycle]
    lengths = torch.where(number < count[..., None], factor[..., None] ** number, 0)
    whole = lengths.sum(dim=-1)  # in units of T_0, as are begin and length
    # a cycle is over once its end · horizon <= step · whole, in numbers below 2^63
    passed = (done * whole) // total
    begin, length = torch.zeros_like(passed), torch.ones_like(passed)
    for _ in range(len(number) - 1):
        over = begin + length <= passed
        begin = torch.where(over, begin + length, begin)
        length = torch.where(over, length * factor, length)
    first, last = _ceil(begin * total, whole), _ceil((begin + length) * total, whole)
    return risen * _anneal(1.0, _real(final), _share(done - first, last - first))


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
    its `max_lr` (arXiv 1708.07120); the peak is at step pct_start · horizon - 1. If that is
    step 0, torch divides by zero; here the schedule starts at the peak. At horizon 1 the only step
    is the last one, and has the last multiplier.
    """
    done, total, risen = _after_warmup(step, horizon, warmup)
    at = done.double()
    peak = _real(pct_start) * total.double() - 1.0
    low = 1.0 / _real(div_factor)
    rising = _anneal(low, 1.0, torch.where(peak == 0.0, 1.0, at / peak))
    falling = _anneal(1.0, low / _real(final_div_factor), (at - peak) / (total - 1.0 - peak))
    return risen * torch.where(at <= peak, rising, falling)


def cyclic(
    step: Number,
    horizon: Number,
    *,
    mode: str,
    cycles: Number,
    base: Number,
    final: Number,
    warmup: Number = 0.0,
) -> Tensor:
    """Rise linearly from `base` to 1 and fall back, in `cycles` cycles of equal length.

    The height above `base` changes by cycle or by step according to `mode` (see `HEIGHTS`). Equal
    to torch's `CyclicLR(base_lr=base · lr, max_lr=lr, step_size_up=s, mode=mode,
    gamma=final ** (1 / horizon))` where the horizon is 2 · s · cycles (arXiv 1506.01186). Otherwise
    cycles begin as in `cosine_restarts`; one of odd length falls for one step more than it rises,
    and one of a single step is at its top.
    """
    done, total, risen = _after_warmup(step, horizon, warmup)
    count = _whole(cycles)
    cycle = done * count // total
    first, last = _ceil(cycle * total, count), _ceil((cycle + 1) * total, count)
    at, length = done - first, last - first
    up = length // 2
    rising, falling = _share(at, up.clamp(min=1)), _share(length - at, length - up)
    way = torch.where(at < up, rising, falling)
    height = HEIGHTS[mode](cycle.double(), _share(done, total), _real(final))
    return risen * _above(base, way * height)


HEIGHTS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "triangular": lambda cycle, _share, _final: torch.ones_like(cycle),
    "triangular2": lambda cycle, _share, _final: 0.5**cycle,
    "exp_range": lambda _cycle, share, final: final**share,
}
"""The height of `cyclic` by mode, from the cycle's number, the elapsed share, and `final`."""


def inverse_sqrt(
    step: Number, horizon: Number, *, timescale: Number, warmup: Number = 0.0
) -> Tensor:
    """Decay as 1 / sqrt(1 + step / (timescale · horizon)).

    With w steps of warm-up and a timescale of w + 1 steps it is the transformer's schedule relative
    to its peak: min(s / (w + 1), sqrt((w + 1) / s)) at s = t + 1 (arXiv 1706.03762, equation 3).
    """
    done, total, risen = _after_warmup(step, horizon, warmup)
    return risen / torch.sqrt(1.0 + _share(done, total) / _real(timescale))


def wsd(
    step: Number, horizon: Number, *, decay: Number, shape: str, final: Number, warmup: Number = 0.0
) -> Tensor:
    """Stay at 1, then decay to `final` over the last round(decay · horizon) steps.

    Warm-up, stable, decay (MiniCPM, arXiv 2404.06395); the shapes of the decay are those of
    arXiv 2405.18392, and would reach `final` at the horizon itself.
    """
    done, total, risen = _after_warmup(step, horizon, warmup)
    length = torch.round(_real(decay) * total.double()).long().clamp(min=1)
    share = _share((done - (total - length)).clamp(min=0), length)
    return risen * _above(final, DECAYS[shape](share))


DECAYS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: _anneal(1.0, 0.0, share),
    "1-sqrt": lambda share: 1.0 - torch.sqrt(share),
}
"""The decay of `wsd` by shape, from the elapsed share of the decay to the remaining multiplier."""


SCHEDULES: Mapping[str, Callable[..., Tensor]] = {
    "constant": constant,
    "linear": linear,
    "polynomial": polynomial,
    "exponential": exponential,
    "step": step,
    "multistep": multistep,
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "one_cycle": one_cycle,
    "cyclic": cyclic,
    "inverse_sqrt": inverse_sqrt,
    "wsd": wsd,
}
"""Schedules by their names in study files; keywords are the names of their parameters."""


def multipliers(params: Mapping[str, ParameterValue], horizon: int) -> Tensor:
    """Return a trial's multipliers, float64 [step], from its flat parameters.

    `params` has `schedule` and that schedule's own, as in {"schedule": "step", "step.gamma": 0.1,
    "step.drops": 3, "step.warmup": 0.0}; others are ignored.
    """
    name = str(params["schedule"])
    return _multipliers(name, horizon, **own(params, name)).clone()


@functools.lru_cache(maxsize=8)  # most trials of a study have schedules of the same parameters
def _multipliers(name: str, horizon: int, **parameters: ParameterValue) -> Tensor:
    return SCHEDULES[name](torch.arange(horizon), horizon, **parameters)


def warmup_steps(params: Mapping[str, ParameterValue], horizon: int) -> int:
    """Return the number of a trial's steps before its rate first peaks.

    This includes the linear warm-up and, for one_cycle and cyclic, the first rise: until then
    every step is at a rate that the trial has not had before. Later rises repeat earlier rates.
    """
    return first_highest(multipliers(params, horizon))


def first_highest(multipliers: Tensor) -> int:  # multipliers: float64 [step]
    """Return the first step at which the rate peaks."""
    return int(multipliers.argmax())


def _after_warmup(step: Number, horizon: Number, warmup: Number) -> tuple[Tensor, Tensor, Tensor]:
    """Return steps since the warm-up, their total number, and the multiplier of the warm-up.

    During the warm-up the first is 0, so a schedule's own multiplier stays at its first value.
    """
    at, total = _whole(step), _whole(horizon)
    length = _warmup_length(total, warmup)
    risen = torch.clamp((at + 1).double() / (length + 1).double(), max=1.0)
    return torch.clamp(at - length, min=0), total - length, risen


def _warmup_length(horizon: Number, warmup: Number) -> Tensor:
    """Return a fraction of the horizon rounded to steps, leaving at least one step."""
    total = _whole(horizon)
    return torch.minimum(torch.round(_real(warmup) * total.double()).long(), total - 1)


def _anneal(start: Number, end: Number, fraction: Tensor) -> Tensor:
    """Interpolate along half a cosine from `start` to `end`."""
    return end + (start - end) * (torch.cos(math.pi * fraction) + 1.0) / 2.0


def _above(low: Number, height: Tensor) -> Tensor:
    """Interpolate linearly from `low` at height 0 to 1 at height 1."""
    return _real(low) + (1.0 - _real(low)) * height


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part.double() / whole.double()


def _ceil(part: Tensor, whole: Tensor) -> Tensor:
    """Divide integers, rounding up."""
    return -((-part) // whole)


def _whole(number: Number) -> Tensor:
    return torch.as_tensor(number).long()


def _real(number: Number | tuple[float, ...]) -> Tensor:
    return torch.as_tensor(number, dtype=torch.float64)
