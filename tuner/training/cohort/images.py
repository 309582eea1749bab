"""Convolutions and pooling of stacked images [place, channel, height, width, row].

With rows last, all that moves is contiguous: a convolution is a copy of the image for each position
of its kernel and one batched matrix product, as of a dense layer. A group of channels for each
member, which is what `vmap` makes of it, takes twice as long or more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

_aten = torch.ops.aten

COLUMNS = 1 << 20
"""Most numbers of the columns of one member; the memory of larger images is left to `vmap`."""

Call: TypeAlias = Callable[[], object]


def is_plain(layer: nn.Conv2d, image: torch.Size, rows: int) -> bool:
    """Return whether `columns_of` can be used for rows of an image [channel, height, width]."""
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and type(layer.padding) is tuple
    return plain and math.prod(columns_of(layer, image)) * rows <= COLUMNS


def columns_of(layer: nn.Conv2d, image: torch.Size) -> tuple[int, ...]:
    """Return the shape of the columns [channel, y, x, height, width] of an image.

    The image is [channel, height, width]; y and x are positions in the kernel, and the last two
    dimensions those of the layer's output.
    """
    sizes = [
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, (pad, dilation, kernel, stride) in zip(image[1:], _ways(layer), strict=True)
    ]
    return (image[0], *layer.kernel_size, *sizes)


def _ways(layer: nn.Conv2d) -> list[tuple[int, int, int, int]]:
    """Return padding, dilation, size of the kernel and stride of each dimension."""
    padding = [int(pad) for pad in layer.padding]
    return list(zip(padding, layer.dilation, layer.kernel_size, layer.stride, strict=True))


def windows(layer: nn.Conv2d, columns: Tensor, image: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return equal parts of columns and of the image; other columns are padding, and so zero.

    Columns are [place, channel, y, x, height, width, row].
    """
    sizes = zip(_ways(layer), columns.shape[4:6], image.shape[2:4], strict=True)
    ways = [
        [_overlap(tap * dilation - pad, stride, outputs, inputs) for tap in range(kernel)]
        for (pad, dilation, kernel, stride), outputs, inputs in sizes
    ]
    return [
        (columns[:, :, y, x, above, left], image[:, :, below, right])
        for (y, (above, below)), (x, (left, right)) in itertools.product(*map(enumerate, ways))
    ]


def _overlap(first: int, stride: int, outputs: int, inputs: int) -> tuple[slice, slice]:
    """Return the outputs that see an input, and those inputs; output 0 is at the input `first`."""
    begin = max(0, -(first // stride))
    end = max(begin, min(outputs, (inputs - 1 - first) // stride + 1))
    at = first + begin * stride
    return slice(begin, end), slice(at, at + (end - begin) * stride, stride)


def _channels_last(images: Tensor) -> Tensor:
    """Return contiguous images as torch's [image, channel, height, width], rows as channels."""
    return images.flatten(0, 1).permute(0, 3, 1, 2)


def _max_pool(layer: nn.MaxPool2d, before: Tensor, after: Tensor, indices: Tensor) -> Call:
    settings = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode
    out, places = _channels_last(after), _channels_last(indices)
    images = _channels_last(before)
    return partial(_aten.max_pool2d_with_indices.out, images, *settings, out=out, indices=places)


def _max_pool_back(
    layer: nn.MaxPool2d, before: Tensor, after: Tensor, indices: Tensor, made: Tensor
) -> Call:
    settings = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode
    back = _aten.max_pool2d_with_indices_backward.grad_input
    images = [_channels_last(each) for each in (after, before)]
    places = _channels_last(indices)
    return partial(back, *images, *settings, places, grad_input=_channels_last(made))


def _average_pool(layer: nn.AvgPool2d, before: Tensor, after: Tensor, _: Tensor) -> Call:
    images, out = _channels_last(before), _channels_last(after)
    return partial(_aten.avg_pool2d.out, images, *_averaging(layer), out=out)


def _average_pool_back(
    layer: nn.AvgPool2d, before: Tensor, after: Tensor, _: Tensor, made: Tensor
) -> Call:
    images = [_channels_last(each) for each in (after, before)]
    back = _aten.avg_pool2d_backward.grad_input
    return partial(back, *images, *_averaging(layer), grad_input=_channels_last(made))


def _averaging(layer: nn.AvgPool2d) -> tuple[Any, ...]:
    counted = layer.ceil_mode, layer.count_include_pad, layer.divisor_override
    return (layer.kernel_size, layer.stride, layer.padding, *counted)


POOLS: Mapping[type[nn.Module], tuple[Callable[..., Call], Callable[..., Call]]] = {
    nn.MaxPool2d: (_max_pool, _max_pool_back),
    nn.AvgPool2d: (_average_pool, _average_pool_back),
}
"""Pooling layers, with calls that pool images and that give back the gradient of the pooled ones.

The first take the layer, the images, the pooled ones and int64 memory of their shape; the second
the gradient instead of the pooled ones, and the gradient of the images at last."""
