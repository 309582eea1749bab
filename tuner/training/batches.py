"""Batches: which rows each step trains on, and how a batch is cut where memory is short."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class BatchOrder:
    """Which rows each step trains on, derived from the step alone, so that nothing is to be saved.

    Every epoch is a permutation of its own, seeded by (seed, epoch), cut into whole batches; the
    ragged rest is left out of that epoch. A batch as large as the data is all rows, in order.
    """

    def __init__(self, seed: int, rows: int, batch_size: int | str) -> None:
        self._seed = seed
        self._rows = rows
        self._size = min(int(batch_size), rows) if batch_size != "full" else rows
        self._epoch = -1
        self._permutation = torch.arange(rows)

    def rows(self, step: int) -> Tensor | None:  # int64 [batch]; None stands for all rows
        """Give the rows of the batch of a step."""
        ahead = self.ahead(step, 1)
        return None if ahead is None else ahead[0]

    def ahead(self, step: int, count: int) -> Tensor | None:  # int64 [step, batch]
        """Give the rows of some steps, `count` of them or as many as there are in this epoch."""
        if self._size == self._rows:
            return None
        batches = self._rows // self._size
        epoch, batch = divmod(step, batches)
        if epoch != self._epoch:
            mixed = np.random.SeedSequence([self._seed, epoch]).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(mixed[0]))
            self._permutation = torch.randperm(self._rows, generator=generator)
            self._epoch = epoch
        end = min(batch + count, batches)
        return self._permutation[batch * self._size : end * self._size].view(-1, self._size)


def micro_batches(
    inputs: Tensor,  # [row, ...]
    targets: Tensor,  # [row, ...]
    parts: int,
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Cut a batch into so many parts, or into single rows; each with its share of the rows.

    Mean losses of the parts, weighted by their shares, add up to the mean loss of the batch.
    """
    rows = len(inputs)
    cut = min(parts, rows)
    for some, theirs in zip(inputs.tensor_split(cut), targets.tensor_split(cut), strict=True):
        yield some, theirs, len(some) / rows
