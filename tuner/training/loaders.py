"""Loaders of a workload: batches whose order and random numbers follow from a trial's seed.

A loader is anything that is iterated anew for each epoch, such as torch's `DataLoader`. Two kinds
are distinguished:

- A `DataLoader` of a map-style dataset is rebuilt with the same settings. The random numbers of a
  batch are seeded by the trial's seed, the epoch and the number of the batch, in whichever process
  the batch is made. A batch is therefore the same for any number of workers, in workers that
  persist, and after a resume, which draws the order anew and loads no batch that was trained on.
- Everything else is read as it is. Random numbers are seeded at the beginning of an epoch, and a
  resume reads the batches before its position.

Order and augmentation are reproducible if they draw from the global generators of torch, numpy or
Python, or from the `generator` of a loader or sampler. A sampler with `set_epoch` gets the epoch.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tuner.core.errors import WorkloadError
from tuner.training import random_state

Loader: TypeAlias = Iterable[Any]
"""Batches of any structure, iterated anew for each epoch."""

LoaderOfSize: TypeAlias = Callable[[int], Loader]
"""Map a batch size to a loader of such batches."""

ORDERED_AHEAD = 64
"""Batches whose rows are drawn at a time, as changing global states takes longer than drawing."""

_CPU = torch.device("cpu")
_END = object()


def is_of_size(train: Loader | LoaderOfSize) -> bool:
    """Return whether a loader is given as a function of the batch size."""
    return callable(train) and not hasattr(train, "__iter__")


def of_size(train: Loader | LoaderOfSize, size: int | str) -> Loader:
    """Return the training loader for a batch size. Raise `WorkloadError` if it has another."""
    if size == "full":
        raise WorkloadError(
            'train: expected [training] batch_size to be a number, got "full"; batches come from '
            "a loader"
        )
    if not isinstance(train, Iterable):
        made = train(int(size))
        hint = "pass the argument of the function on to the loader"
    else:
        made = train
        hint = (
            "set batch_size in [training] to that of the loader, or make train a function of the "
            "batch size, such as `lambda batch_size: DataLoader(…, batch_size=batch_size)`"
        )
    if not isinstance(made, Iterable):
        raise WorkloadError(f"train: expected a loader, got {type(made).__name__}")
    found = getattr(made, "batch_size", None)
    if isinstance(found, int) and found != size:
        raise WorkloadError(
            f"train: expected batches of {size} rows, as [training] batch_size says, got a loader "
            f"with batch_size = {found}; {hint}"
        )
    return made


def size_of(loader: Loader) -> tuple[int | None, bool]:
    """Return the rows of an epoch, None if unknown, and whether it has an incomplete last batch.

    They are known of loaders with a batch size and a length.
    """
    size = getattr(loader, "batch_size", None)
    try:
        if isinstance(loader, DataLoader):
            if isinstance(loader.dataset, IterableDataset) or size is None:
                return None, False
            return len(loader.sampler), not loader.drop_last  # type: ignore[arg-type]
        return (len(loader) * size if size else None), False  # type: ignore[arg-type]
    except TypeError:  # no length
        return None, False


def rows_of(batch: Any) -> int:
    """Return the number of rows of a batch: the length of its first tensor; 1 without any."""
    return next((len(leaf) for leaf in _leaves(batch) if leaf.ndim), 1)


def mapped(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch with a function applied to its tensors, in dicts, lists and tuples."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: mapped(value, function) for key, value in batch.items()}
    if isinstance(batch, tuple):
        parts = [mapped(value, function) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    if isinstance(batch, list):
        return [mapped(value, function) for value in batch]
    return batch


def micro_batches(batch: Any, parts: int) -> Iterator[tuple[Any, float]]:
    """Yield each of `parts` parts of a batch with its share of the rows, at least one row each.

    Tensors and lists as long as the batch are cut. The mean losses of the parts, weighted by their
    shares, sum to the mean loss of the batch.
    """
    rows = rows_of(batch)
    cut = min(parts, rows)
    bounds = torch.arange(rows).tensor_split(cut)
    for own in bounds:
        first, last = int(own[0]), int(own[-1]) + 1
        yield _part(batch, rows, slice(first, last)), (last - first) / rows


def _part(batch: Any, rows: int, part: slice) -> Any:
    """Return a part of the rows of a batch."""
    if isinstance(batch, Tensor):
        return batch[part] if batch.ndim and len(batch) == rows else batch
    if isinstance(batch, Mapping):
        return {key: _part(value, rows, part) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        if len(batch) == rows and not any(True for _ in _leaves(batch)):  # such as texts
            return batch[part]
        parts = [_part(value, rows, part) for value in batch]
        if isinstance(batch, list):
            return parts
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch


def _leaves(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        yield from _leaves(list(batch.values()))
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _leaves(value)


def example(loader: Loader) -> Any:
    """Return a batch of a loader, made in this process."""
    seeded = SeededLoader(loader, "train", workers=False)
    return next(LoaderStream(seeded, 0).epoch_batches(), None)


class SeededLoader:
    """A loader that is read by one `LoaderStream` at a time, from any batch of any epoch on."""

    def __init__(self, loader: Loader, name: str, *, workers: bool = True) -> None:
        """Rebuild the loader if possible; `name` is the workload's for it.

        Without `workers`, a rebuilt one makes its batches in this process. Raise `WorkloadError` if
        the random numbers of its workers cannot be seeded.
        """
        self.name = name
        self.reader: object = None  # of the stream that reads it
        self._given, self._workers = loader, workers
        self._order: _SeededOrder | None = None
        self._loader = loader
        self.reset()

    def reset(self) -> None:
        """Build the loader anew, such as after a worker of its own died."""
        given = self._given
        if isinstance(given, DataLoader) and _is_rebuildable(given):
            self._order = _SeededOrder(given)
            self._loader = _rebuilt(given, self._order, given.num_workers * self._workers)
        elif getattr(given, "persistent_workers", False):
            raise WorkloadError(
                f"{self.name}: expected persistent_workers=False of a {type(given).__name__} "
                f"over {type(getattr(given, 'dataset', None)).__name__}, since the random numbers "
                "of workers that persist can be seeded only for a DataLoader that makes batches "
                "of a map-style dataset"
            )
        self.reader = None

    def protecting_global_states(self, own: dict[str, Any]) -> AbstractContextManager[None]:
        """Return a context in which a batch may be read, with `own` states unless it has a seed."""
        if self._order is None:
            return random_state.swapped(own)
        in_workers = self._workers and self._given.num_workers > 0  # type: ignore[attr-defined]
        return nullcontext() if in_workers else random_state.preserved(own)

    def open(self, seed: int, epoch: int, first: int) -> Iterator[Any]:
        """Return the batches of an epoch from number `first` on; global random states are used."""
        if self._order is not None:
            self._order.begin(seed, epoch, first)
            return iter(self._loader)
        _restart(self._loader, _mixed(seed, epoch), epoch)
        return islice(iter(self._loader), first, None)


class LoaderStream:
    """The training batches of one trial, one epoch after the other."""

    def __init__(self, loader: SeededLoader, seed: int) -> None:
        self._loader, self._seed = loader, seed
        # not this stream: workers would live until the cycle is collected, and in forked children
        self._reader = object()
        self._epoch = self._next = 0  # number of the next batch in its epoch
        self._batches: Iterator[Any] = iter(())
        self._random: dict[str, Any] = {}  # global states while batches are made

    @property
    def position(self) -> list[int]:
        """The epoch and the number of the next batch in it, for a checkpoint."""
        return [self._epoch, self._next]

    def seek(self, position: Sequence[int]) -> None:
        """Continue at a position."""
        self._epoch, self._next = position
        if self._loader.reader is self._reader:
            self._loader.reader = None

    def batch(self) -> Any:
        """Return the next batch. Raise `WorkloadError` if an epoch has none."""
        batch = self._read()
        if batch is _END:
            self.seek([self._epoch + 1, 0])
            batch = self._read()
        if batch is _END:
            raise WorkloadError(
                f"{self._loader.name}: expected batches in epoch {self._epoch}, got none; a "
                "generator can be read once, so use an object that is iterated anew"
            )
        return batch

    def epoch_batches(self) -> Iterator[Any]:
        """Yield the batches of the first epoch. Raise `WorkloadError` if it has none."""
        self.seek([0, 0])
        yield self.batch()
        while (batch := self._read()) is not _END:
            yield batch

    def _read(self) -> Any:
        """Return the next batch of the epoch, or `_END`."""
        loader = self._loader
        opening = (
            loader.reader is not self._reader
        )  # another trial or a branch has read it meanwhile
        if opening:
            self._random = random_state.seeded_all(_mixed(self._seed, self._epoch), _CPU)
        try:
            with loader.protecting_global_states(self._random):
                if opening:
                    self._batches = loader.open(self._seed, self._epoch, self._next)
                    loader.reader = self._reader
                batch = next(self._batches, _END)
        except BaseException:
            loader.reset()
            raise
        self._next += batch is not _END
        return batch


# --- seeding


def _mixed(*entropy: int) -> int:
    """Derive a seed of 32 bits."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint32)[0])


