"""What each member of a block trains on: its own rows of data in memory, or a loader's batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from tuner.training.cohort.members import Member
from tuner.training.batches import BatchStream

Feed: TypeAlias = Callable[[int], tuple[Tensor, Tensor, Tensor | None]]
"""From the index of a step to data [row, ...], and rows int64 [place, batch]; None: all rows."""


class Source(Protocol):
    """Where members' batches come from."""

    block_by_block: bool
    """Whether blocks may train some steps one after the other, or must go step by step."""

    def feed(self, members: Sequence[Member], places: int, count: int) -> Feed:
        """Prepare so many steps of members of one block, from where they are now."""


class InMemory:
    """Data in memory; a `Source`. Each member goes through them in its own order."""

    block_by_block = True

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self._inputs, self._targets = inputs, targets

    def feed(self, members: Sequence[Member], places: int, count: int) -> Feed:
        """Draw the rows of all steps at once."""
        drawn = [_rows(member, count) for member in members]
        if any(rows is None for rows in drawn):
            return lambda _: (self._inputs, self._targets, None)
        found = [rows for rows in drawn if rows is not None]
        nobody = torch.zeros_like(found[0])  # at a place that is free, any rows will do
        at = {member.place: rows for member, rows in zip(members, found, strict=True)}
        every = torch.stack([at.get(place, nobody) for place in range(places)], dim=1)
        every = every.to(self._inputs.device)  # [step, place, batch]
        return lambda index: (self._inputs, self._targets, every[index])


class FromLoader:
    """A loader's batches; a `Source`. Members at the same step train on the same batch."""

    block_by_block = False  # one that runs ahead would take the batches away from the others

    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream

    def feed(self, members: Sequence[Member], places: int, count: int) -> Feed:
        """Put the batches of all steps that members are at below each other."""

        def feed(index: int) -> tuple[Tensor, Tensor, Tensor]:
            steps = sorted({member.step + index for member in members})
            batches = [self._stream.batch(step) for step in steps]
            inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
            size = len(batches[0][0])
            first = [0] * places
            for member in members:
                first[member.place] = size * steps.index(member.step + index)
            begins = torch.tensor(first, device=inputs.device)
            return inputs, targets, begins[:, None] + torch.arange(size, device=inputs.device)

        return feed


def _rows(member: Member, count: int) -> Tensor | None:  # int64 [step, batch]
    """Give the rows that a member trains on; nothing where they are all of them."""
    parts, done = [], 0
    while done < count:
        ahead = member.order.ahead(member.step + done, count - done)
        if ahead is None:
            return None
        parts.append(ahead)
        done += len(ahead)
    return torch.cat(parts)
