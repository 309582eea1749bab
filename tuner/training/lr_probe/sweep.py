"""The usual learning-rate finder, for comparison: one run whose rate rises as it goes.

The test is Smith's ("Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3), in
the form that fastai made common: the rate rises evenly on a log scale, losses are smoothed, and the
run ends where the smoothed loss is `LOST` times its lowest. It says where the loss falls fastest as
the rate rises, which depends on how fast it rises, and it has no answer to what is stable: see
`tuner.training.lr_probe.probe` for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from tuner.training.lr_probe.untouched import untouched

SMOOTHING, LOST = 0.98, 4.0
"""fastai's (`Recorder`'s beta, and what `LRFinder` takes for diverged), see fastai's
callback/schedule.py. A loss that begins below zero is lost at once by that rule."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What one rising run showed."""

    rates: np.ndarray  # float64 [step]
    losses: np.ndarray  # float64 [step], as measured; the last one may be anything
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
    """Raise the rate from `low` to `high`; `loss` gives the loss of a step's batch.

    Model, optimiser and random states are the same to the bit afterwards.
    """
    rates, losses, smoothed = [], [], []
    average = 0.0
    with untouched(model, optimizer):
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
    """Leave the first and last points out, and what is not finite; rates and smoothed losses."""
    end = len(swept.rates) - last
    rates, losses = swept.rates[first:end], swept.smoothed[first:end]
    finite = np.isfinite(losses)
    return rates[finite], losses[finite]


def valley(swept: Sweep) -> float | None:
    """Suggest half way through the longest falling subsequence of losses: fastai's `valley`.

    fastai leaves out the first tenth of the steps and the last five; None where nothing is left.
    The rule is ESRI's: the subsequence with the most losses, each below the one before; of as many,
    the first that gets there. fastai takes the point after a third and a sixth of it.
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
    """Suggest where the loss falls most steeply in the rate's logarithm: fastai's `steep`."""
    rates, losses = trimmed(swept, len(swept.rates) // 10, 5)
    if len(rates) < 2:
        return None
    return float(rates[int(np.argmin(np.diff(losses) / np.diff(np.log(rates))))])
