"""sin x: many minima that are equally good, a loss below zero, and rates that leave a basin.

What it teaches. Near a minimum (-π/2, 3π/2, ...) the curvature is 1, so gradient descent settles
there for rates below 2 and for none above. Above, it does not explode either: the slope is never
more than 1, so no step is longer than the rate, and the loss stays between -1 and 1 for ever. A
rate too high shows as a curve that never settles, which no rule about exploding losses can catch.
And a rate above 2 that decays later is another thing again: it hops over a maximum first and
settles in the basin where it happens to be when the rate falls below 2. Which one that is depends
on everything. In larger problems, too, where training ends is decided early, by high rates.

The loss is negative most of the way: nothing here may take its logarithm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tuner.training.workloads import Workload, digest_of

from .quadratic import Point, where


def wave(start: float = 1.0) -> Workload:
    """Descend sin x from `start`, whatever the seed; `x` is recorded as a metric."""
    nothing = torch.zeros(1, 1, dtype=torch.float64)  # [row, 1], since the function has no data
    return Workload(
        model=lambda _seed, dtype: Point(start, dtype),
        train_inputs=nothing,
        train_targets=nothing,
        validation_inputs=nothing,
        validation_targets=nothing,
        loss=sine,
        metrics={"x": where},
        data_name="no data: sin x",
        data_digest=digest_of(nothing),
    )


def sine(outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001
    """Give the mean of sin x; there is nothing to compare it with."""
    return outputs.sin().mean()
