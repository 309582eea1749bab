"""Losses of stacked outputs [place, feature, row], with their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import vmap

from tuner.training.cohort.layout import Own
from tuner.training.cohort.structure import smoothing_of

Program: TypeAlias = list[Callable[[], object]]
"""Calls to make in order; their tensors, results included, are allocated in advance."""


class Loss(Protocol):
    """The mean loss over rows of each member."""

    def forward(self, outputs: Tensor, targets: Tensor, owns: Sequence[Own]) -> Tensor:
        """Return losses [place] of outputs [place, feature, row] and targets [place, row, ...].

        `owns` [place] has the loss of each member.
        """

    def program(
        self, outputs: Tensor, targets: Tensor, owns: Sequence[Own]
    ) -> tuple[Program, Tensor, Tensor]:
        """Return a program, and its results: losses [place] and their gradient.

        Shapes are those of `forward`; the gradient of the summed losses is shaped as the outputs.
        The program sees later changes of `owns`.
        """


def loss_of(own: Own, targets: Tensor, outputs: Tensor, *, losses: bool) -> Loss:
    """Return the fastest implementation for targets [row, ...] and outputs [row, feature].

    It is that of the loss of `own`, or of `losses` of each member that `Example` finds alike.
    """
    measure = own.loss
    classes = targets.dtype == torch.int64 and targets.ndim == 1 and int(targets.min()) >= 0
    smoothing = smoothing_of(measure)
    if smoothing is not None and classes:
        return SmoothedCrossEntropy() if losses or smoothing else CrossEntropy()
    if losses:
        return LossByMember()
    if measure is nn.functional.mse_loss and targets.shape[1:] == outputs.shape[1:]:
        return SquaredError()
    return VmapLoss()


class CrossEntropy:
    """`torch.nn.functional.cross_entropy` of class indices."""

    def forward(self, outputs: Tensor, targets: Tensor, owns: Sequence[Own]) -> Tensor:
        """Return losses."""
        logs = torch.log_softmax(outputs, 1)
        return logs.gather(1, targets.unsqueeze(1)).squeeze(1).mean(1).neg_()

    def program(
        self, outputs: Tensor, targets: Tensor, owns: Sequence[Own]
    ) -> tuple[Program, Tensor, Tensor]:
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


class SmoothedCrossEntropy:
    """The same with the label smoothing of each member."""

    def forward(self, outputs: Tensor, targets: Tensor, owns: Sequence[Own]) -> Tensor:
        """Return losses."""
        logs, smoothing = torch.log_softmax(outputs, 1), _smoothing(owns, outputs)
        chosen = logs.gather(1, targets.unsqueeze(1)).squeeze(1).mean(1)
        return (chosen * (1.0 - smoothing)).add_(logs.mean((1, 2)) * smoothing).neg_()

    def program(
        self, outputs: Tensor, targets: Tensor, owns: Sequence[Own]
    ) -> tuple[Program, Tensor, Tensor]:
        """Compute the gradient (softmax - smoothed target) / rows in place.

        The smoothed target is 1 - smoothing for the class, and beside it smoothing / classes for
        every class.
        """
        classes, (count, rows) = targets.unsqueeze(1), outputs.shape[1:]
        logs, losses = torch.empty_like(outputs), outputs.new_empty(len(outputs))
        chosen, means = outputs.new_empty(classes.shape), losses.clone()
        smoothing, rest = losses.clone(), losses.clone()
        less, uniform = torch.empty_like(chosen), outputs.new_empty(len(outputs), 1, 1)

        def smooth() -> None:
            smoothing.copy_(_smoothing(owns, outputs))
            torch.sub(1.0, smoothing, out=rest)
            less.copy_((rest / -rows)[:, None, None].expand_as(less))
            uniform.copy_((smoothing / (count * rows))[:, None, None])

        calls: Program = [
            smooth,
            partial(torch.log_softmax, outputs, 1, out=logs),
            partial(torch.gather, logs, 1, classes, out=chosen),
            partial(torch.mean, chosen, (1, 2), out=losses),
            partial(torch.mean, logs, (1, 2), out=means),
            partial(losses.mul_, rest),
            partial(means.mul_, smoothing),
            partial(losses.add_, means),
            losses.neg_,
            partial(logs.sub_, math.log(rows)),
            logs.exp_,
            partial(logs.sub_, uniform),
            partial(logs.scatter_add_, 1, classes, less),
        ]
        return calls, losses, logs


def _smoothing(owns: Sequence[Own], outputs: Tensor) -> Tensor:  # [place]
    """Return the label smoothing of each member."""
    return outputs.new_tensor([smoothing_of(own.loss) or 0.0 for own in owns])


class SquaredError:
    """`torch.nn.functional.mse_loss`."""

    def forward(self, outputs: Tensor, targets: Tensor, owns: Sequence[Own]) -> Tensor:
        """Return losses."""
        return outputs.sub(targets.transpose(1, 2)).square_().mean((1, 2))

    def program(
        self, outputs: Tensor, targets: Tensor, owns: Sequence[Own]
    ) -> tuple[Program, Tensor, Tensor]:
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


class LossByMember:
    """Any loss, also another one for each member: one member at a time."""

    def forward(self, outputs: Tensor, targets: Tensor, owns: Sequence[Own]) -> Tensor:
        """Return losses, one member at a time: operations that `vmap` lacks may occur here."""
        return one_at_a_time(outputs.transpose(1, 2), targets, owns)

    def program(
        self, outputs: Tensor, targets: Tensor, owns: Sequence[Own]
    ) -> tuple[Program, Tensor, Tensor]:
        """Compute losses and gradient by autograd."""
        return _by_autograd(outputs, lambda made: one_at_a_time(made, targets, owns))


class VmapLoss(LossByMember):
    """Any loss that is the same for all members, by `vmap`."""

    def program(
        self, outputs: Tensor, targets: Tensor, owns: Sequence[Own]
    ) -> tuple[Program, Tensor, Tensor]:
        """Compute losses and gradient by `vmap` and autograd."""
        measure = owns[0].loss

        def one(made: Tensor, theirs: Tensor) -> Tensor:
            return measure(made, theirs).reshape(())

        return _by_autograd(outputs, lambda made: vmap(one)(made, targets))


def one_at_a_time(outputs: Tensor, targets: Tensor, owns: Sequence[Own]) -> Tensor:
    """Return losses [place] of outputs and targets [place, row, ...]."""
    parts = zip(owns, outputs, targets, strict=True)
    return torch.stack([own.loss(made, theirs).reshape(()) for own, made, theirs in parts])


def _by_autograd(
    outputs: Tensor, losses_of: Callable[[Tensor], Tensor]
) -> tuple[Program, Tensor, Tensor]:
    """Return a program of a function from outputs [place, row, feature] to losses [place]."""
    gradient, losses = torch.empty_like(outputs), outputs.new_empty(len(outputs))

    def call() -> None:
        with torch.enable_grad():
            leaf = outputs.transpose(1, 2).detach().requires_grad_()
            values = losses_of(leaf)
            (found,) = torch.autograd.grad(values.sum(), leaf)
        losses.copy_(values.detach())
        gradient.copy_(found.transpose(1, 2))

    return [call], losses, gradient
