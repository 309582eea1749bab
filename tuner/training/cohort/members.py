"""The members of a cohort, and groups of members of one block during some steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from tuner.training.batches import BatchOrder
from tuner.training.branches import LossMonitor
from tuner.training.cohort.layout import Block, Own
from tuner.training.cohort.optimizers import RowOptimizer
from tuner.training.guard.monitor import GuardMonitor
from tuner.training.objective import NO_EVALUATIONS, Progress
from tuner.training.rate_source import RateSource
from tuner.training.trainer import Segment, Status, Task
from tuner.training.workloads import Measure


@dataclass(eq=False)
class Member:
    """A trial in a slot."""

    task: Task
    block: Block
    place: int  # in the block
    optimizer: RowOptimizer
    order: BatchOrder
    rate_source: RateSource
    guard: GuardMonitor
    monitor: LossMonitor  # the guard, but for a branch
    random: Generator  # for dropout
    clip_norm: float | None  # of gradients
    own: Own
    metrics: Mapping[str, Measure]
    progress: Progress = NO_EVALUATIONS
    step: int = 0
    status: Status = Status.TRAINING
    segment: Segment = field(default_factory=lambda: Segment(0))
    buffers: dict[str, Tensor] | None = None  # at its end, since its block continues


def buffers_of(member: Member) -> dict[str, Tensor]:
    """Return copies of a member's buffers."""
    return {name: stacked[member.place].clone() for name, stacked in member.block.buffers.items()}


class Group:
    """The members of one block that are in training, during `count` steps."""

    def __init__(self, block: Block, members: list[Member], count: int) -> None:
        self.members = members
        self._block = block
        self._clip_norms: Tensor | None = None  # [place]
        if any(member.clip_norm is not None for member in members):
            self._clip_norms = block.rows.new_full((len(block.rows),), math.inf)
            for member in members:
                if member.clip_norm is not None:
                    self._clip_norms[member.place] = member.clip_norm
        self.times: list[float] = []  # of the completed steps
        self.error: BaseException | None = None  # raised by the step after them
        self.losses = block.rows.new_empty(count, len(block.rows))  # [step, place]
        self.norms = torch.empty_like(self.losses)  # [step, place], of gradients before clipping
        self._measured = list(zip(self.losses, self.norms, strict=True))
        rates = [member.rate_source.rates(member.step, count) for member in members]
        self._rates = list(zip(*rates, strict=True))  # [step][member]
        self._steps = [member.optimizer.step for member in members]

    def update(self, index: int, inputs: Tensor, targets: Tensor, rows: Tensor | None) -> None:
        """Make an update of all members, on rows int64 [place, batch] of data [row, ...]."""
        block, (losses, norms) = self._block, self._measured[index]
        if block.random:
            for member in self.members:
                block.draw(member.place, member.random)
        losses.copy_(block.train(inputs, targets, rows))
        torch.linalg.vector_norm(block.gradients, dim=1, out=norms)
        if self._clip_norms is not None:
            # as torch.nn.utils.clip_grads_with_norm_ does, which also multiplies by a reciprocal
            shares = (norms + 1e-6).reciprocal_().mul_(self._clip_norms).clamp_(max=1.0)
            block.gradients.mul_(shares.unsqueeze(1))
        for step, rate in zip(self._steps, self._rates[index], strict=True):
            step(rate)
