"""The stacking contract: a model's parameters as a flat row, and blocks of rows of many members."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from tuner.core.errors import WorkloadError
from tuner.training.workloads import Measure

ALIGNED = 64
"""Rows start at multiples of this many numbers, so all have the same alignment."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Consecutive numbers of a row that are trained alike."""

    place: slice
    multiplier: float | None  # of the rate; None: frozen


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Positions of a model's parameters in a row."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """Return the layout of a model's parameters, in the model's order."""
        named = dict(model.named_parameters())
        return cls(names=tuple(named), shapes=tuple(p.shape for p in named.values()))

    @property
    def size(self) -> int:
        """Return the length of a row."""
        return sum(math.prod(shape) for shape in self.shapes)

    def rows(self, members: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return rows of zeros, [member, parameter]."""
        stride = math.ceil(self.size / ALIGNED) * ALIGNED
        return torch.zeros(members, stride, dtype=dtype, device=device)[:, : self.size]

    def views(self, rows: Tensor) -> list[Tensor]:  # rows: [member, parameter]
        """Return views of rows as stacked parameters, each [member, *shape]."""
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = torch.split(rows, sizes, dim=1)
        return [
            part.view(len(rows), *shape) for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def parts(self, multipliers: Sequence[float | None]) -> tuple[Part, ...]:
        """Return the parts of a row, from the multiplier of each parameter; None: frozen."""
        parts, last = [], 0
        own = zip(self.shapes, multipliers, strict=True)
        for multiplier, several in itertools.groupby(own, key=lambda each: each[1]):
            first, last = last, last + sum(math.prod(shape) for shape, _ in several)
            parts.append(Part(place=slice(first, last), multiplier=multiplier))
        return tuple(parts)

    def row(self, model: nn.Module) -> Tensor:  # [parameter]
        """Return a copy of a model's parameters. Raise `WorkloadError` if shapes differ."""
        found = dict(model.named_parameters())
        if tuple(found) != self.names or tuple(p.shape for p in found.values()) != self.shapes:
            raise WorkloadError(
                f"expected the same parameters for every seed, {self.describe()}, got "
                f'{Layout.of(model).describe()}; set trainer = "reference"'
            )
        return torch.cat([p.detach().reshape(-1) for p in found.values()])

    def describe(self) -> str:
        """Return names and shapes of the parameters, for messages."""
        pairs = zip(self.names, self.shapes, strict=True)
        return ", ".join(f"{name} {tuple(shape)}" for name, shape in pairs)


@dataclass(frozen=True, kw_only=True, eq=False)
class Own:
    """What a member has of its own beside parameters, buffers and data."""

    numbers: Mapping[str, float]  # attributes of modules that differ between members, by path
    loss: Measure


class Block(Protocol):
    """A fixed number of places for members whose parameters are stacked and computed together.

    Invariants, for every implementation:
    - a block's size depends on the workload and the study alone, so kernels are called with the
      same shapes, and round in the same way, however many members there are;
    - a member's result depends on its row, its buffers, its numbers and loss, its masks and its
      data alone, not on its place in the block nor on the contents of other places, non-finite
      numbers included.
    """

    rows: Tensor  # [place, parameter]
    gradients: Tensor  # [place, parameter], from the last call of `train`
    buffers: dict[str, Tensor]  # of the model, each [place, ...]
    random: bool  # whether training steps draw random numbers

    def assign(self, place: int, own: Own) -> None:
        """Set the numbers and the loss of the member at a place."""

    def draw(self, place: int, generator: Generator) -> None:
        """Draw the random numbers of a member's next training step."""

    def train(self, inputs: Tensor, targets: Tensor, rows: Tensor | None) -> Tensor:
        """Compute `gradients` and return losses [place], at rows int64 [place, batch] of the data.

        `inputs` and `targets` are [row, ...]; without `rows` every member trains on all of them.
        The batch size is the same at every call, and without rows the data are too. The losses are
        overwritten by the next call.
        """

    def evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses [place] and outputs [place, row, ...] on all of the data [row, ...]."""


class Stack(Protocol):
    """A method to compute blocks of one workload's model."""

    name: str  # in the fingerprint of snapshots
    layout: Layout
    fills_rows: bool  # whether validation rows are computed in multiples that fill registers

    def block(self, size: int, dtype: torch.dtype, device: torch.device) -> Block:
        """Return a block of `size` places, all zeros."""

    def release(self) -> None:
        """Release memory that only earlier blocks have used."""
