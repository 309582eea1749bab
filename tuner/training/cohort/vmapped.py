"""Any model, stacked: its forward pass mapped over members by `torch.func.vmap`.

The backward pass differentiates the sum of the members' losses once: members share no parameters,
so the gradient of the sum is each one's own. This is faster than mapping the backward pass too.
"""

from __future__ import annotations

import copy
from collections.abc import Set

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, vmap

from tuner.training.cohort import dropout
from tuner.training.cohort.dropout import Dropout
from tuner.training.cohort.layout import Layout, Own
from tuner.training.cohort.losses import one_at_a_time
from tuner.training.precision import Precision

PART = 512
"""Validation rows per forward pass, to limit memory."""


class VmapStack:
    """A `Stack` of any model."""

    name = "vmap"
    fills_rows = False

    def __init__(
        self,
        model: nn.Module,
        own: Own,
        dropouts: tuple[Dropout, ...],
        precision: str | None = None,  # of forward passes; None: the parameters' dtype
        *,
        losses: bool = False,  # whether each member has a loss of its own
    ) -> None:
        self.layout = Layout.of(model)
        self.own, self.dropouts, self.precision, self.losses = own, dropouts, precision, losses
        self.buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
        self.numbers = own.numbers.keys() - {use.number for use in dropouts}
        numbered = with_buffers(model, self.numbers)
        self.training = dropout.with_mask_layers(numbered, dropouts).train()
        self.evaluating = copy.deepcopy(numbered).eval()

    def block(self, size: int, dtype: torch.dtype, device: torch.device) -> VmapBlock:
        """Return a block of `size` places, all zeros."""
        return VmapBlock(self, size, dtype, device)

    def release(self) -> None:
        """Do nothing: blocks share no memory."""


def with_buffers(model: nn.Module, numbers: Set[str]) -> nn.Module:
    """Return a copy of a model in which numbers of modules are buffers of the same names."""
    made = copy.deepcopy(model)
    for name in numbers:
        path, _, attribute = name.rpartition(".")
        module = made.get_submodule(path)
        value = torch.tensor(float(getattr(module, attribute)))
        delattr(module, attribute)
        module.register_buffer(attribute, value)
    return made


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
        self._numbers = {
            name: torch.full((size,), stack.own.numbers[name], dtype=dtype, device=device)
            for name in stack.numbers
        }
        self._owns = [stack.own] * size
        self.random = bool(stack.dropouts)
        self._masks = dropout.masks(stack.dropouts, size, dtype, device)
        paths = [f"{layer.path}.mask" for layer in stack.dropouts]
        self._lasting = self.buffers | self._numbers
        self._state = self._lasting | dict(zip(paths, self._masks, strict=True))

    def assign(self, place: int, own: Own) -> None:
        """Set the numbers and the loss of a member."""
        self._owns[place] = own
        for name, values in self._numbers.items():
            values[place] = own.numbers[name]

    def draw(self, place: int, generator: Generator) -> None:
        """Draw a member's dropout masks."""
        numbers = self._owns[place].numbers
        dropout.draw(self._stack.dropouts, self._masks, place, generator, numbers)

    def train(self, inputs: Tensor, targets: Tensor, rows: Tensor | None) -> Tensor:
        """Compute `gradients` and return losses [place]; see `Block.train`."""
        model, loss = self._stack.training, self._stack.own.loss
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
            return loss(forward(parameters, state, rows), theirs).reshape(())

        def forward(
            parameters: dict[str, Tensor], state: dict[str, Tensor], rows: Tensor
        ) -> Tensor:
            found: Tensor = functional_call(model, parameters | state, (rows,))
            return found

        with self._forward():
            if self._stack.losses:
                outputs = vmap(forward)(self._named, self._state, batch[0])
                losses = one_at_a_time(outputs, batch[1], self._owns)
            else:
                losses = vmap(one)(self._named, self._state, *batch)
        gradients = torch.autograd.grad(losses.sum(), self._leaves)
        for part, gradient in zip(self._parts, gradients, strict=True):
            part.copy_(gradient)
        found: Tensor = losses.detach()
        return found

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses [place] and outputs [place, row, ...]."""
        model = self._stack.evaluating

        def one(parameters: dict[str, Tensor], state: dict[str, Tensor], rows: Tensor) -> Tensor:
            found: Tensor = functional_call(model, parameters | state, (rows,))
            return found

        with self._forward():
            parts = [
                vmap(one, (0, 0, None))(self._named, self._lasting, part)
                for part in torch.split(inputs, PART)
            ]
            outputs = torch.cat(parts, dim=1)
            theirs = targets.expand(len(outputs), *targets.shape)
            return one_at_a_time(outputs, theirs, self._owns), outputs
