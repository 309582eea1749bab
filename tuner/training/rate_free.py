"""Prodigy and DoG, which estimate the rate: their `lr` is a factor that is usually 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tuner.training.schedule_free import AveragingOptimizer

INITIAL_DISTANCE = 1e-6
"""Of the parameters from where they end, as a first estimate; both papers' default."""


class Prodigy(Optimizer):
    """Adam whose rate grows with an estimate d of the distance to the solution (arXiv 2306.06101).

    Algorithm 4 as in the authors' package `prodigyopt`. With gradient g, initial parameters p₀,
    factor η, β₃ = √β₂ and d₀ = 1e-6, a step is

        r ← β₃ r + d² η/d₀ ⟨g, p₀ - p⟩
        m ← β₁ m + (1 - β₁) d g
        v ← β₂ v + (1 - β₂) d² g²
        s ← β₃ s + d² η/d₀ g
        d ← max(d, d_coef · r/‖s‖₁)
        p ← p - d η (m/(√v + d ε) + λ p)

    where the last line has the η d of before the update of d. All parameter groups share d.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        d_coef: float = 1.0,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
    ) -> None:
        own = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "d_coef": d_coef,
            "use_bias_correction": use_bias_correction,
            "safeguard_warmup": safeguard_warmup,
        }
        counts = {
            "k": 0,
            "d": INITIAL_DISTANCE,
            "d_max": INITIAL_DISTANCE,
            "d_numerator": 0.0,
        }
        super().__init__(params, {**own, **counts})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one update from the current gradients; closures are not supported."""
        assert closure is None
        estimate = Distance(self.param_groups[0])
        moving = [
            (parameter, self.state[parameter], group, estimate.rate(group["lr"]))
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        for parameter, state, group, rate in moving:
            if not state:
                state["p0"] = parameter.detach().clone()
                for name in ("s", "exp_avg", "exp_avg_sq"):
                    state[name] = torch.zeros_like(parameter)
            if group["lr"] > 0.0:
                estimate.observe(parameter, parameter.grad, state, rate)
        if not estimate.denominator:
            return
        estimate.update(self.param_groups)
        for parameter, state, group, rate in moving:
            scale = state["exp_avg_sq"].sqrt().add_(group["d"] * group["eps"])
            if group["weight_decay"] != 0:
                parameter.mul_(1 - group["weight_decay"] * rate)
            parameter.addcdiv_(state["exp_avg"], scale, value=-rate)


class Distance:
    """One update of Prodigy's estimate d, from the numbers that a group has."""

    def __init__(self, group: dict[str, Any]) -> None:
        self._group, self._d = group, group["d"]
        self._beta1, self._beta2 = group["betas"]
        self._beta3 = math.sqrt(self._beta2)
        self._numerator = group["d_numerator"] * self._beta3
        self.denominator = 0.0

    def rate(self, factor: float) -> float:
        """Return what the step of a factor η is multiplied by."""
        rate: float = self._d * factor
        if self._group["use_bias_correction"]:
            k = self._group["k"] + 1
            rate *= math.sqrt(1 - self._beta2**k) / (1 - self._beta1**k)
        return rate

    def observe(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], rate: float
    ) -> None:
        """Update the averages of a parameter from its gradient."""
        d, times = self._d, self._d / INITIAL_DISTANCE
        away = torch.dot(gradient.flatten(), (state["p0"] - parameter).flatten())
        self._numerator += times * rate * away.item()
        beta = self._beta2
        state["exp_avg"].mul_(self._beta1).add_(gradient, alpha=d * (1 - self._beta1))
        state["exp_avg_sq"].mul_(beta).addcmul_(gradient, gradient, value=d * d * (1 - beta))
        weight = times * (d if self._group["safeguard_warmup"] else rate)
        state["s"].mul_(self._beta3).add_(gradient, alpha=weight)
        self.denominator += state["s"].abs().sum().item()

    def update(self, groups: Iterable[dict[str, Any]]) -> None:
        """Set the estimate of all groups."""
        found = self._group["d_coef"] * self._numerator / self.denominator
        highest = max(self._group["d_max"], found)
        for group in groups:
            group["d_numerator"], group["d"], group["d_max"] = self._numerator, highest, highest
            group["k"] += 1


class DoG(AveragingOptimizer):
    """SGD whose rate is the distance so far over the root of the gradients' sum (arXiv 2302.12022).

    With initial parameters p₀, gradient g and factor η, a step is

        r ← max(r, ‖p - p₀‖), initially reps_rel (1 + ‖p₀‖)
        G ← G + ‖g‖², initially 1e-8
        p ← p - η r/√G (g + λ p)

    with norms over all parameters of a group, as the authors' package `dog-optimizer`. The average
    at which the model is evaluated is its `PolynomialDecayAverager`'s: after t updates the newest
    parameters have the weight (1 + γ)/(t + γ).
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1.0,
        reps_rel: float = 1e-6,
        weight_decay: float = 0.0,
        gamma: float = 8.0,
    ) -> None:
        own = {"lr": lr, "reps_rel": reps_rel, "weight_decay": weight_decay, "gamma": gamma}
        counts = {"k": 0, "distance": 0.0, "squares": 1e-8, "train_mode": True}
        super().__init__(params, {**own, **counts})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one update from the current gradients; closures are not supported."""
        assert closure is None
        self.refuse_averages()
        for group in self.param_groups:
            moving = [one for one in group["params"] if one.grad is not None]
            if not moving:
                continue
            for one in moving if group["k"] == 0 else ():
                self.state[one]["p0"] = one.detach().clone()
                self.state[one]["average"] = torch.zeros_like(one)
            decay = group["weight_decay"]
            directions = [one.grad.add(one, alpha=decay) if decay else one.grad for one in moving]
            if group["k"] == 0:
                group["distance"] = group["reps_rel"] * (1 + _norm(moving))
            away = _norm([one - self.state[one]["p0"] for one in moving])
            group["distance"] = max(group["distance"], away)
            group["squares"] += _norm(directions) ** 2
            group["k"] += 1
            rate = group["lr"] * group["distance"] / math.sqrt(group["squares"])
            weight = (1 + group["gamma"]) / (group["k"] + group["gamma"])
            for one, direction in zip(moving, directions, strict=True):
                one.add_(direction, alpha=-rate)
                self.state[one]["average"].lerp_(one, weight)

    def average_of(self, parameter: Tensor, group: dict[str, Any]) -> Tensor | None:
        """Return the average of a parameter; None before its first update."""
        average: Tensor | None = self.state.get(parameter, {}).get("average")
        return average


def _norm(tensors: list[Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(one)) for one in tensors))
