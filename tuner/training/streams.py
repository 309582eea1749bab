"""Batches that a workload's loader gives, where the data do not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from torch import Tensor

from tuner.config import StudySpec
from tuner.core.errors import WorkloadError
from tuner.training.workloads import Batch, Batches, Workload


@dataclass(eq=False)
class _Reader:
    """A way through the epochs, with the batch where it is now."""

    batches: Iterator[Batch]
    step: int
    batch: Batch


class Stream:
    """The batch of each step, the same for every trial; read once for all who are at that step.

    A loader goes forwards only: who asks for a step that nobody has come to reads from the
    beginning of the epoch, so trials that start together cost one reading, and others one each.
    """

    def __init__(self, batches: Batches, rows: int, placed: Callable[[Tensor], Tensor]) -> None:
        self._batches, self._rows, self._placed = batches, rows, placed
        self._lengths: list[int] = []  # of the epochs that were read to their ends
        self._readers: list[_Reader] = []

    def batch(self, step: int) -> Batch:
        """Give the batch of a step. Raises `WorkloadError` for one of another size."""
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
        """Close what none of the trials at these steps goes on with."""
        wanted = {*steps, *(step - 1 for step in steps)}
        self._readers = [reader for reader in self._readers if reader.step in wanted]

    def _from(self, step: int) -> Iterator[Batch]:
        """Read from a step on; epochs whose lengths are known are passed over unread."""
        epoch = 0
        while epoch < len(self._lengths) and step >= self._lengths[epoch]:
            step -= self._lengths[epoch]
            epoch += 1
        while True:
            length = 0
            for inputs, targets in self._whole(epoch):
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

    def _whole(self, epoch: int) -> Iterator[Batch]:
        """Read an epoch without its ragged rest."""
        short = 0
        for inputs, targets in self._batches(epoch):
            if short or len(inputs) > self._rows or len(targets) != len(inputs):
                got = short or f"{len(inputs)} with {len(targets)} targets"
                raise WorkloadError(
                    f"batches: expected {self._rows} rows in each batch, as [training] batch_size "
                    f"says, and fewer in the last of an epoch alone, got {got} in epoch {epoch}; "
                    "set batch_size to what the loader gives"
                )
            if len(inputs) < self._rows:
                short = len(inputs)
            else:
                yield inputs, targets


def stream(
    workload: Workload, spec: StudySpec, placed: Callable[[Tensor], Tensor]
) -> Stream | None:
    """Open the batches of a workload that has its own; `placed` puts data where they are trained.

    Raises `WorkloadError` when the study does not say how large they are.
    """
    if workload.batches is None:
        return None
    rows = spec.training.batch_size
    if rows == "full":
        raise WorkloadError(
            'batches: expected [training] batch_size to be the rows of each, got "full"; set it to '
            "what the loader gives"
        )
    if len(workload.train_inputs) < int(rows):
        raise WorkloadError(
            f"train_inputs: expected an example of {rows} rows or more, as [training] batch_size "
            f"says, beside batches, got {len(workload.train_inputs)}"
        )
    return Stream(workload.batches, int(rows), placed)
