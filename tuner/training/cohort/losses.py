"""Losses of stacked outputs [place, feature, row], with their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import vmap

from tuner.training.workloads import Measure

Program: TypeAlias = list[Callable[[], object]]
"""Calls to make in order; their tensors, results included, are allocated in advance."""


class Loss(Protocol):
    """The mean loss over rows of each member."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses [place] of outputs [place, feature, row] and targets [place, row, ...]."""

    def program(self, outputs: Tensor, targets: Tensor) -> tuple[Program, Tensor, Tensor]:
        """Return a program, and its results: losses [place] and their gradient.

        Shapes are those of `forward`; the gradient of the summed losses is shaped as the outputs.
        """


def loss_of(measure: Measure, targets: Tensor, outputs: Tensor) -> Loss:
    """Return the fastest implementation for targets [row, ...] and outputs [row, feature]."""
    functional = nn.functional
    classes = targets.dtype == torch.int64 and targets.ndim == 1 and int(targets.min()) >= 0
    if measure is functional.cross_entropy and classes:
        return CrossEntropy()
    if measure is functional.mse_loss and targets.shape[1:] == outputs.shape[1:]:
        return SquaredError()
    return VmapLoss(measure)


class CrossEntropy:
    """`torch.nn.functional.cross_entropy` of class indices."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses."""
        logs = torch.log_softmax(outputs, 1)
        return logs.gather(1, targets.unsqueeze(1)).squeeze(1).mean(1).neg_()

    def program(self, outputs: Tensor, targets: Tensor) -> tuple[Program, Tensor, Tensor]:
        """Compute the gradient (softmax - one-hot target) / rows in place.

        Few calls of few kinds: for small models, loading an uncached kernel takes longer than
        running it.
        """
        classes, rows = targets.unsqueeze(1), outputs.shape[2]  # [place, 1, row]
        logs, losses = torch.empty_like(outputs), outputs.new_empty(len(outputs))
        chosen = outputs.new_empty(classes.shape)
        less = torch.full_like(chosen, -1.0 / rows)
        calls: Program = [
            partial(torch.log_softmax, outputs, 1, out=logs),
            partial(torch.gather, logs, 1, classes, out=chosen),
            partial(torch.bmm, chosen, less.transpose(1, 2), out=losses.view(-1, 1, 1)),
            partial(logs.sub_, math.log(rows)),
            logs.exp_,
            partial(logs.scatter_add_, 1, classes, less),
        ]
        return calls, losses, logs


class SquaredError:
    """`torch.nn.functional.mse_loss`."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses."""
        return outputs.sub(targets.transpose(1, 2)).square_().mean((1, 2))

    def program(self, outputs: Tensor, targets: Tensor) -> tuple[Program, Tensor, Tensor]:
        """Compute the gradient 2 (output - target) / numbers in place."""
        apart, losses = torch.empty_like(outputs), outputs.new_empty(len(outputs))
        squares = torch.empty_like(outputs)
        calls: Program = [
            partial(torch.sub, outputs, targets.transpose(1, 2), out=apart),
            partial(torch.square, apart, out=squares),
            partial(torch.mean, squares, (1, 2), out=losses),
            partial(apart.mul_, 2.0 / outputs[0].numel()),
        ]
        return calls, losses, apart


class VmapLoss:
    """Any loss, by `vmap` and autograd."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return losses, one member at a time: operations that `vmap` lacks may occur here."""
        pairs = zip(outputs.transpose(1, 2), targets, strict=True)
        return torch.stack([self._measure(own, theirs).reshape(()) for own, theirs in pairs])

    def program(self, outputs: Tensor, targets: Tensor) -> tuple[Program, Tensor, Tensor]:
        """Compute losses and gradient by `vmap` and autograd."""
        gradient, losses = torch.empty_like(outputs), outputs.new_empty(len(outputs))

        def one(own: Tensor, theirs: Tensor) -> Tensor:
            return self._measure(own, theirs).reshape(())

        def call() -> None:
            with torch.enable_grad():
                leaf = outputs.transpose(1, 2).detach().requires_grad_()
                values = vmap(one)(leaf, targets)
                (found,) = torch.autograd.grad(values.sum(), leaf)
            losses.copy_(values.detach())
            gradient.copy_(found.transpose(1, 2))

        return [call], losses, gradient
