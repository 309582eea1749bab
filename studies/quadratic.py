"""(x - 2)² from x = 0: one parameter, and all results are known exactly.

What it teaches. The slope is 2(x - 2), so a step of gradient descent multiplies the distance to
the minimum by 1 - 2·lr, whatever the distance. That factor determines everything: between 0 and 1
(lr below 0.5) x approaches from one side; at 0 (lr 0.5) it arrives after one step; between -1 and 0
it jumps across at every step and still converges; at -1 (lr 1) it jumps between 0 and 4 for ever;
beyond, each jump is longer than the last. Larger problems combine many of these, one for each
direction of curvature, with one rate for all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tuner.training.workloads import Workload, digest_of

MINIMUM = 2.0


def parabola(start: float = 0.0) -> Workload:
    """Minimize (x - 2)² from `start`, whatever the seed; `x` is recorded as a metric."""
    nothing = torch.zeros(1, 1, dtype=torch.float64)  # [row, 1], since the function has no data
    target = torch.full((1, 1), MINIMUM, dtype=torch.float64)  # [row, 1]
    return Workload(
        model=lambda _seed, dtype: Point(start, dtype),
        train_inputs=nothing,
        train_targets=target,
        validation_inputs=nothing,
        validation_targets=target,
        loss=nn.functional.mse_loss,
        metrics={"x": where},
        data_name="no data: (x - 2)²",
        data_digest=digest_of(target),
    )


class Point(nn.Module):
    """A model of one parameter, which is its output for every row."""

    def __init__(self, start: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(start, dtype=dtype))

    def forward(self, rows: Tensor) -> Tensor:  # [row, 1] -> [row, 1]
        """Return x for every row."""
        return self.x.expand(rows.shape)


def where(outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001
    """Return x as a metric, so that its path is recorded as a curve."""
    return outputs.mean()
