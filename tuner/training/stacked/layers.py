"""Chains of dense layers, stacked, with their backward pass by hand: many times quicker.

A model that is an `nn.Sequential` of `nn.Linear` and the activations below needs neither `vmap` nor
autograd. Numbers are kept as [place, feature, row], so that a layer is one matrix product for all
members, W x, a bias is added to whole rows of memory, and a softmax over features goes along
neighbours of the same kind: over the last dimension it costs more than all the matrix products of a
small model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Generator, Tensor, nn

from tuner.training.stacked import dropout
from tuner.training.stacked.dropout import Dropout
from tuner.training.stacked.layout import Layout
from tuner.training.stacked.losses import Loss

Derivative: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""From layer, gradient of its output, input and output to the gradient of its input."""

_aten = torch.ops.aten
ACTIVATIONS: Mapping[type[nn.Module], Derivative] = {
    nn.ReLU: lambda _, gradient, _before, after: _aten.threshold_backward(gradient, after, 0),
    nn.Tanh: lambda _, gradient, _before, after: _aten.tanh_backward(gradient, after),
    nn.Sigmoid: lambda _, gradient, _before, after: _aten.sigmoid_backward(gradient, after),
    nn.SiLU: lambda _, gradient, before, _after: _aten.silu_backward(gradient, before),
    nn.GELU: lambda layer, gradient, before, _after: _aten.gelu_backward(
        gradient, before, approximate=layer.approximate
    ),
}
"""The derivatives of autograd, called by name."""


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
    return None if any(part is None for part in parts) else [x for part in parts for x in part or ()]


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
        for layer in stack.layers:
            if type(layer) is nn.Linear:
                names = [f"{paths[layer]}.weight".lstrip("."), f"{paths[layer]}.bias".lstrip(".")]
                own = [parameters.get(name) for name in names]
                theirs = [gradients.get(name) for name in names]
                first = not any(isinstance(step, _Dense) for step in self._steps)
                self._steps.append(_Dense(own[0], own[1], theirs[0], theirs[1], first))
            elif type(layer) in ACTIVATIONS:
                self._steps.append(_Activation(layer))
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
            values.append(step.forward(values[-1]))
        losses, gradient = self._stack.loss.backward(values[-1], targets)
        for index in range(len(self._steps) - 1, -1, -1):
            gradient = self._steps[index].backward(gradient, values[index], values[index + 1])
        return losses

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compute losses and outputs."""
        values = inputs.flatten(1).t().expand(len(self.rows), -1, -1)
        for step in self._steps:
            if not isinstance(step, _Dropped):
                values = step.forward(values)
        losses = self._stack.loss.forward(values, targets.expand(len(self.rows), *targets.shape))
        return losses, values.transpose(1, 2).contiguous()


class _Step(Protocol):
    """A layer of all members; numbers are [place, feature, row]."""

    def forward(self, before: Tensor) -> Tensor: ...

    def backward(self, gradient: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Give the gradient of the input, from that of the output; write the parameters'."""


class _Dense:
    """A dense layer; of the first one, nobody asks for the gradient of the input."""

    def __init__(
        self,
        weight: Tensor | None,  # [place, out, in], as are its gradients
        bias: Tensor | None,  # [place, out], as are its gradients
        weight_gradient: Tensor | None,
        bias_gradient: Tensor | None,
        first: bool,
    ) -> None:
        assert weight is not None
        assert weight_gradient is not None
        self._weight, self._transposed = weight, weight.transpose(1, 2)
        self._weight_gradient, self._bias_gradient = weight_gradient, bias_gradient
        self._bias = None if bias is None else bias.unsqueeze(2)
        self._first = first

    def forward(self, before: Tensor) -> Tensor:
        after = torch.bmm(self._weight, before)
        return after if self._bias is None else after.add_(self._bias)

    def backward(self, gradient: Tensor, before: Tensor, after: Tensor) -> Tensor:
        # copied: a product that writes into rows is several times slower than one that does not
        self._weight_gradient.copy_(torch.bmm(gradient, before.transpose(1, 2)))
        if self._bias_gradient is not None:
            self._bias_gradient.copy_(gradient.sum(2))
        return gradient if self._first else torch.bmm(self._transposed, gradient)


class _Activation:
    """A function of each number."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer, self._derivative = layer, ACTIVATIONS[type(layer)]

    def forward(self, before: Tensor) -> Tensor:
        after: Tensor = self._layer(before)
        return after

    def backward(self, gradient: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return self._derivative(self._layer, gradient, before, after)


class _Dropped:
    """Dropout."""

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask.transpose(1, 2)  # [place, feature, row]

    def forward(self, before: Tensor) -> Tensor:
        return before * self._mask

    def backward(self, gradient: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return gradient * self._mask
