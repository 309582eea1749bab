"""The training data of each member of a block: rows of data in memory, or batches of a loader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from tuner.training.batches import BatchStream
from tuner.training.cohort.members import Member

Feed: TypeAlias = Callable[[int], tuple[Tensor, Tensor, Tensor | None]]
"""Map the index of a step to inputs and targets [row, ...] and rows int64 [place, batch].

No rows means all rows for every member."""


class Source(Protocol):
    """A source of batches for members."""

    block_by_block: bool
    """Whether one block may make several steps before the next block, or blocks go in lockstep."""

    def feed(self, members: Sequence[Member], places: int, count: int) -> Feed:
        """Return the batches of the next `count` steps of the members of one block."""


class InMemory:
    """A `Source` of data in memory; each member has its own order of rows."""

    block_by_block = True

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self._inputs, self._targets = inputs, targets

    def feed(self, members: Sequence[Member], places: int, count: int) -> Feed:
        """Return rows drawn for all steps at once."""
        drawn = [_rows(member, count) for member in members]
        if any(rows is None for rows in drawn):
            return lambda _: (self._inputs, self._targets, None)
        found = [rows for rows in drawn if rows is not None]
        unused = torch.zeros_like(found[0])  # any rows serve for a free place
        by_place = {member.place: rows for member, rows in zip(members, found, strict=True)}
        stacked = torch.stack([by_place.get(place, unused) for place in range(places)], dim=1)
        stacked = stacked.to(self._inputs.device)  # int64 [step, place, batch]
        return lambda index: (self._inputs, self._targets, stacked[index])


class FromLoader:
    """A `Source` of a loader's batches; members at the same step train on the same batch."""

    block_by_block = False  # a block running ahead would consume the batches of the others

    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream

    def feed(self, members: Sequence[Member], places: int, count: int) -> Feed:
        """Concatenate the batches of all the steps at which members are."""

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
    """Return the rows of a member's next `count` steps, or None for all rows."""
    parts, done = [], 0
    while done < count:
        ahead = member.order.ahead(member.step + done, count - done)
        if ahead is None:
            return None
        parts.append(ahead)
        done += len(ahead)
    return torch.cat(parts)
