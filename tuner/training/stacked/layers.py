"""Chains of dense layers, stacked, with their backward pass by hand: many times quicker.

A model that is an `nn.Sequential` of `nn.Linear` and the activations below needs neither `vmap` nor
autograd. Numbers are kept as [place, feature, row], so that a layer is one matrix product for all
members, W x, a bias is added to whole rows of memory, and a softmax over features goes along
neighbours of the same kind: over the last dimension it costs more than all the matrix products of a
small model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from tuner.training.stacked import dropout
from tuner.training.stacked.dropout import Dropout
from tuner.training.stacked.layout import Layout
from tuner.training.stacked.losses import Loss

_aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Function:
    """An activation: the derivatives of autograd, called by name."""

    # from layer, gradient of the output, input, output; into the place of that gradient
    backward: Callable[[nn.Module, Tensor, Tensor, Tensor], object]
    in_place: Callable[[Tensor], Tensor] | None = None  # where the backward pass needs no input


ACTIVATIONS: Mapping[type[nn.Module], Function] = {
    nn.ReLU: Function(
        in_place=torch.relu_,
        backward=lambda _, gradient, _before, after: _aten.threshold_backward.grad_input(
            gradient, after, 0, grad_input=gradient
        ),
    ),
    nn.Tanh: Function(
        in_place=torch.tanh_,
        backward=lambda _, gradient, _before, after: _aten.tanh_backward.grad_input(
            gradient, after, grad_input=gradient
        ),
    ),
    nn.Sigmoid: Function(
        in_place=torch.sigmoid_,
        backward=lambda _, gradient, _before, after: _aten.sigmoid_backward.grad_input(
            gradient, after, grad_input=gradient
        ),
    ),
    nn.SiLU: Function(
        backward=lambda _, gradient, before, _after: _aten.silu_backward.grad_input(
            gradient, before, grad_input=gradient
        ),
    ),
    nn.GELU: Function(
        backward=lambda layer, gradient, before, _after: _aten.gelu_backward.grad_input(
            gradient, before, approximate=layer.approximate, grad_input=gradient
        ),
    ),
}
"""Every activation that a chain may have."""

LARGE = 1 << 14
"""Products of so many numbers are written where they belong, smaller ones are copied there.

