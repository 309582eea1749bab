"""Convert states of user code to and from what checkpoints can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

ARRAY = "tuner: a numpy array"


def encode(value: Any, where: str = "state") -> Any:
    """Return a copy of a state with tensors on the CPU and numpy arrays as tensors.

    Raise `TypeError`, with the location `where`, for a value that a checkpoint cannot hold.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, np.generic):
        return encode(value.item(), where)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {ARRAY: torch.from_numpy(np.array(value))}
    if isinstance(value, Mapping):
        return {
            key.item() if isinstance(key, np.generic) else key: encode(item, f"{where}[{key!r}]")
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        items = [encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    raise TypeError(
        f"{where}: expected tensors, arrays of numbers, numbers, strings, booleans, None, or "
        f"dicts, lists and tuples of them, got {type(value).__name__}; save its contents, such as "
        "its state_dict()"
    )


def decode(value: Any) -> Any:
    """Return a copy of the state that `encode` was called with."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        if value.keys() == {ARRAY}:
            return value[ARRAY].numpy().copy()
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return tuple(map(decode, value)) if isinstance(value, tuple) else value
