"""Running out of memory: telling it from other errors, and making room after it."""

from __future__ import annotations

import gc

import torch


def ran_out(error: BaseException) -> bool:
    """Tell whether an error says that memory was short, on a device or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    # torch's allocator of the CPU raises nothing more telling
    return isinstance(error, RuntimeError) and "can't allocate memory" in said


def make_room() -> None:
    """Give back what the error's frames held on to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
