"""Process-wide settings of PyTorch."""

from __future__ import annotations

import torch


def is_here(device: str) -> bool:
    """Tell whether this machine has a device, such as "cpu" or "cuda:1"."""
    if device == "cpu":
        return True
    index = torch.device(device).index or 0
    return torch.cuda.is_available() and index < torch.cuda.device_count()


def use_threads(threads: int) -> None:
    """Let each operator use so many threads."""
    torch.set_num_threads(threads)
