"""Gradients of micro-batches and of their batch, from which the gradient noise scale follows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tuner.config import ParameterValue
from tuner.training import optimizers, schedules
from tuner.training.workloads import Workload, seeded

PARTS = 8
"""Micro-batches of a batch."""


def measure(
    workload: Workload,
    params: Mapping[str, ParameterValue],
    *,
    batch_size: int,
    steps: int,
    seed: int = 0,
    parts: int = PARTS,
) -> tuple[list[float], list[float], tuple[int, int]]:
    """Return what `tuner.analysis.batches.noise_scale` takes, of the second half of a run.

    That is the mean squared norm of the gradients of micro-batches [step], that of their mean,
    which is trained with [step], and the rows of a micro-batch and of a batch. `params` are a
    trial's flat parameters, such as `{"lr": 0.1, "schedule": "constant", …}`.

    Raise `ValueError` if the batch cannot be divided, or for a loader.
    """
    if workload.has_loaders or workload.batches is not None:
        raise ValueError("expected rows in memory, got a loader or batches")
    if parts < 2 or batch_size % parts:
        raise ValueError(f"batch_size: expected a multiple of {parts} parts, got {batch_size}")
    model = workload.model(seed, torch.float32)
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    groups = [
        {"params": [one], "multiplier": workload.multiplier_of(name)}
        for name, one in trained.items()
    ]
    optimizer = optimizers.make(params, groups)
    rates = float(params["lr"]) * schedules.multipliers(params, steps)  # [step]
    inputs, targets = _single(workload.train_inputs), _single(workload.train_targets)
    generator = torch.Generator().manual_seed(seed)
    small: list[float] = []
    big: list[float] = []
    with seeded(seed):
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = float(rates[step]) * group["multiplier"]
            rows = torch.randint(len(inputs), (batch_size,), generator=generator)
            each = []
            for own in rows.chunk(parts):
                loss = workload.loss(model(inputs[own]), targets[own])
                each.append(torch.autograd.grad(loss, list(trained.values())))
            means = [torch.stack(of_parts).mean(dim=0) for of_parts in zip(*each, strict=True)]
            if step >= steps // 2:
                small.append(sum(_square(one) for one in each) / parts)
                big.append(_square(means))
            for parameter, gradient in zip(trained.values(), means, strict=True):
                parameter.grad = gradient
            optimizer.step()
    return small, big, (batch_size // parts, batch_size)


def _square(gradients: tuple[Tensor, ...] | list[Tensor]) -> float:
    """Return the squared norm of a gradient."""
    return sum(float(one.double().square().sum()) for one in gradients)


def _single(data: Tensor) -> Tensor:
    return data.float() if data.is_floating_point() else data
