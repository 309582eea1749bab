"""Parameters of one model as one flat row, and rows of many members as stacked parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from tuner.core.errors import WorkloadError

ALIGNED = 64
"""Rows begin at multiples of so many numbers: every member's lie alike to vector instructions."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each parameter of a model lies in a row."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """Lay the parameters out in the model's own order."""
        named = dict(model.named_parameters())
        return cls(names=tuple(named), shapes=tuple(p.shape for p in named.values()))

    @property
    def size(self) -> int:
        """Count the numbers of a row."""
        return sum(math.prod(shape) for shape in self.shapes)

    def rows(self, members: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Allocate rows of zeros, [member, parameter]."""
        stride = math.ceil(self.size / ALIGNED) * ALIGNED
        return torch.zeros(members, stride, dtype=dtype, device=device)[:, : self.size]

    def views(self, rows: Tensor) -> list[Tensor]:  # rows: [member, parameter]
        """See rows as stacked parameters, each [member, *shape] and of the rows' memory."""
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = torch.split(rows, sizes, dim=1)
        return [
            part.view(len(rows), *shape) for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def row(self, model: nn.Module) -> Tensor:  # [parameter]
        """Copy a model's parameters into a row."""
        found = Layout.of(model)
        if found != self:
            raise WorkloadError(
                f"expected a model with parameters {self.said()}, as of other seeds, got "
                f'{found.said()}; set trainer = "reference"'
            )
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def said(self) -> str:
        """List the parameters for people."""
        pairs = zip(self.names, self.shapes, strict=True)
        return ", ".join(f"{name} {tuple(shape)}" for name, shape in pairs)


class Block(Protocol):
    """A fixed number of members whose parameters are stacked: what is computed in one go.

    Invariants, for every implementation:
    - a block's size follows from the workload and the study alone, so that every kernel is called
      with the same shapes however many members there are: none of them rounds another way;
    - what a member gets depends on its row, its buffers, its masks and its data alone, not on its
      place in the block nor on what is at the other places, non-finite numbers included.
    """

    rows: Tensor  # [place, parameter], the members' parameters
    gradients: Tensor  # [place, parameter], as of the last call of `train`
    buffers: dict[str, Tensor]  # each [place, ...], the members' buffers
    random: bool  # whether there is anything to draw

    def draw(self, place: int, generator: Generator) -> None:
        """Draw what is random in a member's next training step."""

    def train(self, inputs: Tensor, targets: Tensor, rows: Tensor | None) -> Tensor:
        """Compute losses [place] and `gradients` at rows int64 [place, row] of the data, or at all.

        The number of rows is the same at every call, and without rows, so is the data [row, ...].
        The losses hold until the next call.
        """

    def evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Give losses [place] and outputs [place, row, ...] for data [row, ...], all of it."""


class Stack(Protocol):
    """A way to compute blocks of one workload's model."""

    name: str  # for the fingerprint of snapshots
    layout: Layout

    def block(self, size: int, dtype: torch.dtype, device: torch.device) -> Block:
        """Allocate a block of so many members, all zeros."""
