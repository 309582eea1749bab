"""Leaving a model, its optimiser and all random states exactly as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tuner.training import random_state


@contextmanager
def untouched(model: nn.Module, optimizer: Optimizer | None = None) -> Iterator[None]:
    """Put back to the bit, at the end: parameters, buffers, gradients, modes, optimiser, chance.

    Tensors keep their identity: what refers to a parameter goes on to. The states of Python's,
    numpy's and torch's generators are put back too, those of every CUDA device included.
    """
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = {module: module.training for module in model.modules()}
    kept = None if optimizer is None else _state(optimizer)
    kinds = {"cpu": None, random_state.NUMPY: None, random_state.PYTHON: None}
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    chance = random_state.get_states(kinds | {f"cuda:{index}": None for index in range(devices)})
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        for module, training in modes.items():
            module.training = training
        if optimizer is not None and kept is not None:
            _put(optimizer, kept)
        random_state.set_states(chance)


Kept = tuple[dict[Any, dict[str, Any]], list[dict[str, Any]]]


def _state(optimizer: Optimizer) -> Kept:
    """Copy what an optimiser remembers, and its settings; parameters stay themselves."""
    state = {parameter: copy.deepcopy(own) for parameter, own in optimizer.state.items()}
    groups = [
        {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    return state, groups


def _put(optimizer: Optimizer, kept: Kept) -> None:
    """Put it back, past `load_state_dict`, which casts to the parameter's dtype."""
    state, groups = kept
    optimizer.state.clear()
    optimizer.state.update(state)
    for group, settings in zip(optimizer.param_groups, groups, strict=True):
        for key in group.keys() - settings.keys() - {"params"}:
            del group[key]
        group.update(settings)
