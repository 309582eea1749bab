"""The Lion optimizer, which torch lacks: the sign of an interpolated momentum and gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """Evolved sign momentum (arXiv 2302.06675, algorithm 2).

    With gradient g, momentum m (initially zero), rate η and weight decay λ, a step is

        c = β₁ m + (1 - β₁) g
        p ← p - η (sign(c) + λ p)
        m ← β₂ m + (1 - β₂) g

    Every entry of a parameter moves by η per step, or not at all where c is 0. According to its
    authors, good rates are three to ten times lower than AdamW's, and weight decays higher by the
    same factor.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one update from the current gradients; closures are not supported."""
        assert closure is None
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient, state = parameter.grad, self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                momentum = state["exp_avg"]
                direction = (momentum * beta1).add_(gradient, alpha=1 - beta1).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"])
                momentum.mul_(beta2).add_(gradient, alpha=1 - beta2)