A product into rows goes member by member, which costs more than a copy where it is small."""


def chain_of(model: nn.Module, inputs: Tensor) -> list[nn.Module] | None:
    """List the layers of a model, if it is such a chain for these inputs [row, ...]."""
    layers = _flat(model)
    if layers is None or len({id(layer) for layer in layers}) < len(layers):
        return None
    if layers and type(layers[0]) is nn.Flatten and inputs.ndim > 2:
        layers = layers[1:]
    elif inputs.ndim != 2:
        return None
    # of two dimensions, nothing is to be flattened
    layers = [layer for layer in layers if type(layer) not in {nn.Flatten, nn.Identity}]
    known = {nn.Linear, nn.Dropout, *ACTIVATIONS}
    return layers if layers and all(type(layer) in known for layer in layers) else None


def _flat(model: nn.Module) -> list[nn.Module] | None:
    """Unpack sequences of sequences; nothing where a hook would have to be called."""
    hooks = (model._forward_hooks, model._forward_pre_hooks)
    if any(hooks) or any((model._backward_hooks, model._backward_pre_hooks)):
        return None
    if type(model) is nn.Flatten and (model.start_dim, model.end_dim) != (1, -1):
        return None
    if type(model) is not nn.Sequential:
        return [model]
    parts = [_flat(layer) for layer in model]
    return (
        None if any(part is None for part in parts) else [x for part in parts for x in part or ()]
    )


class Layers:
    """A chain of dense layers; a `Stack`."""

    name = "layers"

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        loss: Loss,
        dropouts: tuple[Dropout, ...],
    ) -> None:
        self.layout = Layout.of(model)
        self.layers, self.loss, self.dropouts = layers, loss, dropouts
        self.modules = dict(model.named_modules())
        self._scratch: dict[object, Tensor] = {}

    def scratch(self, use: object, *shape: int, dtype: torch.dtype) -> Tensor:
        """Give memory for a use; blocks take turns, and what one of them left is in the cache."""
        key = (use, shape, dtype)
        if key not in self._scratch:
            self._scratch[key] = torch.empty(shape, dtype=dtype)
        return self._scratch[key]

    def block(self, size: int, dtype: torch.dtype) -> LayersBlock:
        """Allocate a block."""
        return LayersBlock(self, size, dtype)


class LayersBlock:
    """Members of a chain of dense layers; a `Block`."""

    def __init__(self, stack: Layers, size: int, dtype: torch.dtype) -> None:
        layout = stack.layout
        self._stack = stack
        self.rows, self.gradients = layout.rows(size, dtype), layout.rows(size, dtype)
        self.buffers: dict[str, Tensor] = {}
        self._masks = dropout.masks(stack.dropouts, size, dtype)
        drawn = {
            stack.modules[use.path]: mask
            for use, mask in zip(stack.dropouts, self._masks, strict=True)
        }
        parameters, gradients = (
            dict(zip(layout.names, layout.views(rows), strict=True))
            for rows in (self.rows, self.gradients)
        )
        paths = {layer: path for path, layer in stack.modules.items()}
        self._steps: list[_Step] = []
        for index, layer in enumerate(stack.layers):
            if type(layer) is nn.Linear:
                names = [f"{paths[layer]}.weight".lstrip("."), f"{paths[layer]}.bias".lstrip(".")]
                own = [(parameters.get(name), gradients.get(name)) for name in names]
                first = not any(isinstance(step, _Dense) for step in self._steps)
                self._steps.append(_Dense(*own, stack, index, first))
            elif type(layer) in ACTIVATIONS:
                self._steps.append(_Activation(layer, own=bool(self._steps)))
            elif layer in drawn:
                self._steps.append(_Dropped(drawn[layer]))

    def draw(self, place: int, generator: Generator) -> None:
        """Draw a member's masks."""
        dropout.draw(self._stack.dropouts, self._masks, place, generator)

    @torch.no_grad()
    def train(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Compute losses and gradients."""
        values = [inputs.flatten(2).transpose(1, 2)]  # each [place, feature, row]
        for step in self._steps:
            values.append(step.forward(values[-1], True))
        losses, gradient = self._stack.loss.backward(values[-1], targets)
        for index in range(len(self._steps) - 1, -1, -1):
            gradient = self._steps[index].backward(gradient, values[index], values[index + 1])
        return losses

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compute losses and outputs."""
        values = inputs.flatten(1).t().expand(len(self.rows), -1, -1)
        for step in self._steps:
            values = step.forward(values, False)
        losses = self._stack.loss.forward(values, targets.expand(len(self.rows), *targets.shape))
        return losses, values.transpose(1, 2).contiguous()


class _Step(Protocol):
    """A layer of all members; numbers are [place, feature, row]."""

    def forward(self, before: Tensor, training: bool) -> Tensor:
        """Give the output; what is not the trainer's data may be overwritten."""

    def backward(self, gradient: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Give the gradient of the input, from that of the output, and write the parameters'.

        The gradient of the output may be overwritten.
        """


class _Dense:
    """A dense layer; of the first one, nobody asks for the gradient of the input."""

    def __init__(
        self,
        weight: tuple[Tensor | None, Tensor | None],  # and gradient, each [place, out, in]
        bias: tuple[Tensor | None, Tensor | None],  # and gradient, each [place, out]
        stack: Layers,
        index: int,
        first: bool,
    ) -> None:
        assert weight[0] is not None
        assert weight[1] is not None
        self._weight, self._weight_gradient = weight[0], weight[1]
        self._transposed = self._weight.transpose(1, 2)
        self._bias = None if bias[0] is None else bias[0].unsqueeze(2)
        self._bias_gradient = bias[1]
        self._stack, self._index, self._first = stack, index, first
        self._large = self._weight[0].numel() >= LARGE

    def forward(self, before: Tensor, training: bool) -> Tensor:
        places, units, _ = self._weight.shape
        out = self._scratch("after", places, units, before.shape[2]) if training else None
        after = torch.bmm(self._weight, before, out=out)
        return after if self._bias is None else after.add_(self._bias)

    def backward(self, gradient: Tensor, before: Tensor, after: Tensor) -> Tensor:
        transposed = before.transpose(1, 2)
        if self._large:
            torch.bmm(gradient, transposed, out=self._weight_gradient)
        else:
            product = self._scratch("weight", *self._weight.shape)
            self._weight_gradient.copy_(torch.bmm(gradient, transposed, out=product))
        if self._bias_gradient is not None:
            torch.sum(gradient, 2, out=self._bias_gradient)
        if self._first:
            return gradient
        return torch.bmm(self._transposed, gradient, out=self._scratch("before", *before.shape))

    def _scratch(self, use: str, *shape: int) -> Tensor:
        return self._stack.scratch((use, self._index), *shape, dtype=self._weight.dtype)


class _Activation:
    """A function of each number."""

    def __init__(self, layer: nn.Module, own: bool) -> None:
        self._layer, function = layer, ACTIVATIONS[type(layer)]
        self._backward = function.backward
        # the first layer's input is the data
        self._forward = function.in_place if own and function.in_place else layer

    def forward(self, before: Tensor, training: bool) -> Tensor:
        after: Tensor = self._forward(before)
        return after

    def backward(self, gradient: Tensor, before: Tensor, after: Tensor) -> Tensor:
        self._backward(self._layer, gradient, before, after)
        return gradient


class _Dropped:
    """Dropout."""

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask.transpose(1, 2)  # [place, feature, row]

    def forward(self, before: Tensor, training: bool) -> Tensor:
        return before * self._mask if training else before

    def backward(self, gradient: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return gradient.mul_(self._mask)
