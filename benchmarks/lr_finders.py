"""Learning-rate finders to compare the probe with, and curves by rate of any model and optimizer.

`sweep` is Smith's range test ("Cyclical Learning Rates for Training Neural Networks", 2017, section
3.3) in the form of fastai: the rate rises evenly on a log scale, losses are smoothed, and the run
ends once the smoothed loss exceeds `LOST` times its lowest. It shows where the loss falls fastest
while the rate rises, which depends on how fast it rises, and says nothing about stability.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tuner.training import random_state
from tuner.training.lr_probe.curves_by_rate import MeasureCurves
from tuner.training.lr_probe.stability import Curves

SMOOTHING, LOST = 0.98, 4.0
"""fastai's values (`Recorder`'s beta, and `LRFinder`'s limit), from its callback/schedule.py. By
that rule a run whose loss is negative at first ends at once."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A run with a rising rate."""

    rates: np.ndarray  # float64 [step]
    losses: np.ndarray  # float64 [step], as measured; the last may be non-finite
    smoothed: np.ndarray  # float64 [step]


def sweep(
    model: nn.Module,
    optimizer: Optimizer,
    loss: Callable[[int], Tensor],
    *,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    smoothing: float = SMOOTHING,
    lost: float = LOST,
) -> Sweep:
    """Train with a rate rising from `low` to `high`; `loss` returns the loss of a step's batch.

    Model, optimizer and random states are bitwise unchanged afterwards.
    """
    rates, losses, smoothed = [], [], []
    average = 0.0
    with preserved_state(model, optimizer):
        for step in range(steps):
            rate = low * (high / low) ** (step / (steps - 1))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            value = loss(step)
            number = value.item()
            average = smoothing * average + (1 - smoothing) * number
            rates.append(rate)
            losses.append(number)
            smoothed.append(average / (1 - smoothing ** (step + 1)))
            if not math.isfinite(smoothed[-1]) or smoothed[-1] > lost * min(smoothed):
                break
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return Sweep(rates=np.array(rates), losses=np.array(losses), smoothed=np.array(smoothed))


def trimmed(swept: Sweep, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rates and smoothed losses without the first and last points and non-finite values."""
    end = len(swept.rates) - last
    rates, losses = swept.rates[first:end], swept.smoothed[first:end]
    finite = np.isfinite(losses)
    return rates[finite], losses[finite]


def valley(swept: Sweep) -> float | None:
    """Return fastai's `valley`: half way through the longest decreasing subsequence of losses.

    fastai leaves out the first tenth of the steps and the last five; None if nothing is left. Of
    subsequences of equal length, the first to end counts (ESRI's rule). fastai takes the point
    after a third and a sixth of it.
    """
    rates, losses = trimmed(swept, len(swept.rates) // 10, 5)
    if not len(rates):
        return None
    lengths = np.ones(len(losses), dtype=int)
    for index in range(1, len(losses)):
        above = lengths[:index][losses[:index] > losses[index]]
        lengths[index] = 1 + above.max(initial=0)
    end = int(lengths.argmax())
    length = int(lengths[end]) if lengths[end] > 1 else 0
    third = length / 3
    return float(rates[end - length + int(third) + int(third / 2)])


def steep(swept: Sweep) -> float | None:
    """Return fastai's `steep`: where the loss falls fastest per logarithm of the rate."""
    rates, losses = trimmed(swept, len(swept.rates) // 10, 5)
    if len(rates) < 2:
        return None
    return float(rates[int(np.argmin(np.diff(losses) / np.diff(np.log(rates))))])


# --- curves by rate


def curves_of_model(
    model: nn.Module, optimizer: Optimizer, loss: Callable[[int], Tensor], steps: int
) -> MeasureCurves:
    """Return a function that trains a model with its optimizer for `steps` steps at each rate.

    `loss` returns the loss of a step's batch at the model's current parameters. Model, optimizer
    and random states are bitwise unchanged after each call.
    """

    def curve(rate: float) -> tuple[list[float], list[float]]:
        losses, norms = [], []
        with preserved_state(model, optimizer):
            for group in optimizer.param_groups:
                group["lr"] = rate
            for step in range(steps):
                optimizer.zero_grad()
                value = loss(step)
                value.backward()  # type: ignore[no-untyped-call]
                gradients = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
                losses.append(value.item())
                norms.append(torch.cat(gradients).norm().item())
                optimizer.step()
        return losses, norms

    def measure(todo: Mapping[str, Sequence[float]]) -> Mapping[str, Curves]:
        found = {}
        for name, rates in todo.items():
            still, *rows = [curve(rate) for rate in (0.0, *rates)]
            found[name] = Curves(
                rates=np.array(rates),
                losses=np.array([losses for losses, _ in rows]),
                norms=np.array([norms for _, norms in rows]),
                baseline_losses=np.array(still[0]),
            )
        return found

    return measure


# --- restoring state


@contextmanager
def preserved_state(model: nn.Module, optimizer: Optimizer | None = None) -> Iterator[None]:
    """Restore parameters, buffers, gradients, modes, optimizer and random states on exit, bitwise.

    Tensors keep their identity. The random states are those of Python, numpy and torch, on the CPU
    and every CUDA device.
    """
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = {module: module.training for module in model.modules()}
    saved = None if optimizer is None else _state(optimizer)
    kinds = {"cpu": None, random_state.NUMPY: None, random_state.PYTHON: None}
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    random_states = random_state.get_states(
        kinds | {f"cuda:{index}": None for index in range(devices)}
    )
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        for module, training in modes.items():
            module.training = training
        if optimizer is not None and saved is not None:
            _restore(optimizer, saved)
        random_state.set_states(random_states)


State = tuple[dict[Any, dict[str, Any]], list[dict[str, Any]]]


def _state(optimizer: Optimizer) -> State:
    """Return copies of an optimizer's state and settings; parameters are not copied."""
    state = {parameter: copy.deepcopy(own) for parameter, own in optimizer.state.items()}
    groups = [
        {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    return state, groups


def _restore(optimizer: Optimizer, saved: State) -> None:
    """Restore state and settings; unlike `load_state_dict`, without casting to another dtype."""
    state, groups = saved
    optimizer.state.clear()
    optimizer.state.update(state)
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        for key in group.keys() - settings.keys() - {"params"}:
            del group[key]
        group.update(settings)
