"""The largest curvature of a loss, and the largest stable learning rate that follows from it.

The largest eigenvalue of the Hessian is found by the Lanczos method with Hessian-vector products
(Pearlmutter, "Fast Exact Multiplication by the Hessian", 1994), on a fixed batch, in double
precision, with full reorthogonalization. For optimizers that divide by a running root mean square
it is the eigenvalue of P^-1/2 H P^-1/2, where P is the divisor after some batches at these weights.

On a quadratic the bounds are exact: above them the direction of largest curvature grows, with
alternating sign (`tuner.training.guard.momentum`): lr·λ is 2 + 2β for heavy ball,
(2 + 2β)/(1 + 2β) for Nesterov's momentum, and 38 for Adam at β₁ = 0.9. Elsewhere the curvature
changes during training, often up to the bound and along it (the edge of stability), so a bound at
the initial weights is an estimate.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tuner.config import ParameterValue, own
from tuner.config.optimizers import NEED_NO_SCHEDULE
from tuner.training.guard.momentum import momentum_of

ITERATIONS = 60
"""Maximum number of Hessian-vector products."""

CLOSE = 1e-3
"""The iteration ends once the relative error of the eigenvalue is below this."""

DECOUPLED = frozenset({"adamw", "lion", "muon", "schedule_free_adamw", "prodigy"})
"""Optimizers whose weight decay is not a part of the gradient."""

UNBOUNDED = frozenset({"lion", "muon", *NEED_NO_SCHEDULE})
"""Optimizers without such a bound: the length of their steps is fixed (Lion, Muon), found from the
gradients so far (Prodigy, DoG), or bounded by averages that come to lag (schedule-free ones)."""


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """The largest curvature and the stable limit that follows from it."""

    lambda_max: float  # largest eigenvalue of the (preconditioned) Hessian
    relative_error: float  # residual norm relative to lambda_max
    bound: float | None  # largest stable rate on a quadratic; None if there is no bound


Product = Callable[[Tensor], Tensor]
"""Map a vector [parameter] to its product with a matrix, [parameter]."""


def largest(product: Product, size: int, generator: torch.Generator) -> tuple[float, float]:
    """Return the largest eigenvalue of a symmetric [size, size] matrix, and the residual norm.

    Some eigenvalue is within the residual norm of the result; with a random start, the Lanczos
    method makes it almost certainly the largest.
    """
    start = torch.randn(size, generator=generator, dtype=torch.float64)
    basis = (start / start.norm()).unsqueeze(0)  # [iteration, parameter]
    alphas: list[float] = []
    betas: list[float] = []
    value, residual = 0.0, math.inf
    for _ in range(min(ITERATIONS, size)):
        image = product(basis[-1])
        alphas.append(float(basis[-1] @ image))
        image = image - basis.T @ (basis @ image)
        image = image - basis.T @ (basis @ image)  # twice is enough (Parlett)
        beta = float(image.norm())
        tridiagonal = torch.diag(torch.tensor(alphas, dtype=torch.float64))
        for index, known in enumerate(betas):
            tridiagonal[index, index + 1] = tridiagonal[index + 1, index] = known
        values, vectors = torch.linalg.eigh(tridiagonal)
        value, residual = float(values[-1]), beta * abs(float(vectors[-1, -1]))
        scale = float(values.abs().max())
        if residual <= CLOSE * abs(value) or beta <= 1e-12 * scale:
            break
        betas.append(beta)
        basis = torch.cat([basis, (image / beta).unsqueeze(0)])
    return value, residual


def hessian(
    model: nn.Module, loss: Callable[[nn.Module], Tensor]
) -> tuple[Product, int]:  # and the number of parameters
    """Return Hessian-vector products of a loss at a model's parameters, without changing the model.

    The loss is computed once, so randomness in it, such as dropout, is the same for all products.
    """
    own_model = copy.deepcopy(model).double()
    parameters = [p for p in own_model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(
        loss(own_model), parameters, create_graph=True, materialize_grads=True
    )
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])

    def product(vector: Tensor) -> Tensor:
        if not flat.requires_grad:  # the loss is linear in its parameters
            return torch.zeros_like(vector)
        images = torch.autograd.grad(
            flat, parameters, vector, retain_graph=True, materialize_grads=True
        )
        return torch.cat([image.reshape(-1) for image in images])

    return product, flat.numel()


def gradient(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:  # [parameter]
    """Return the gradient of a loss at a model's parameters, in double precision."""
    own_model = copy.deepcopy(model).double()
    parameters = [p for p in own_model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss(own_model), parameters, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in found])


def preconditioner(
    params: Mapping[str, ParameterValue], gradients: Sequence[Tensor]
) -> Tensor | None:  # [parameter]
    """Return the divisor of an adaptive optimizer after these gradients; None for other optimizers.

    `gradients` are those of batches at the same weights, [parameter] each.
    """
    name = str(params["optimizer"])
    settings = own(params, name)
    squares = [g * g for g in gradients]
    match name:
        case "adam" | "adamw" | "nadam":
            decay = float(settings["beta2"])
            mean = _average(squares, decay) / (1 - decay ** len(squares))
        case "rmsprop":
            decay = float(settings["alpha"])
            mean = _average(squares, decay)
            if settings["centered"]:
                mean = mean - _average(list(gradients), decay).square()
        case "adagrad":
            mean = torch.stack(squares).sum(dim=0) + float(settings["initial_accumulator_value"])
        case _:
            return None
    return mean.clamp(min=0.0).sqrt() + float(settings["eps"])


def _average(values: Sequence[Tensor], decay: float) -> Tensor:
    mean = torch.zeros_like(values[0])
    for value in values:
        mean = decay * mean + (1 - decay) * value
    return mean


def bound(params: Mapping[str, ParameterValue], curvature: float) -> float | None:
    """Return the largest stable rate on a quadratic with this (preconditioned) largest curvature.

    None if there is none: the curvature is not positive, or the optimizer is one of `UNBOUNDED`.
    """
    name = str(params["optimizer"])
    if curvature <= 0 or name in UNBOUNDED:
        return None
    momentum = momentum_of(params)
    limit = momentum.rate_times_curvature(1.0)
    if name in {"adam", "adamw", "nadam"}:
        limit /= 1 - momentum.beta  # their momentum is an average, not a sum
    return limit / curvature


def measure(
    params: Mapping[str, ParameterValue],
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],  # on a fixed batch, given a copy of the model in double
    batches: Sequence[Callable[[nn.Module], Tensor]],  # losses on the batches for P
    seed: int = 0,
) -> Curvature:
    """Return the largest curvature for an optimizer at the model's parameters.

    Weight decay that is added to the gradient adds to the curvature. Decoupled weight decay is
    ignored: it acts outside the update, and its effect on stability is negligible.
    """
    product, size = hessian(model, loss)
    settings = own(params, str(params["optimizer"]))
    decoupled = params["optimizer"] in DECOUPLED or bool(settings.get("decoupled_weight_decay"))
    decay = 0.0 if decoupled else float(settings.get("weight_decay", 0.0))
    divided = preconditioner(params, [gradient(model, batch) for batch in batches])
    root = torch.ones(size, dtype=torch.float64) if divided is None else divided.rsqrt()

    def seen(vector: Tensor) -> Tensor:
        scaled = root * vector
        return root * (product(scaled) + decay * scaled)

    value, residual = largest(seen, size, torch.Generator().manual_seed(seed))
    error = residual / abs(value) if value else 0.0
    return Curvature(lambda_max=value, relative_error=error, bound=bound(params, value))
