"""Dropout of stacked members: each one's mask is drawn from its own stream of random numbers.

Under `vmap`, torch draws for all members at once, so that a mask would depend on the member's place
and on how many there are. Here a mask is drawn before the step, with the call that `nn.Dropout`
makes and in the order in which the model uses its layers: the masks are the reference trainer's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from tuner.training.workloads import seeded


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """A layer of dropout, as one member uses it in one step."""

    path: str  # of the layer in the model
    kept: float  # probability
    shape: torch.Size  # of its input, rows first


def found(model: nn.Module, inputs: Tensor) -> tuple[Dropout, ...]:
    """List the layers of dropout in the order in which a forward pass of `inputs` uses them."""
    probe = copy.deepcopy(model).train()
    uses: list[Dropout] = []
    for path, layer in probe.named_modules():
        if type(layer) is nn.Dropout and 0.0 < layer.p < 1.0:
            kept = 1.0 - layer.p

            def note(
                _: nn.Module, arguments: tuple[Tensor], path: str = path, kept: float = kept
            ) -> None:
                uses.append(Dropout(path=path, kept=kept, shape=arguments[0].shape))

            layer.register_forward_pre_hook(note)
    with seeded(0), torch.no_grad():
        probe(inputs)
    return tuple(uses)


def masks(
    layers: tuple[Dropout, ...], members: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Allocate the masks of each layer, [member, row, ...]."""
    return [torch.zeros(members, *layer.shape, dtype=dtype, device=device) for layer in layers]


def draw(layers: tuple[Dropout, ...], masks: list[Tensor], member: int, own: Generator) -> None:
    """Draw a member's masks for a step."""
    for layer, mask in zip(layers, masks, strict=True):
        mask[member].bernoulli_(layer.kept, generator=own).div_(layer.kept)


class Masked(nn.Module):
    """Stands for a layer of dropout, with a mask that is given to it as a buffer."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        """Drop what the mask says."""
        return inputs * self.mask


def masked(model: nn.Module, layers: tuple[Dropout, ...]) -> nn.Module:
    """Copy a model, with masks for its layers of dropout; mask of "a.b" is buffer "a.b.mask"."""
    made = copy.deepcopy(model)
    for layer in layers:
        parent, _, name = layer.path.rpartition(".")
        setattr(made.get_submodule(parent), name, Masked())
    return made
