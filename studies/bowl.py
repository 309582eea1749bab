"""A quadratic with given curvatures, whose stable limit and best rates are known exactly.

What it teaches. In its principal directions, gradient descent on a quadratic is one parabola per
dimension; each distance is multiplied by 1 - lr·λ per step, with the same rate for all. The largest
curvature forbids rates above 2/λ; the smallest limits the speed of convergence. The best constant
rate is 2 over the sum of the two, so it is close to divergence if their ratio is large.
"""

from __future__ import annotations

import cmath
from collections.abc import Callable, Iterable

import torch
from torch import nn

from tuner.training.workloads import Workload, digest_of


def bowl(curvatures: tuple[float, ...], seed: int = 0) -> Workload:
    """Minimize ½ Σ λ (distance along λ's direction)² from 0, with random directions and minimum.

    It is a least-squares problem with as many rows as dimensions, so the eigenvalues of its Hessian
    are exactly `curvatures`.
    """
    size = len(curvatures)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size, size, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(drawn).Q  # [dimension, dimension]
    scales = torch.tensor(curvatures, dtype=torch.float64).mul(size / 2).sqrt()
    rows = scales[:, None] * directions.T  # [row, dimension]
    minimum = torch.randn(size, 1, generator=generator, dtype=torch.float64)
    return Workload(
        model=_from_zero(size),
        train_inputs=rows,
        train_targets=rows @ minimum,
        validation_inputs=rows,
        validation_targets=rows @ minimum,
        loss=nn.functional.mse_loss,
        data_name=f"a quadratic of {size} dimensions, seed {seed}",
        data_digest=digest_of(torch.tensor(curvatures, dtype=torch.float64), torch.tensor(seed)),
    )


def _from_zero(size: int) -> Callable[[int, torch.dtype], nn.Module]:
    def model(seed: int, dtype: torch.dtype) -> nn.Module:  # noqa: ARG001
        made = nn.Linear(size, 1, bias=False, dtype=dtype)
        nn.init.zeros_(made.weight)
        return made

    return model


# --- exact results --------------------------------------------------------------------------------


def pace(lr: float, curvature: float, momentum: float = 0.0, *, nesterov: bool = False) -> float:
    """Return the asymptotic factor of the distance per step along a direction; above 1 it grows.

    It is the modulus of the largest root of the step's characteristic polynomial:
    z² - (1 + β - lr·λ)·z + β with momentum β (Polyak), and
    z² - (1 + β)·(1 - lr·λ)·z + β·(1 - lr·λ) with Nesterov's.
    """
    left, beta = 1.0 - lr * curvature, momentum
    linear, constant = ((1 + beta) * left, beta * left) if nesterov else (left + beta, beta)
    root = cmath.sqrt(linear**2 - 4 * constant)
    return max(abs(linear + root), abs(linear - root)) / 2


def limit(curvature: float, momentum: float = 0.0, *, nesterov: bool = False) -> float:
    """Return the largest stable rate, found by bisection of `pace` at 1."""
    low, high = 1.0 / curvature, 8.0 / curvature
    for _ in range(100):
        middle = (low + high) / 2
        stable = pace(middle, curvature, momentum, nesterov=nesterov) <= 1.0
        low, high = (middle, high) if stable else (low, middle)
    return low


def best(
    curvatures: tuple[float, ...], momentum: float = 0.0, *, nesterov: bool = False
) -> tuple[float, float]:
    """Return the lowest and highest of the best constant rates, whose slowest direction is fastest.

    With momentum many rates are equally good: all oscillating directions have the same factor.
    """
    top = limit(max(curvatures), momentum, nesterov=nesterov)
    extremes = (
        min(curvatures),
        max(curvatures),
    )  # also with Nesterov's momentum, an extreme is slowest
    rates = [top * 10 ** (-3.5 + 3.5 * index / 7000) for index in range(7000)]
    paces = [max(pace(r, one, momentum, nesterov=nesterov) for one in extremes) for r in rates]
    lowest = min(paces)
    good = [rate for rate, one in zip(rates, paces, strict=True) if one <= lowest + 1e-4]
    return good[0], good[-1]


class FrozenAdam(torch.optim.Optimizer):
    """Adam with a fixed preconditioner, to which the theory of its stability applies exactly.

    A step is lr · (running average of gradients) / `preconditioner`, elementwise, without bias
    correction (arXiv 2207.14484, section 3).
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], preconditioner: torch.Tensor, beta: float = 0.9
    ) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self._preconditioner, self._beta = preconditioner, beta

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one update."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                average = state.setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - self._beta)
                parameter.addcdiv_(average, self._preconditioner, value=-group["lr"])
