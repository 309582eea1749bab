"""The batch of each step: rows of data in memory, and batches that all trials share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tuner.core.errors import WorkloadError
from tuner.training.workloads import Batch, Batches, Workload


class BatchOrder:
    """The rows that each step trains on, a function of seed and step without state to save.

    Every epoch has its own permutation, seeded by (seed, epoch), cut into whole batches; an
    incomplete last batch is left out. A batch as large as the data is all rows, in order.
    """

    def __init__(self, seed: int, rows: int, batch_size: int | str) -> None:
        self._seed = seed
        self._rows = rows
        self._size = min(int(batch_size), rows) if batch_size != "full" else rows
        self._epoch = -1
        self._permutation = torch.arange(rows)

    def rows(self, step: int) -> Tensor | None:  # int64 [batch]
        """Return the rows of the batch of a step, or None for all rows."""
        ahead = self.ahead(step, 1)
        return None if ahead is None else ahead[0]

    def ahead(self, step: int, count: int) -> Tensor | None:  # int64 [step, batch]
        """Return the rows of up to `count` steps within the epoch of `step`; None for all rows."""
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


# --- shared batches, for data that do not fit in memory


@dataclass(eq=False)
class _Reader:
    """A position in the epochs, with the batch at that step."""

    batches: Iterator[Batch]
    step: int
    batch: Batch


class BatchStream:
    """The batch of each step from a loader, the same for every trial.

    A loader only goes forward. Trials at the same step share one reader; a trial at another step
    gets its own reader, which reads from the beginning of the epoch.
    """

    def __init__(self, batches: Batches, rows: int, placed: Callable[[Tensor], Tensor]) -> None:
        self._batches, self._rows, self._placed = batches, rows, placed
        self._lengths: list[int] = []  # of the epochs read completely
        self._readers: list[_Reader] = []

    def fork(self) -> BatchStream:
        """Return a stream of the same batches with readers of its own."""
        forked = BatchStream(self._batches, self._rows, self._placed)
        forked._lengths = self._lengths
        return forked

    def batch(self, step: int) -> Batch:
        """Return the batch of a step. Raise `WorkloadError` if its size is wrong."""
        for reader in self._readers:
            if reader.step == step:
                return reader.batch
        for reader in self._readers:
            if reader.step == step - 1:
                reader.batch, reader.step = next(reader.batches), step
                return reader.batch
        batches = self._from(step)
        self._readers.append(_Reader(batches, step, next(batches)))
        return self._readers[-1].batch

    def keep(self, steps: Collection[int]) -> None:
        """Drop the readers that no trial at one of these steps continues."""
        wanted = {*steps, *(step - 1 for step in steps)}
        self._readers = [reader for reader in self._readers if reader.step in wanted]

    def _from(self, step: int) -> Iterator[Batch]:
        """Yield batches from a step on, skipping epochs of known length without reading them."""
        epoch = 0
        while epoch < len(self._lengths) and step >= self._lengths[epoch]:
            step -= self._lengths[epoch]
            epoch += 1
        while True:
            length = 0
            for inputs, targets in self._complete_batches(epoch):
                length += 1
                if step:
                    step -= 1
                else:
                    yield self._placed(inputs), self._placed(targets)
            if length == 0:
                raise WorkloadError(
                    f"batches: expected batches of {self._rows} rows in epoch {epoch}, got none; "
                    "a generator can be read once, so return a new one for each epoch"
                )
            if epoch == len(self._lengths):
                self._lengths.append(length)
            epoch += 1

    def _complete_batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch without an incomplete last one."""
        short = 0
        for inputs, targets in self._batches(epoch):
            if short or len(inputs) > self._rows or len(targets) != len(inputs):
                got = short or f"{len(inputs)} with {len(targets)} targets"
                raise WorkloadError(
                    f"batches: expected {self._rows} rows in each batch, as [training] batch_size "
                    f"says, and fewer only in the last of an epoch, got {got} in epoch {epoch}; "
                    "set batch_size to that of the loader"
                )
            if len(inputs) < self._rows:
                short = len(inputs)
            else:
                yield inputs, targets


def open_stream(
    workload: Workload, rows: int | str, placed: Callable[[Tensor], Tensor]
) -> BatchStream | None:
    """Return the stream of a workload with its own batches; None for data in memory.

    `rows` is the batch size; `placed` moves a tensor to the training device. Raise `WorkloadError`
    if the study does not set the batch size.
    """
    if workload.batches is None:
        return None
    if rows == "full":
        raise WorkloadError(
            'batches: expected [training] batch_size to be the rows of each batch, got "full"; set '
            "it to the loader's batch size"
        )
    if len(workload.train_inputs) < int(rows):
        raise WorkloadError(
            f"train_inputs: expected an example of {rows} rows or more, as [training] batch_size "
            f"says, beside batches, got {len(workload.train_inputs)}"
        )
    return BatchStream(workload.batches, int(rows), placed)
