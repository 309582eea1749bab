"""Exponential moving averages of parameters, at which a trial is evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def weight_of(decay: float, step: int) -> float:
    """Return the weight of the parameters after `step` updates in their average.

    The decay is at most (1 + step) / (10 + step), as in TensorFlow's `ExponentialMovingAverage`, so
    that the average soon forgets the initial parameters.
    """
    return 1.0 - min(decay, (1 + step) / (10 + step))


@contextmanager
def averages_in(
    parameters: Sequence[nn.Parameter], averages: Sequence[Tensor] | None
) -> Iterator[None]:
    """Let parameters have the values of their averages, if there are any, within the context."""
    own = [parameter.data for parameter in parameters]
    for parameter, average in zip(parameters, averages or own, strict=True):
        parameter.data = average
    try:
        yield
    finally:
        for parameter, data in zip(parameters, own, strict=True):
            parameter.data = data


@torch.no_grad()
def load(model: nn.Module, averages: Sequence[Tensor]) -> None:
    """Set the parameters of a model to averages."""
    for parameter, average in zip(model.parameters(), averages, strict=True):
        parameter.copy_(average)
