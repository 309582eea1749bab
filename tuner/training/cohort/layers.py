"""Stacked chains of layers with a hand-written backward pass, many times faster than `vmap`.

A model that is an `nn.Sequential` of `nn.Linear`, `nn.Conv2d`, pooling and the activations below
needs neither `vmap` nor autograd. Values are laid out as [place, feature, row], and images as
[place, channel, height, width, row]: a layer is one batched matrix product W x, a bias is added to
contiguous rows, and a softmax over features vectorizes along rows. Over the last dimension it would
cost more than all the matrix products of a small model.

A training step is a *program*: a list of calls whose tensors, results included, are allocated in
advance. In a small model, Python and the allocator would otherwise take half of the time of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor, nn

from tuner.training.cohort import dropout, images
from tuner.training.cohort.dropout import Dropout
from tuner.training.cohort.layout import Layout, Own
from tuner.training.cohort.losses import Loss, Program

_aten = torch.ops.aten
Undo: TypeAlias = Callable[[Program, Tensor], Tensor]
"""Append a layer's backward calls for the gradient of its output; return that of its input."""

Backward: TypeAlias = Callable[[Any, Tensor, Tensor], Callable[[], object]]
"""Map a layer, its output (or input, see below) and the gradient of the output to a call that
overwrites that gradient with the gradient of the input."""

IN_PLACE: Mapping[type[nn.Module], tuple[Callable[[Tensor], Tensor], Backward]] = {
    nn.ReLU: (
        torch.relu_,
        lambda _, after, g: partial(_aten.threshold_backward.grad_input, g, after, 0, grad_input=g),
    ),
    nn.Tanh: (
        torch.tanh_,
        lambda _, after, g: partial(_aten.tanh_backward.grad_input, g, after, grad_input=g),
    ),
    nn.Sigmoid: (
        torch.sigmoid_,
        lambda _, after, g: partial(_aten.sigmoid_backward.grad_input, g, after, grad_input=g),
    ),
}
"""Activations whose derivatives (autograd's kernels) take the output."""

BY_INPUT: Mapping[type[nn.Module], Backward] = {
    nn.SiLU: lambda _, before, g: partial(_aten.silu_backward.grad_input, g, before, grad_input=g),
    nn.GELU: lambda layer, before, g: partial(
        _aten.gelu_backward.grad_input,
        g,
        before,
        approximate=layer.approximate,
        grad_input=g,
    ),
}
"""Activations whose derivatives (autograd's kernels) take the input."""

LARGE = 1 << 14
"""Products of at least this many numbers are written into the gradient rows directly.

Such a product is computed member by member; for smaller ones a batched product and a copy are
faster."""

PART = 128
"""Validation rows per forward pass, few enough for the CPU cache."""

FILLED = 32
"""A multiple of this many numbers fills whole vector registers, unrolled twice."""


@torch.no_grad()
def chain_of(model: nn.Module, inputs: Tensor) -> list[nn.Module] | None:
    """Return the layers of a model if it is such a chain for inputs [row, ...], else None."""
    layers = _flat(model)
    if layers is None or len({id(layer) for layer in layers}) < len(layers):
        return None
    layers = [layer for layer in layers if type(layer) is not nn.Identity]
    values = inputs[:1]
    for layer in layers:
        if not _takes(layer, values.shape[1:], len(inputs)):
            return None
        values = values if type(layer) is nn.Dropout else layer(values)
    return layers if layers and values.ndim == 2 else None


def _takes(layer: nn.Module, shape: torch.Size, rows: int) -> bool:
    """Return whether a layer is computed here for rows of such values."""
    kind = type(layer)
    if isinstance(layer, nn.Conv2d):
        return kind is nn.Conv2d and len(shape) == 3 and images.is_plain(layer, shape, rows)
    if kind in images.POOLS:
        return len(shape) == 3 and not getattr(layer, "return_indices", False)
    if isinstance(layer, nn.Unflatten):
        return kind is nn.Unflatten and len(shape) == 1 and layer.dim == 1
    if kind is nn.Linear:
        return len(shape) == 1
    return kind in {nn.Flatten, nn.Dropout, *IN_PLACE, *BY_INPUT}