def _restart(loader: object, seed: int, epoch: int) -> None:
    """Seed the generators of a loader and its samplers, and set the epoch of those with one."""
    batches = getattr(loader, "batch_sampler", None)
    samplers = getattr(loader, "sampler", None), getattr(batches, "sampler", None)
    for one in (loader, batches, *samplers, getattr(loader, "dataset", None)):
        generator = getattr(one, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        if hasattr(one, "set_epoch"):
            one.set_epoch(epoch)


def _is_rebuildable(loader: DataLoader[Any]) -> bool:
    """Return whether a loader makes batches of the rows that a batch sampler names."""
    iterates_as_torch = type(loader).__iter__ is DataLoader.__iter__
    map_style = not isinstance(loader.dataset, IterableDataset)
    return iterates_as_torch and map_style and loader.batch_sampler is not None


def _rebuilt(loader: DataLoader[Any], order: _SeededOrder, workers: int) -> DataLoader[Any]:
    """Return a loader of the same batches, with seeds in their order."""
    return DataLoader(
        _SeededDataset(loader.dataset),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory and torch.cuda.is_available(),
        timeout=loader.timeout if workers else 0,
        worker_init_fn=partial(_begin_worker, loader.worker_init_fn),
        multiprocessing_context=loader.multiprocessing_context if workers else None,
        generator=torch.Generator(),  # of seeds that are replaced by ours
        prefetch_factor=loader.prefetch_factor if workers else None,
        persistent_workers=loader.persistent_workers and workers > 0,
    )


def _begin_worker(own: Callable[[int], None] | None, number: int) -> None:
    """Ignore Ctrl-C in a worker, which ends with its parent, and call the loader's function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if own is not None:
        own(number)


class _SeededOrder:
    """A batch sampler that puts the seed of each batch before its rows."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._begin = (0, 0, 0)

    def begin(self, seed: int, epoch: int, first: int) -> None:
        """Set what the next iteration yields: the batches of an epoch from number `first` on."""
        self._begin = seed, epoch, first

    def __iter__(self) -> Iterator[list[Any]]:
        return self._from(*self._begin)

    def __len__(self) -> int:
        return len(self._loader)

    def _from(self, seed: int, epoch: int, first: int) -> Iterator[list[Any]]:
        # of the sampler alone, so that the order does not depend on the number of workers
        own = random_state.seeded_all(_mixed(seed, epoch), _CPU)
        with random_state.swapped(own):
            _restart(self._loader, _mixed(seed, epoch), epoch)
            batches = enumerate(iter(self._loader.batch_sampler or ()))
        while True:
            with random_state.swapped(own):
                several = list(islice(batches, ORDERED_AHEAD))
            if not several:
                return
            for number, rows in several:
                if number >= first:
                    yield [_mixed(seed, epoch, number + 1), *rows]  # a 0 would change nothing


class _SeededDataset(Dataset[Any]):
    """A dataset whose batches begin with a seed; everything else is that of the dataset in it."""

    def __init__(self, dataset: Any) -> None:
        self.__dict__["_dataset"] = dataset

    def __getitems__(self, batch: list[Any]) -> Any:
        seed, *rows = batch
        # not `torch.manual_seed`, which would also seed the generators of GPUs
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        dataset = self.__dict__["_dataset"]
        several = getattr(dataset, "__getitems__", None)
        return [dataset[row] for row in rows] if several is None else several(rows)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by pickle
            raise AttributeError(name)
        return getattr(self.__dict__["_dataset"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_dataset"], name, value)
