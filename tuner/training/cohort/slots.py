"""The places of a cohort's members: in blocks that are as few and as small as possible.

A block takes as long for one member as for all of its places. A member is bitwise the same in a
block of any size, so it may be moved: at the end of a study, when no trial is left for a free slot,
the remaining members are compacted into fewer blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tuner.training.cohort import optimizers
from tuner.training.cohort.eligibility import Plan
from tuner.training.cohort.layout import Block, Part
from tuner.training.cohort.members import Member


class SlotAllocator:
    """Allocate blocks and assign their places to members."""

    def __init__(self, plan: Plan, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        """Allocate blocks for all slots, so that a lack of memory shows at once.

        Without slots, blocks are allocated for the members that come.
        """
        self._plan, self._slots, self._dtype, self._device = plan, slots, dtype, device
        self._unused: list[Block] = []
        self.blocks = [self._block(size) for size in plan.sizes_for(slots)]

    def free(self, members: Sequence[Member]) -> tuple[Block, int]:
        """Return a place that none of the members occupies."""
        taken = {(id(member.block), member.place) for member in members}
        for block in self.blocks:
            for place in range(len(block.rows)):
                if (id(block), place) not in taken:
                    return block, place
        # earlier compaction has dropped blocks
        missing = self._slots - sum(len(block.rows) for block in self.blocks)
        if missing > 0:
            size = self._plan.sizes_for(missing)[0]
        else:
            size = self._plan.sizes_for(len(members) + 1)[-1]
        self.blocks.append(self._block(size))
        return self.blocks[-1], 0

    def compact(self, members: Sequence[Member]) -> None:
        """Move members into fewer or smaller blocks if possible."""
        wanted = self._plan.sizes_for(len(members))
        if self._plan.cost(len(block.rows) for block in self.blocks) <= self._plan.cost(wanted):
            return
        before = sorted(self.blocks, key=lambda block: -sum(m.block is block for m in members))
        self._unused += before
        self.blocks = []
        for size in wanted:
            self.blocks.append(self._block(size))
        placed = [member for member in members if member.block in self.blocks]
        for member in members:
            if member not in placed:
                _move(member, *self.free(placed), self._plan.parts)
                placed.append(member)

    def _block(self, size: int) -> Block:
        """Return an unused block of this size, fullest first, or allocate one."""
        for block in self._unused:
            if len(block.rows) == size:
                self._unused.remove(block)
                return block
        return self._plan.stack.block(size, self._dtype, self._device)


def _move(member: Member, block: Block, place: int, parts: Sequence[Part]) -> None:
    """Move a member to another place, with parameters, buffers and optimizer state."""
    block.rows[place] = member.block.rows[member.place]
    for name, buffer in block.buffers.items():
        buffer[place] = member.block.buffers[name][member.place]
    block.assign(place, member.own)
    member.block.rows[member.place] = 0.0
    state = member.optimizer.state()
    member.block, member.place = block, place
    member.optimizer = optimizers.make(
        member.task.params, block.rows[place], block.gradients[place], parts
    )
    optimizers.restore(member.optimizer, state)
