"""The coordinate check: how much the first steps change the outputs of layers, by width.

With muP (`tuner.training.mup`) a step changes the outputs of each layer by about as much at any
width. With the standard parametrization it changes some by more, by a power of the width, and then
a rate that is right for a narrow model is too high for a wide one (Tensor Programs V, arXiv
2203.03466, Figure 5 and Appendix D.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn, optim

from tuner.training.mup import Family
from tuner.training.workloads import Workload, seeded

STEPS, SEEDS, ROWS = 4, 3, 16
RATES: Mapping[Family, float] = {"sgd": 0.05, "adam": 0.003}
"""Rates that change a layer by a part of its output, and break nothing."""
FLAT = 0.15
"""The size of a slope up to which a change counts as independent of the width."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CoordinateCheck:
    """The change of the output of each layer since the start, root mean square."""

    widths: Sequence[int]
    changes: Mapping[str, np.ndarray]  # by the layer's name; [step, width]

    @property
    def slopes(self) -> dict[str, float]:
        """The power of the width by which the change of each layer grows, after the last step."""
        x = np.log(self.widths)
        return {
            name: float(np.polyfit(x, np.log(change[-1]), 1)[0])
            for name, change in self.changes.items()
        }

    @property
    def steepest(self) -> tuple[str, float]:
        """The layer with the largest slope by size, and that slope."""
        return max(self.slopes.items(), key=lambda one: abs(one[1]))


def check(
    factory: Callable[[int], Workload],
    widths: Sequence[int],
    *,
    optimizer: Family,
    lr: float | None = None,
    steps: int = STEPS,
    seeds: int = SEEDS,
) -> CoordinateCheck:
    """Return the coordinate check of workloads by their width.

    Each is trained for a few steps on the same rows, with the multipliers of its rate. Layers whose
    output is not a tensor are left out. Raise `ValueError` for fewer than two widths.
    """
    if len(set(widths)) < 2:
        raise ValueError(f"widths: expected at least two, got {list(widths)}")
    rate = RATES[optimizer] if lr is None else lr
    found: dict[str, np.ndarray] = {}
    for place, width in enumerate(widths):
        workload = factory(width)
        for seed in range(seeds):
            for step, changes in enumerate(_trained(workload, optimizer, rate, steps, seed)):
                for name, change in changes.items():
                    table = found.setdefault(name, np.zeros((steps, len(widths))))
                    table[step, place] += change**2 / seeds
    return CoordinateCheck(
        widths=tuple(widths), changes={name: np.sqrt(one) for name, one in found.items()}
    )


def _trained(
    workload: Workload, optimizer: Family, lr: float, steps: int, seed: int
) -> list[dict[str, float]]:
    """Return the change of each layer after each step of a model."""
    model = workload.model(seed, torch.float32)
    groups = [
        {"params": [parameter], "lr": lr * workload.multiplier_of(name)}
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    made = optim.SGD(groups, lr, momentum=0.9) if optimizer == "sgd" else optim.Adam(groups, lr)
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output.detach()

        return hook

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(keep(name or type(module).__name__))
    batch = (_single(workload.train_inputs[:ROWS]), _single(workload.train_targets[:ROWS]))
    found: list[dict[str, float]] = []
    start: dict[str, Tensor] = {}
    with seeded(seed):
        for step in range(steps + 1):
            loss, _ = workload.forwarded(model, batch)
            if step:
                found.append(
                    {
                        name: float((one - start[name]).double().square().mean().sqrt())
                        for name, one in outputs.items()
                    }
                )
            else:
                start = dict(outputs)
            made.zero_grad()
            torch.autograd.backward(loss)
            made.step()
    return found


def _single(data: Tensor) -> Tensor:
    return data.float() if data.is_floating_point() else data
