"""Any model, stacked: its forward pass mapped over members by `torch.func.vmap`.

The backward pass goes through the sum of the members' losses, once: they share no parameter, so
the gradient of the sum is each one's own. It is quicker than mapping the backward pass too.
"""

from __future__ import annotations

import copy

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, vmap

from tuner.training.cohort import dropout
from tuner.training.cohort.dropout import Dropout
from tuner.training.cohort.layout import Layout
from tuner.training.precision import Precision
from tuner.training.workloads import Measure

PART = 512
"""Rows of the validation data that a block takes at once: of all, they might not fit in memory."""


class VmapStack:
    """Any model; a `Stack`."""

    name = "vmap"

    def __init__(
        self,
        model: nn.Module,
        loss: Measure,
        dropouts: tuple[Dropout, ...],
        precision: str | None = None,  # of forward passes; None: of the parameters
    ) -> None:
        self.layout = Layout.of(model)
        self.loss, self.dropouts, self.precision = loss, dropouts, precision
        self.training = dropout.masked(model, dropouts).train()
        self.evaluating = copy.deepcopy(model).eval()
        self.buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}

    def block(self, size: int, dtype: torch.dtype, device: torch.device) -> VmapBlock:
        """Allocate a block."""
        return VmapBlock(self, size, dtype, device)


class VmapBlock:
    """Members of any model; a `Block`."""

    def __init__(self, stack: VmapStack, size: int, dtype: torch.dtype, device: torch.device) -> None:
        layout = stack.layout
        self._stack = stack
        self._forward = Precision(stack.precision, device).forward
        self.rows, self.gradients = (layout.rows(size, dtype, device) for _ in range(2))
        self._parts = layout.views(self.gradients)
        self._leaves = [view.detach().requires_grad_() for view in layout.views(self.rows)]
        self._named = dict(zip(layout.names, self._leaves, strict=True))
        self.buffers = {
            name: buffer.to(device, dtype if buffer.is_floating_point() else buffer.dtype)
            .expand(size, *buffer.shape)
            .clone()
            for name, buffer in stack.buffers.items()
        }
        self.random = bool(stack.dropouts)
        self._masks = dropout.masks(stack.dropouts, size, dtype, device)
        paths = [f"{layer.path}.mask" for layer in stack.dropouts]
        self._state = self.buffers | dict(zip(paths, self._masks, strict=True))

    def draw(self, place: int, generator: Generator) -> None:
        """Draw a member's masks."""
        dropout.draw(self._stack.dropouts, self._masks, place, generator)

    def train(self, inputs: Tensor, targets: Tensor, rows: Tensor | None) -> Tensor:
        """Compute losses and gradients."""
        model, loss = self._stack.training, self._stack.loss
        every = len(self.rows)
        batch = [
            data.expand(every, *data.shape)
            if rows is None
            else data.index_select(0, rows.view(-1)).view(*rows.shape, *data.shape[1:])
            for data in (inputs, targets)
        ]

        def one(
            parameters: dict[str, Tensor], state: dict[str, Tensor], rows: Tensor, theirs: Tensor
        ) -> Tensor:
            return loss(functional_call(model, parameters | state, (rows,)), theirs).reshape(())

        with self._forward():
            losses = vmap(one)(self._named, self._state, *batch)
        gradients = torch.autograd.grad(losses.sum(), self._leaves)
        for part, gradient in zip(self._parts, gradients, strict=True):
            part.copy_(gradient)
        found: Tensor = losses.detach()
        return found

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compute losses and outputs."""
        model, loss = self._stack.evaluating, self._stack.loss

        def one(parameters: dict[str, Tensor], state: dict[str, Tensor], rows: Tensor) -> Tensor:
            found: Tensor = functional_call(model, parameters | state, (rows,))
            return found

        with self._forward():
            parts = [
                vmap(one, (0, 0, None))(self._named, self.buffers, part)
                for part in torch.split(inputs, PART)
            ]
            outputs = torch.cat(parts, dim=1)
            return torch.stack([loss(own, targets).reshape(()) for own in outputs]), outputs
