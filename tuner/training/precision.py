"""Mixed precision: forward passes in fewer bits, with a scaled loss where gradients need it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer


class Precision:
    """How one trial computes; `None` and "float32" leave everything as it is.

    Parameters and the optimiser's state keep the study's dtype. float16 has so small a range that
    gradients vanish, so the loss is scaled up (torch's GradScaler); where that makes a gradient
    overflow, the update is left out and the scale is halved. Such a *skipped* step is a step all
    the same: it has its row, the schedule moves on, and it counts towards the horizon.
    """

    def __init__(self, name: str | None, device: torch.device) -> None:
        self._device = device.type
        self._dtype = None if name in {None, "float32"} else getattr(torch, str(name))
        self._scaler = GradScaler(self._device) if name == "float16" else None

    @property
    def may_skip(self) -> bool:
        """Tell whether a gradient that is not finite only says that the scale was too high."""
        return self._scaler is not None

    def forward(self) -> AbstractContextManager[Any]:
        """Compute a forward pass and its loss in this precision."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device, dtype=self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled, to those that are there."""
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, once all of a step's are there."""
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> None:
        """Make the update, or skip it where a gradient is not finite and the scale may be why."""
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()

    def state(self) -> dict[str, Any]:
        """Give what a checkpoint must hold: the scale, and how long it has held."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        if self._scaler is not None:
            self._scaler.load_state_dict(state)
