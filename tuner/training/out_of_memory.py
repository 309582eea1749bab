"""Out-of-memory errors: recognize them, and release memory afterwards."""

from __future__ import annotations

import gc

import torch


class TooManyTogetherError(MemoryError):
    """Trials that trained together ran out of memory; fewer at a time may not."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device or the CPU ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # torch's CPU allocator raises a plain RuntimeError
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error).lower()


def release_memory() -> None:
    """Collect garbage that the error's frames referred to, and empty the CUDA cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
