"""sin x: many equally good minima, a negative loss, and rates that leave a basin.

What it teaches. Near a minimum (-π/2, 3π/2, ...) the curvature is 1, so gradient descent settles
there for rates below 2 and for none above. Above, it does not explode either: the slope is at most
1, so no step is longer than the rate, and the loss stays between -1 and 1. A rate that is too high
shows as a curve that never settles, which no rule about exploding losses can detect. A rate above 2
that decays later jumps over maxima first, and settles in the basin where it is when the rate falls
below 2; which one that is depends on every detail. In larger problems, too, high rates early in
training decide where it ends.

The loss is mostly negative, so its logarithm does not exist.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tuner.training.workloads import Workload, digest_of

from .quadratic import Point, where


def wave(start: float = 1.0) -> Workload:
    """Minimize sin x from `start`, whatever the seed; `x` is recorded as a metric."""
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
    """Return the mean of sin x; there are no targets."""
    return outputs.sin().mean()
