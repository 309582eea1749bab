"""The warm-up that a falling curvature asks for.

At the initial weights the loss is often curved more than a few steps later (Gilmer et al.,
arXiv 2110.04369; Kalra and Barkeshli, arXiv 2406.09405). A rate that is stable later breaks
training at the first step, and a warm-up keeps the rate below the stable limit until the curvature
has fallen. So the limit is measured while a model trains at up to half of it. The peak is a rate
below the limits that were measured last, which are the second half of the steps. A linear warm-up
over w steps to a peak has the rate peak · (t + 1)/(w + 1) at step t; the shortest one that never
exceeds the limit b(t) has w + 1 = max peak · (t + 1)/b(t), over the steps at which b(t) is below
the peak.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tuner.config import ParameterValue
from tuner.training import optimizers
from tuner.training.lr_probe import curvature

MEASURED = 12
"""Times at which the curvature is measured after the first, geometrically spaced."""
SAFE = 0.5
"""Rates in training, as a share of the limit."""
FALLS = 1.5
"""Factor by which the limit must rise for a warm-up to be worth it."""
NEAR = 0.9
"""Share of the limit that the peak is set to."""
LAST = 3
"""Measurements whose lowest limit it is; they are of the second half of the steps."""


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """The stable limit during the first steps, and the warm-up that follows from it."""

    steps: tuple[int, ...]  # at which the curvature was measured, from 0
    curvatures: tuple[float, ...]  # the largest one at each
    limits: tuple[float, ...]  # the largest stable rate at each
    peak: float  # the highest rate that is worth a warm-up; without one, the first limit
    length: int  # of the shortest warm-up to the peak, in steps; 0: none is needed

    def as_json(self, horizon: int) -> dict[str, object]:
        """Return what `tuner probe --json` prints, with the length as a share of a horizon."""
        return {
            "steps": list(self.steps),
            "curvatures": list(self.curvatures),
            "limits": list(self.limits),
            "peak": self.peak,
            "length": self.length,
            "share": self.length / horizon,
        }

    def sentence(self, name: str, horizon: int) -> str:
        """Return the recommendation for an optimizer."""
        if not self.length:
            return (
                f"{name}: the largest stable rate does not rise in the first {self.steps[-1]} "
                "steps, so no warm-up is recommended."
            )
        return (
            f"{name}: the largest curvature falls from {self.curvatures[0]:.3g} to "
            f"{min(self.curvatures):.3g} in the first {self.steps[-1]} steps. A rate of "
            f"{self.peak:.3g} is stable then, and {self.limits[0]:.3g} at the start: warm up for "
            f"{self.length} steps (warmup = {self.length / horizon:.2g})."
        )


def measure(
    params: Mapping[str, ParameterValue],
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],  # on a fixed batch, whose curvature is measured
    batches: Sequence[Callable[[nn.Module], Tensor]],  # losses on the batches to train on, in turn
    *,
    steps: int,
    cruise: float,  # the highest rate to train at
    highest: float,  # rate to recommend
) -> WarmUp | None:
    """Train a copy of a model for some steps, and return the warm-up for its optimizer.

    Return None if the optimizer has no stable limit, or the loss no curvature.
    """
    model = copy.deepcopy(model).double()
    optimizer = optimizers.make({**params, "lr": 1.0}, model.parameters())
    times = np.unique(np.geomspace(1, steps, MEASURED).round().astype(int)).tolist()
    found: list[tuple[int, float, float]] = []  # step, curvature, limit
    for step in range(steps + 1):
        if step == 0 or step in times:
            at = curvature.measure(params, model, loss, batches)
            if at.bound is None or not math.isfinite(at.bound):
                break
            found.append((step, at.lambda_max, at.bound))
        for group in optimizer.param_groups:
            group["lr"] = min(SAFE * found[-1][2], cruise)
        optimizer.zero_grad()
        batches[step % len(batches)](model).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if not found or not all(bool(torch.isfinite(one).all()) for one in model.parameters()):
        return None
    return recommended(*zip(*found, strict=True), highest=highest)


def recommended(
    steps: Sequence[int],
    curvatures: Sequence[float],
    limits: Sequence[float],
    *,
    highest: float,
) -> WarmUp:
    """Return the warm-up for limits that were measured at some steps, from step 0 on."""
    peak, length = min(NEAR * min(limits[-LAST:]), highest), 0
    # a warm-up longer than what was measured would be a guess
    at = list(zip(steps, limits, strict=True))
    peak = min(peak, *((steps[-1] + 1) * limit / (step + 1) for step, limit in at))
    if peak >= FALLS * limits[0]:
        needed = [peak * (step + 1) / limit for step, limit in at if limit < peak]
        length = math.ceil(max(needed)) - 1
    return WarmUp(
        steps=tuple(steps),
        curvatures=tuple(curvatures),
        limits=tuple(limits),
        peak=peak if length else limits[0],
        length=length,
    )
