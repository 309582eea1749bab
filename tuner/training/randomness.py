"""The global random state of the process: a trial has its own, swapped in while it trains."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

PYTHON, NUMPY = "python", "numpy"


def of_torch(seed: int, device: torch.device) -> dict[str, Any]:
    """Seed torch's state, of the CPU and of the device: layers draw from the one where they are."""
    generators = {"cpu": torch.Generator(), str(device): torch.Generator(device)}
    return {key: made.manual_seed(seed).get_state() for key, made in generators.items()}


def of_everything(seed: int, device: torch.device) -> dict[str, Any]:
    """Seed Python's and numpy's state too, for code that is not ours."""
    python = random.Random(seed).getstate()  # noqa: S311 - nothing is to be kept secret
    numpy = np.random.RandomState(seed).get_state(legacy=False)
    return {**of_torch(seed, device), NUMPY: numpy, PYTHON: python}


@contextmanager
def swapped(own: dict[str, Any]) -> Iterator[None]:
    """Swap a trial's random states for the process's, and back after; `own` moves on."""
    before = current(own)
    put(own)
    try:
        yield
    finally:
        own.update(current(own))
        put(before)


def current(keys: dict[str, Any]) -> dict[str, Any]:
    """Read the process's states of these kinds."""
    return {key: _state(key) for key in keys}


def put(states: dict[str, Any]) -> None:
    """Set the process's states."""
    for key, state in states.items():
        if key == PYTHON:
            random.setstate(state)
        elif key == NUMPY:
            np.random.set_state(state)
        elif key == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, key)


def _state(key: str) -> Any:
    if key == PYTHON:
        return random.getstate()
    if key == NUMPY:
        return np.random.get_state(legacy=False)
    return torch.get_rng_state() if key == "cpu" else torch.cuda.get_rng_state(key)
