"""Schedule-free SGD and AdamW, which average their weights instead of decaying the rate.

Defazio et al., "The Road Less Scheduled" (arXiv 2405.15682); equal to the authors' package
`schedulefree`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class AveragingOptimizer(Optimizer):
    """An optimizer that keeps an average of the weights, at which a model is to be evaluated.

    A loop calls `eval` before it evaluates or saves the model, and `train` after. Our trainers use
    `average_of` instead, which changes nothing.
    """

    def average_of(self, parameter: Tensor, group: dict[str, Any]) -> Tensor | None:
        """Return the average of a parameter; None before its first update."""
        raise NotImplementedError

    @torch.no_grad()
    def eval(self) -> None:
        """Set the parameters to their averages."""
        for group in self.param_groups:
            for parameter in group["params"] if group["train_mode"] else ():
                average = self.average_of(parameter, group)
                if average is not None:
                    self.state[parameter]["trained"] = parameter.detach().clone()
                    parameter.copy_(average)
            group["train_mode"] = False

    @torch.no_grad()
    def train(self) -> None:
        """Set the parameters to what is trained."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if "trained" in self.state.get(parameter, ()):
                    parameter.copy_(self.state[parameter].pop("trained"))
            group["train_mode"] = True

    def refuse_averages(self) -> None:
        """Raise `RuntimeError` if the parameters are set to their averages."""
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError(
                "the parameters are averages, expected the trained ones; call optimizer.train() "
                "after optimizer.eval()"
            )


class ScheduleFree(AveragingOptimizer):
    """The updates that both have in common.

    With direction d at the parameters y, the rate η (its highest so far: η_max), momentum β, weight
    decay λ and averaging weight c, initially y = z, a step is

        c = η_max² / Σ η_max²
        d ← d + λ y
        y ← (1 - c) y + c z - η (1 - β (1 - c)) d
        z ← z - η d

    The average of the z is x, at which the model is evaluated: y = (1 - β) z + β x.
    """

    momentum = "momentum"
    """The name of β in a group; of betas it is the first."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one update from the current gradients; closures are not supported."""
        assert closure is None
        self.refuse_averages()
        for group in self.param_groups:
            rate, beta = group["lr"], _first(group[self.momentum])
            group["k"] += 1
            group["lr_max"] = max(rate, group["lr_max"])
            group["weight_sum"] += group["lr_max"] ** 2
            share = group["lr_max"] ** 2 / group["weight_sum"] if group["weight_sum"] else 0.0
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["z"] = parameter.detach().clone()
                direction = self._direction(parameter.grad, state, group)
                if group["weight_decay"] != 0:
                    direction = direction.add(parameter, alpha=group["weight_decay"])
                parameter.lerp_(state["z"], share)
                parameter.add_(direction, alpha=rate * (beta * (1 - share) - 1))
                state["z"].sub_(direction, alpha=rate)

    def _direction(
        self, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> Tensor:
        return gradient

    def average_of(self, parameter: Tensor, group: dict[str, Any]) -> Tensor | None:
        """Return x; None before the first update."""
        state = self.state.get(parameter)
        if not state:
            return None
        return parameter.detach().lerp(state["z"], 1 - 1 / _first(group[self.momentum]))


class ScheduleFreeSGD(ScheduleFree):
    """Schedule-free SGD: the direction is the gradient."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        own = {"momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, **own, **_COUNTS})


class ScheduleFreeAdamW(ScheduleFree):
    """Schedule-free AdamW: the direction is the gradient over its running root mean square."""

    momentum = "betas"

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        own = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, **own, **_COUNTS})

    def _direction(
        self, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> Tensor:
        beta = group["betas"][1]
        square = state.setdefault("exp_avg_sq", torch.zeros_like(gradient))
        square.mul_(beta).addcmul_(gradient, gradient, value=1 - beta)
        scale = square.div(1 - beta ** group["k"]).sqrt_().add_(group["eps"])
        return gradient / scale


_COUNTS = {"k": 0, "weight_sum": 0.0, "lr_max": -1.0, "train_mode": True}


def _first(value: float | tuple[float, float]) -> float:
    return value[0] if isinstance(value, tuple | list) else value
