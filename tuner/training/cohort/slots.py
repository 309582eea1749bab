"""Where the members of a cohort sit: in blocks that are as few and as small as may be.

A block takes as long for one member as for all of its places. As a member is bitwise the same in a
block of any size, it may be moved: at the end of a study, when no trial is left for a free slot,
those that still train sit closer together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tuner.training.cohort import optimizers
from tuner.training.cohort.eligibility import Plan
from tuner.training.cohort.layout import Block
from tuner.training.cohort.members import Member


class SlotAllocator:
    """The blocks of a cohort, and who sits where."""

    def __init__(self, plan: Plan, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        """Allocate places for all slots: if memory is short, it is now."""
        self._plan, self._slots, self._dtype, self._device = plan, slots, dtype, device
        self._unused: list[Block] = []
        self.blocks = [self._block(size) for size in plan.sizes_for(slots)]

    def free(self, members: Sequence[Member]) -> tuple[Block, int]:
        """Find a place where none of the members sits."""
        taken = {(id(member.block), member.place) for member in members}
        for block in self.blocks:
            for place in range(len(block.rows)):
                if (id(block), place) not in taken:
                    return block, place
        # places were given up when there were fewer members
        missing = self._slots - sum(len(block.rows) for block in self.blocks)
        self.blocks.append(self._block(self._plan.sizes_for(max(1, missing))[0]))
        return self.blocks[-1], 0

    def gather(self, members: Sequence[Member]) -> None:
        """Let the members sit closer together, if that frees places that would be computed."""
        wanted = self._plan.sizes_for(len(members))
        if sum(len(block.rows) for block in self.blocks) <= sum(wanted):
            return
        before = sorted(self.blocks, key=lambda block: -sum(m.block is block for m in members))
        self._unused += before
        self.blocks = []
        for size in wanted:
            self.blocks.append(self._block(size))
        sitting = [member for member in members if member.block in self.blocks]
        for member in members:
            if member not in sitting:
                _move(member, *self.free(sitting))
                sitting.append(member)

    def _block(self, size: int) -> Block:
        """Take a block that is not used, those with most members first, or allocate one."""
        for block in self._unused:
            if len(block.rows) == size:
                self._unused.remove(block)
                return block
        return self._plan.stack.block(size, self._dtype, self._device)


def _move(member: Member, block: Block, place: int) -> None:
    """Let a member sit elsewhere."""
    block.rows[place] = member.block.rows[member.place]
    for name, buffer in block.buffers.items():
        buffer[place] = member.block.buffers[name][member.place]
    member.block.rows[member.place] = 0.0
    state = member.optimizer.state()
    member.block, member.place = block, place
    member.optimizer = optimizers.make(member.task.params, block.rows[place], block.gradients[place])
    optimizers.restore(member.optimizer, state)
