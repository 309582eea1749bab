"""Random states: each trial has its own, swapped with the global ones while it trains."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

PYTHON, NUMPY = "python", "numpy"


def seeded_torch(seed: int, device: torch.device) -> dict[str, Any]:
    """Return seeded torch states of the CPU and of the device, by device name."""
    generators = {"cpu": torch.Generator(), str(device): torch.Generator(device)}
    return {key: made.manual_seed(seed).get_state() for key, made in generators.items()}


def seeded_all(seed: int, device: torch.device) -> dict[str, Any]:
    """Return seeded states of torch, numpy and Python's `random`, for user code."""
    python = random.Random(seed).getstate()  # noqa: S311 - not for cryptography
    numpy = np.random.RandomState(seed).get_state(legacy=False)
    return {**seeded_torch(seed, device), NUMPY: numpy, PYTHON: python}


@contextmanager
def swapped(own: dict[str, Any]) -> Iterator[None]:
    """Use the random states `own` within the context, and store their new values in it after."""
    before = get_states(own)
    set_states(own)
    try:
        yield
    finally:
        own.update(get_states(own))
        set_states(before)


@contextmanager
def preserved(keys: Iterable[str]) -> Iterator[None]:
    """Restore these global states after the context."""
    before = get_states(keys)
    try:
        yield
    finally:
        set_states(before)


def get_states(keys: Iterable[str]) -> dict[str, Any]:
    """Return the current global states of these generators."""
    return {key: _state(key) for key in keys}


def set_states(states: dict[str, Any]) -> None:
    """Set the global states."""
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
