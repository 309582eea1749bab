"""Process-wide settings of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SUBNORMAL = 1e-310
"""In double precision; half of it is above 0, unless such numbers are flushed to it."""


def is_available(device: str) -> bool:
    """Tell whether this machine has a device, such as "cpu" or "cuda:1"."""
    if device == "cpu":
        return True
    index = torch.device(device).index or 0
    return torch.cuda.is_available() and index < torch.cuda.device_count()


def use_threads(threads: int) -> None:
    """Let each operator use so many threads."""
    torch.set_num_threads(threads)


@contextmanager
def without_subnormals() -> Iterator[None]:
    """Take numbers below the normal range (1e-38 in single precision) as 0, in this thread.

    A processor computes with them a hundred times slower, and a model that is sure of its answers
    is full of them: probabilities, and the gradients that come from them. With more threads than
    one it does nothing: a number would depend on the thread that computed it.
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
