"""Devices and process-wide settings of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tuner.core.environment import peak_memory, processor

SUBNORMAL = 1e-310
"""A number in double precision whose half is 0 exactly if subnormal numbers are flushed."""


def is_available(device: str) -> bool:
    """Return whether this machine has a device, such as "cpu" or "cuda:1"."""
    if device == "cpu":
        return True
    index = torch.device(device).index or 0
    return torch.cuda.is_available() and index < torch.cuda.device_count()


def name_of(device: str) -> str:
    """Return the name of a device of this machine: the model of the GPU or the processor."""
    return str(torch.cuda.get_device_name(device)) if device != "cpu" else processor()


def memory_of(device: str) -> dict[str, int]:
    """Return the most MiB that this process has had at a time, of memory and of a GPU's."""
    most, found = peak_memory(), dict[str, int]()
    if most is not None:
        found["peak_memory_mib"] = most >> 20
    if device != "cpu":
        found["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated(device) >> 20
    return found


def use_threads(threads: int) -> None:
    """Set the number of CPU threads of each operator."""
    torch.set_num_threads(threads)


@contextmanager
def without_subnormals() -> Iterator[None]:
    """Flush subnormal numbers (below 1e-38 in single precision) to 0 in this thread.

    Processors compute with them a hundred times slower, and confident models produce many of
    them, as probabilities and their gradients. With more than one thread it does nothing: a result
    would depend on the thread that computed it.
    """
    if torch.get_num_threads() > 1:
        yield
        return
    before = torch.tensor(SUBNORMAL, dtype=torch.float64).mul(0.5).item() == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
