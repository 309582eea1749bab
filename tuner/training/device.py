"""Process-wide settings of PyTorch."""

from __future__ import annotations

import torch


def use_threads(threads: int) -> None:
    """Let each operator use so many threads."""
    torch.set_num_threads(threads)
