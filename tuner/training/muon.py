"""torch's Muon for the matrices of a model, with AdamW for its other parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, optim
from torch.optim import Optimizer


class Muon(Optimizer):
    """torch's `Muon` for parameters of two dimensions, and torch's `AdamW` for all others.

    Muon orthogonalizes the momentum of a matrix (https://kellerjordan.github.io/posts/muon/). With
    `adjust` "match_rms_adamw" its steps are as long as AdamW's (arXiv 2502.16982), so that both
    share one rate; with "original" they are longer.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        adjust: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
    ) -> None:
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        whole: list[Any] = list(params)
        for group in whole if isinstance(whole[0], dict) else [{"params": whole}]:
            for to, is_matrix in ((matrices, True), (others, False)):
                own = [one for one in group["params"] if (one.ndim == 2) is is_matrix]
                if own:
                    to.append({**group, "params": own})
        settings: dict[str, Any] = {
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
        }
        if matrices:
            matrices = optim.Muon(matrices, lr, **settings, adjust_lr_fn=adjust).param_groups
        if others:
            others = optim.AdamW(others, lr, weight_decay=weight_decay).param_groups
        super().__init__([*matrices, *others], {"lr": lr, **settings, "adjust": adjust})
        self._share()

    def _share(self) -> None:
        """Make the two optimizers, which have the groups and the states of this one."""
        matrices = [group for group in self.param_groups if "ns_steps" in group]
        others = [group for group in self.param_groups if "ns_steps" not in group]
        self._parts: list[Optimizer] = [optim.Muon(matrices)] if matrices else []
        self._parts += [optim.AdamW(others)] if others else []
        for part in self._parts:
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state, of a copy too."""
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one update from the current gradients; closures are not supported."""
        assert closure is None
        for part in self._parts:
            part.step()
