"""Dropout of stacked members: each member's mask is drawn from its own random stream.

Under `vmap`, torch draws for all members at once, so a mask would depend on the member's place and
on their number. Here masks are drawn before the step, with the same call as `nn.Dropout` and in the
order in which the model uses its layers, so they equal the reference trainer's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from tuner.training.workloads import seeded


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """One use of a dropout layer in a forward pass."""

    path: str  # of the layer in the model
    p: float  # probability of dropping a value, unless a member has its own
    shape: torch.Size  # of its input, rows first

    @property
    def number(self) -> str:
        """The name of its probability among the numbers of a member."""
        return f"{self.path}.p"


def find_layers(
    model: nn.Module, inputs: Tensor, numbers: Set[str] = frozenset()
) -> tuple[Dropout, ...]:
    """Return the dropout layers in the order of use in a forward pass of `inputs` [row, ...].

    Layers that never drop a value are left out. `numbers` are those that members have of their own.
    """
    probe = copy.deepcopy(model).train()
    uses: list[Dropout] = []
    for path, layer in probe.named_modules():
        if type(layer) is nn.Dropout and (layer.p > 0.0 or f"{path}.p" in numbers):

            def note(layer: nn.Dropout, arguments: tuple[Tensor], path: str = path) -> None:
                uses.append(Dropout(path=path, p=layer.p, shape=arguments[0].shape))

            layer.register_forward_pre_hook(note)
    with seeded(0), torch.no_grad():
        probe(inputs)
    return tuple(uses)


def masks(
    layers: tuple[Dropout, ...], members: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Return zero masks for each layer, [member, row, ...]."""
    return [torch.zeros(members, *layer.shape, dtype=dtype, device=device) for layer in layers]


def draw(
    layers: tuple[Dropout, ...],
    masks: list[Tensor],
    member: int,
    own: Generator,
    numbers: Mapping[str, float],
) -> None:
    """Draw a member's masks of a step into `masks`, each [member, row, ...]."""
    for layer, mask in zip(layers, masks, strict=True):
        p = numbers.get(layer.number, layer.p)
        if 0.0 < p < 1.0:
            mask[member].bernoulli_(1.0 - p, generator=own).div_(1.0 - p)
        else:  # `nn.Dropout` draws nothing
            mask[member] = 1.0 - p


class MaskLayer(nn.Module):
    """Replacement of a dropout layer; its mask is a buffer."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `inputs` [row, ...] times the mask."""
        return inputs * self.mask


def with_mask_layers(model: nn.Module, layers: tuple[Dropout, ...]) -> nn.Module:
    """Return a copy of a model with mask layers for dropout; layer "a.b" has buffer "a.b.mask"."""
    made = copy.deepcopy(model)
    for layer in layers:
        parent, _, name = layer.path.rpartition(".")
        setattr(made.get_submodule(parent), name, MaskLayer())
    return made
