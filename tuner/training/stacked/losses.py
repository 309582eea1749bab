"""Losses of stacked outputs, [place, feature, row], with their gradients."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import vmap

from tuner.training.workloads import Measure


class Loss(Protocol):
    """The mean loss of each member."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Give losses [place] of outputs [place, feature, row] and targets [place, row, ...]."""

    def backward(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Give losses, and the gradient of their sum: [place, feature, row]."""


def loss_of(measure: Measure, targets: Tensor, outputs: Tensor) -> Loss:
    """Choose how to compute a loss, given the targets [row, ...] and outputs [row, feature]."""
    functional = nn.functional
    classes = targets.dtype == torch.int64 and targets.ndim == 1 and int(targets.min()) >= 0
    if measure is functional.cross_entropy and classes:
        return CrossEntropy()
    if measure is functional.mse_loss and targets.shape[1:] == outputs.shape[1:]:
        return SquaredError()
    return Mapped(measure)


class CrossEntropy:
    """`torch.nn.functional.cross_entropy` of classes."""

    def __init__(self) -> None:
        self._less: Tensor | None = None  # -1 for each row

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Give losses."""
        return _mean_of(torch.log_softmax(outputs, 1), targets.unsqueeze(1))

    def backward(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Give losses and gradients: the probabilities, less one where the class is right."""
        logs, right = torch.log_softmax(outputs, 1), targets.unsqueeze(1)
        losses = _mean_of(logs, right)
        if self._less is None or self._less.shape != right.shape:
            self._less = torch.full_like(right, -1.0, dtype=logs.dtype)
        gradient = logs.exp_().scatter_add_(1, right, self._less)
        return losses, gradient.mul_(1.0 / outputs.shape[2])


def _mean_of(logs: Tensor, right: Tensor) -> Tensor:  # [place, class, row], [place, 1, row]
    return logs.gather(1, right).squeeze(1).mean(1).neg_()


class SquaredError:
    """`torch.nn.functional.mse_loss`."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Give losses."""
        return outputs.sub(targets.transpose(1, 2)).square_().mean((1, 2))

    def backward(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Give losses and gradients."""
        apart = outputs.sub(targets.transpose(1, 2))
        return apart.square().mean((1, 2)), apart.mul_(2.0 / outputs[0].numel())


class Mapped:
    """Any loss, by `vmap` and autograd."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Give losses; one by one, so that it may do then what `vmap` cannot."""
        pairs = zip(outputs.transpose(1, 2), targets, strict=True)
        return torch.stack([self._measure(own, theirs).reshape(()) for own, theirs in pairs])

    def backward(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Give losses and gradients."""
        with torch.enable_grad():
            leaf = outputs.transpose(1, 2).detach().requires_grad_()
            losses = vmap(lambda own, theirs: self._measure(own, theirs).reshape(()))(leaf, targets)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach(), gradient.transpose(1, 2)
