"""Mixed precision: autocast forward passes, and loss scaling for float16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer


class Precision:
    """Precision of one trial; `None` and "float32" change nothing.

    Parameters and optimizer state keep the study's dtype. Gradients underflow in float16, so the
    loss is scaled up (torch's `GradScaler`); if a gradient overflows, the update is skipped and
    the scale is halved. A *skipped* step still has its row, advances the schedule, and counts
    towards the horizon.
    """

    def __init__(self, name: str | None, device: torch.device) -> None:
        self._device = device.type
        self._dtype = None if name in {None, "float32"} else getattr(torch, str(name))
        self._scaler = GradScaler(self._device) if name == "float16" else None

    @property
    def may_skip(self) -> bool:
        """Whether a non-finite gradient may only mean that the scale was too high."""
        return self._scaler is not None

    def forward(self) -> AbstractContextManager[Any]:
        """Return the context for a forward pass and its loss."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device, dtype=self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the (scaled) gradients of a scalar loss."""
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the accumulated gradients of a step by the scale."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        """Make the update; with a scaler, skip it if a gradient is not finite."""
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()

    def state(self) -> dict[str, Any]:
        """Return the state of the scaler, for a checkpoint."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state` returned."""
        if self._scaler is not None:
            self._scaler.load_state_dict(state)