def _flat(model: nn.Module) -> list[nn.Module] | None:
    """Return the layers of nested `nn.Sequential`s; None if a module has hooks."""
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


class DenseStack:
    """A `Stack` of chains of dense layers."""

    name = "layers"
    fills_rows = True

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[nn.Module],
        loss: Loss,
        own: Own,
        dropouts: tuple[Dropout, ...],
    ) -> None:
        self.layout = Layout.of(model)
        self.loss, self.own, self.dropouts = loss, own, dropouts
        paths = {layer: path for path, layer in model.named_modules()}
        self.layers = [(paths[layer], layer) for layer in layers]
        self._scratch: dict[object, Tensor] = {}

    def scratch(
        self, use: object, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return scratch memory for a use, zero at first.

        Blocks run in turn and share it, so it stays cached.
        """
        key = (use, tuple(shape), dtype, device)
        if key not in self._scratch:
            self._scratch[key] = torch.zeros(*shape, dtype=dtype, device=device)
        return self._scratch[key]

    def block(self, size: int, dtype: torch.dtype, device: torch.device) -> DenseBlock:
        """Return a block of `size` places, all zeros."""
        return DenseBlock(self, size, dtype, device)

    def release(self) -> None:
        """Release the scratch memory; blocks that exist keep theirs."""
        self._scratch.clear()


class DenseBlock:
    """A `Block` of members with dense layers."""

    def __init__(
        self, stack: DenseStack, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        layout = stack.layout
        self._stack = stack
        self.rows, self.gradients = (layout.rows(size, dtype, device) for _ in range(2))
        self.buffers: dict[str, Tensor] = {}
        self._owns = [stack.own] * size
        self.random = bool(stack.dropouts)
        self._masks = dropout.masks(stack.dropouts, size, dtype, device)
        self._parameters, self._theirs = (
            dict(zip(layout.names, layout.views(rows), strict=True))
            for rows in (self.rows, self.gradients)
        )
        self._step: tuple[Tensor, Tensor, Program, Tensor] | None = None
        self._evaluation: tuple[Program, list[Tensor]] | None = None

    def assign(self, place: int, own: Own) -> None:
        """Set the numbers and the loss of a member."""
        self._owns[place] = own

    def draw(self, place: int, generator: Generator) -> None:
        """Draw a member's dropout masks."""
        numbers = self._owns[place].numbers
        dropout.draw(self._stack.dropouts, self._masks, place, generator, numbers)

    @torch.no_grad()
    def train(self, inputs: Tensor, targets: Tensor, rows: Tensor | None) -> Tensor:
        """Compute `gradients` and return losses [place]; see `Block.train`."""
        if self._step is None:
            self._step = self._program(inputs, targets, rows)
        some, theirs, program, losses = self._step
        if rows is not None:
            flat = rows.view(-1)
            torch.index_select(inputs, 0, flat, out=some)
            torch.index_select(targets, 0, flat, out=theirs)
        for call in program:
            call()
        return losses

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses [place] and outputs [place, row, feature]."""
        every = len(self.rows)
        if self._evaluation is None:
            program: Program = []
            outputs: list[Tensor] = []
            for part in torch.split(inputs, PART):
                # more rows fill the registers, so that places round alike in blocks of any size
                more = part[:1].expand(-len(part) % FILLED, *part.shape[1:])
                shared = torch.cat([part, more]).movedim(0, -1).contiguous()
                shared = shared.expand(every, *shared.shape)
                calls, values, _ = self._forward(shared, training=False)
                outputs.append(
                    torch.empty_like(values)
                )  # the next part reuses the memory of `values`
                program += [*calls, partial(outputs[-1].copy_, values)]
            self._evaluation = program, outputs
        program, outputs = self._evaluation
        for call in program:
            call()
        values = torch.cat(outputs, dim=2)[:, :, : len(inputs)]  # [place, feature, row]
        theirs = targets.expand(every, *targets.shape)
        losses = self._stack.loss.forward(values, theirs, self._owns)
        return losses, values.transpose(1, 2).contiguous()

    def _program(
        self, inputs: Tensor, targets: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Program, Tensor]:
        """Return memory for a batch of this size, the program of a step, and its losses [place]."""
        every = len(self.rows)
        if rows is None:
            some, theirs = inputs, targets
            batch = tuple(
                data.contiguous().expand(every, *data.shape) for data in (inputs, targets)
            )
        else:
            some, theirs = (
                self._stack.scratch(use, (rows.numel(), *data.shape[1:]), data.dtype, data.device)
                for use, data in (("inputs", inputs), ("targets", targets))
            )
            batch = (
                some.view(*rows.shape, *some.shape[1:]),
                theirs.view(*rows.shape, *theirs.shape[1:]),
            )
        forward, outputs, undo = self._forward(batch[0].movedim(1, -1), training=True)
        judging, losses, gradient = self._stack.loss.program(outputs, batch[1], self._owns)
        backward: Program = []
        for layer in reversed(undo):
            gradient = layer(backward, gradient)
        return some, theirs, [*forward, *judging, *backward], losses

    def _forward(self, values: Tensor, *, training: bool) -> tuple[Program, Tensor, list[Undo]]:
        """Return the program of a forward pass, its output, and builders of the backward program.

        All values are [place, ..., row]. There is one builder per layer, from the first one with
        parameters on.
        """
        masks = dict(zip((use.path for use in self._stack.dropouts), self._masks, strict=True))
        calls: Program = []
        undo: list[Undo] = []
        trained = False  # whether a layer before has parameters
        free = False  # whether values may be overwritten: they are not data, nor needed later
        for index, (path, layer) in enumerate(self._stack.layers):
            kind, before = type(layer), values
            back: Undo
            if kind is nn.Linear:
                values, free = self._dense(calls, path, before, index), True
                back = partial(self._undo_dense, path, before, index, not trained)
            elif isinstance(layer, nn.Conv2d):
                values, columns = self._convolution(calls, path, layer, before, index)
                convolution = path, layer, columns, before.shape, index, not trained
                back, free = partial(self._undo_convolution, *convolution), True
            elif kind in images.POOLS:
                (values, back), free = self._pool(calls, layer, before, index), True
            elif kind in {nn.Flatten, nn.Unflatten}:
                shape = getattr(layer, "unflattened_size", (-1,))
                values = before.view(len(before), *shape, before.shape[-1])
                back = partial(_reshaped, before.shape)
            elif kind in IN_PLACE:
                function, derivative = IN_PLACE[kind]
                values = before if free else self._copy(calls, before, index)
                calls.append(partial(function, values))
                back, free = partial(_undo, partial(derivative, layer, values)), False
            elif kind in BY_INPUT:
                values, free = self._scratch("after", index, before.shape), True
                calls.append(partial(_put, layer, before, values))
                back = partial(_undo, partial(BY_INPUT[kind], layer, before))
            elif path in masks and training:
                values, mask = self._scratch("after", index, before.shape), masks[path]
                calls.append(partial(torch.mul, before, mask.movedim(1, -1), out=values))
                back, free = partial(_undo, partial(_multiplied, mask.movedim(1, -1))), True
            else:  # dropout that does nothing
                continue
            trained = trained or kind in {nn.Linear, nn.Conv2d}
            if trained:
                undo.append(back)
        return calls, values, undo

    def _dense(self, forward: Program, path: str, before: Tensor, index: int) -> Tensor:
        """Append a dense layer's calls to a program; return its output [place, feature, row]."""
        weight, bias = self._of(self._parameters, path)
        after = self._scratch("after", index, (*weight.shape[:2], before.shape[2]))
        forward.append(partial(torch.bmm, weight, before, out=after))
        if bias is not None:
            forward.append(partial(after.add_, bias.unsqueeze(2)))
        return after

    def _undo_dense(
        self,
        path: str,
        before: Tensor,
        index: int,
        first: bool,
        backward: Program,
        gradient: Tensor,
    ) -> Tensor:
        """Append a dense layer's backward calls; the first layer's input needs no gradient."""
        weight, _ = self._of(self._parameters, path)
        theirs, of_bias = self._of(self._theirs, path)
        if weight[0].numel() >= LARGE:
            backward.append(partial(torch.bmm, gradient, before.transpose(1, 2), out=theirs))
        else:
            product = self._scratch("weight", 0, weight.shape)
            backward.append(partial(torch.bmm, gradient, before.transpose(1, 2), out=product))
            backward.append(partial(theirs.copy_, product))
        if of_bias is not None:
            backward.append(partial(torch.sum, gradient, 2, out=of_bias))
        if first:
            return gradient
        made = self._scratch("before", index, before.shape)
        backward.append(partial(torch.bmm, weight.transpose(1, 2), gradient, out=made))
        return made

    def _copy(self, forward: Program, values: Tensor, index: int) -> Tensor:
        """Append a copy of values that must not be overwritten, and return it."""
        copied = self._scratch("copy", index, values.shape)
        forward.append(partial(copied.copy_, values))
        return copied

    def _convolution(
        self, forward: Program, path: str, layer: nn.Conv2d, before: Tensor, index: int
    ) -> tuple[Tensor, Tensor]:
        """Append a convolution's calls; return its output and columns [place, in, position]."""
        every, rows = len(before), before.shape[-1]
        shape = images.columns_of(layer, before.shape[1:-1])
        # zero where they are padding, which nothing writes to
        columns = self._scratch("columns", index, (every, *shape, rows))
        for ours, theirs in images.windows(layer, columns, before):
            forward.append(partial(ours.copy_, theirs))
        flat = columns.view(every, math.prod(shape[:3]), -1)
        after = self._dense(forward, path, flat, index)
        return after.view(every, -1, *shape[3:], rows), flat

    def _undo_convolution(
        self,
        path: str,
        layer: nn.Conv2d,
        columns: Tensor,
        image: torch.Size,  # [place, channel, height, width, row]
        index: int,
        first: bool,
        backward: Program,
        gradient: Tensor,
    ) -> Tensor:
        """Append a convolution's backward calls, as those of a dense layer from its columns."""
        flat = gradient.flatten(2)
        made = self._undo_dense(path, columns, index, first, backward, flat)
        if first:
            return gradient
        whole = self._scratch("image", index, image)
        backward.append(whole.zero_)
        shape = images.columns_of(layer, image[1:-1])
        for ours, theirs in images.windows(layer, made.view(image[0], *shape, image[-1]), whole):
            backward.append(partial(theirs.add_, ours))
        return whole

    def _pool(
        self, forward: Program, layer: nn.Module, before: Tensor, index: int
    ) -> tuple[Tensor, Undo]:
        """Append the call of a pooling layer; return its output and backward."""
        pool, gradient_of = images.POOLS[type(layer)]
        if not before.is_contiguous():  # data
            before = self._copy(forward, before, index)
        shape = layer(torch.zeros(before.shape[1:-1]).unsqueeze(0)).shape[1:]
        after = self._scratch("after", index, (len(before), *shape, before.shape[-1]))
        indices = self._stack.scratch(
            ("indices", index), after.shape, torch.int64, self.rows.device
        )
        forward.append(pool(layer, before, after, indices))

        def undo(backward: Program, gradient: Tensor) -> Tensor:
            made = self._scratch("image", index, before.shape)
            backward.append(gradient_of(layer, before, gradient, indices, made))
            return made

        return after, undo

    def _of(self, named: Mapping[str, Tensor], path: str) -> tuple[Tensor, Tensor | None]:
        """Return a layer's weight [place, out, in] and bias [place, out], if any."""
        weight = named[f"{path}.weight".lstrip(".")]
        return weight.view(*weight.shape[:2], -1), named.get(f"{path}.bias".lstrip("."))

    def _scratch(self, use: str, index: int, shape: Sequence[int]) -> Tensor:
        return self._stack.scratch((use, index), shape, self.rows.dtype, self.rows.device)


def _undo(
    derivative: Callable[[Tensor], Callable[[], object]], backward: Program, gradient: Tensor
) -> Tensor:
    """Append a call that changes a gradient in place."""
    backward.append(derivative(gradient))
    return gradient


def _reshaped(shape: torch.Size, _: Program, gradient: Tensor) -> Tensor:
    return gradient.view(shape)


def _multiplied(mask: Tensor, gradient: Tensor) -> Callable[[], object]:
    return partial(gradient.mul_, mask)


def _put(layer: nn.Module, before: Tensor, after: Tensor) -> None:
    after.copy_(layer(before))
