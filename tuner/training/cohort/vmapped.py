"""Any model, stacked: its forward pass mapped over members by `torch.func.vmap`.

The backward pass differentiates the sum of the members' losses once: members share no parameters,
so the gradient of the sum is each one's own. This is faster than mapping the backward pass too.
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
"""Validation rows per forward pass, to limit memory."""


class VmapStack:
    """A `Stack` of any model."""

    name = "vmap"

    def __init__(
        self,
        model: nn.Module,
        loss: Measure,
        dropouts: tuple[Dropout, ...],
        precision: str | None = None,  # of forward passes; None: the parameters' dtype
    ) -> None:
        self.layout = Layout.of(model)
        self.loss, self.dropouts, self.precision = loss, dropouts, precision
        self.training = dropout.with_mask_layers(model, dropouts).train()
        self.evaluating = copy.deepcopy(model).eval()
        self.buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}

    def block(self, size: int, dtype: torch.dtype, device: torch.device) -> VmapBlock:
        """Return a block of `size` places, all zeros."""
        return VmapBlock(self, size, dtype, device)


class VmapBlock:
    """A `Block` of members of any model."""

    def __init__(
        self, stack: VmapStack, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
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
        """Draw a member's dropout masks."""
        dropout.draw(self._stack.dropouts, self._masks, place, generator)

    def train(self, inputs: Tensor, targets: Tensor, rows: Tensor | None) -> Tensor:
        """Compute `gradients` and return losses [place]; see `Block.train`."""
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
        """Return losses [place] and outputs [place, row, ...]."""
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
