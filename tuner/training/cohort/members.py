"""The members of a cohort, and groups of members of one block during some steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from tuner.training import averaging
from tuner.training.batches import BatchOrder
from tuner.training.branches import LossMonitor
from tuner.training.cohort.layout import Block, Own
from tuner.training.cohort.optimizers import RowOptimizer, averaged
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
    average: Tensor | None  # of its parameters, [parameter], at which it is evaluated
    progress: Progress = NO_EVALUATIONS
    step: int = 0
    status: Status = Status.TRAINING
    segment: Segment = field(default_factory=lambda: Segment(0))
    buffers: dict[str, Tensor] | None = None  # at its end, since its block continues


def buffers_of(member: Member) -> dict[str, Tensor]:
    """Return copies of a member's buffers."""
    return {name: stacked[member.place].clone() for name, stacked in member.block.buffers.items()}


def average_of(member: Member) -> Tensor | None:  # [parameter]
    """Return the average at which a member is evaluated: its optimizer's, or its own; or None."""
    average = averaged(member.optimizer)
    return member.average if average is None else average


@contextmanager
def averages_in(block: Block, members: Sequence[Member]) -> Iterator[None]:
    """Let members have the averages of their parameters, if there are any, within the context."""
    averages = [(m.place, average_of(m)) for m in members]
    kept = [(place, average) for place, average in averages if average is not None]
    own = [block.rows[place].clone() for place, _ in kept]
    for place, average in kept:
        block.rows[place] = average
    try:
        yield
    finally:
        for (place, _), row in zip(kept, own, strict=True):
            block.rows[place] = row


class Group:
    """The members of one block that are in training, during `count` steps."""

    def __init__(
        self,
        block: Block,
        members: list[Member],
        count: int,
        frozen: tuple[slice, ...],  # parts of a row that are not trained
        ema: float | None,
    ) -> None:
        self.members = members
        self._frozen, self._ema = frozen, ema
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
        for part in self._frozen:
            block.gradients[:, part] = 0.0
        torch.linalg.vector_norm(block.gradients, dim=1, out=norms)
        if self._clip_norms is not None:
            # as torch.nn.utils.clip_grads_with_norm_ does, which also multiplies by a reciprocal
            shares = (norms + 1e-6).reciprocal_().mul_(self._clip_norms).clamp_(max=1.0)
            block.gradients.mul_(shares.unsqueeze(1))
        for step, rate in zip(self._steps, self._rates[index], strict=True):
            step(rate)
        if self._ema is not None:
            for member in self.members:
                if member.average is not None:
                    weight = averaging.weight_of(self._ema, member.step + index + 1)
                    member.average.lerp_(block.rows[member.place], weight)
