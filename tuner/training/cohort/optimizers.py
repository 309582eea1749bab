"""The optimizers of `tuner.training.optimizers`, each on one flat row of parameters.

The formulas are torch's, in torch's order of operations, so a row gets the same values as from
torch's own optimizer. `torch.optim` itself takes ten times as long for a small model, because it
inspects its settings at each step. Where torch has a kernel for a whole update (`torch.optim` with
`fused=True`), that kernel is called. Rows are updated one by one, independently of their neighbors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from tuner.config import ParameterValue, own
from tuner.training.cohort.layout import Part


class RowOptimizer(Protocol):
    """The optimizer of one trial, with its state.

    It is constructed with `row` and `gradient`, both [parameter], and updates `row` in place.
    """

    def step(self, rate: float) -> None:
        """Update the row at a learning rate."""

    def state(self) -> dict[str, Tensor]:
        """Return the state tensors themselves; writing into them restores a state."""


class Sgd:
    """torch's SGD."""

    def __init__(
        self,
        row: Tensor,
        gradient: Tensor,
        *,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
    ) -> None:
        # a zero velocity makes the first step equal to torch's, which copies the gradient
        self._velocity = [torch.zeros_like(row)] if momentum > 0 else []
        self._move = partial(
            torch._fused_sgd_,
            [row],
            [gradient],
            self._velocity,
            weight_decay=weight_decay,
            momentum=momentum,
            dampening=0.0,
            nesterov=nesterov and momentum > 0,
            maximize=False,
            is_first_step=False,
        )

    def step(self, rate: float) -> None:
        """Update the row at a learning rate."""
        self._move(lr=rate)

    def state(self) -> dict[str, Tensor]:
        """Return the velocity, if there is momentum."""
        return {"velocity": self._velocity[0]} if self._velocity else {}


class Adam:
    """torch's Adam, or AdamW if the weight decay is decoupled."""

    def __init__(
        self,
        row: Tensor,
        gradient: Tensor,
        *,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        decoupled: bool = False,
    ) -> None:
        self._lists = [row], [gradient], [torch.zeros_like(row)], [torch.zeros_like(row)]
        self._steps = torch.zeros((), dtype=torch.float32, device=row.device)
        # shares its memory: incrementing an element takes a fifth of the time of a tensor addition
        flat = self._steps.view(1)
        self._count = flat.numpy() if row.device.type == "cpu" else flat
        self._move = partial(
            torch._fused_adamw_ if decoupled else torch._fused_adam_,
            *self._lists,
            [],
            [self._steps],
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )

    def step(self, rate: float) -> None:
        """Update the row at a learning rate."""
        self._count[0] += 1.0
        self._move(lr=rate)

    def state(self) -> dict[str, Tensor]:
        """Return both moments, and the step count for bias correction."""
        (_, _, (first,), (second,)) = self._lists
        return {"first": first, "second": second, "steps": self._steps}


class Nadam:
    """torch's NAdam."""

    def __init__(
        self,
        row: Tensor,
        gradient: Tensor,
        *,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        momentum_decay: float,
        decoupled_weight_decay: bool,
    ) -> None:
        self._row, self._gradient = row, gradient
        self._first, self._second = torch.zeros_like(row), torch.zeros_like(row)
        self._steps = torch.zeros((), dtype=torch.float64)
        # of the momenta; in single precision as in torch, whatever the row's dtype
        self._product = torch.ones((), dtype=torch.float32)
        self._beta1, self._beta2, self._eps = beta1, beta2, eps
        self._weight_decay, self._decoupled = weight_decay, decoupled_weight_decay
        self._momentum_decay = momentum_decay

    def step(self, rate: float) -> None:
        """Update the row at a learning rate."""
        step = self._steps.add_(1.0).item()
        gradient = _decayed(self, rate)
        now, following = self._momentum(step), self._momentum(step + 1)
        product = self._product.mul_(now).item()
        self._first.lerp_(gradient, 1 - self._beta1)
        self._second.mul_(self._beta2).addcmul_(gradient, gradient, value=1 - self._beta2)
        scale = self._second.div(1 - self._beta2**step).sqrt_().add_(self._eps)
        self._row.addcdiv_(gradient, scale, value=-rate * (1.0 - now) / (1.0 - product))
        value = -rate * following / (1.0 - product * following)
        self._row.addcdiv_(self._first, scale, value=value)

    def _momentum(self, step: float) -> float:
        decayed: float = 0.96 ** (step * self._momentum_decay)
        return self._beta1 * (1.0 - 0.5 * decayed)

    def state(self) -> dict[str, Tensor]:
        """Return both moments, the step count and the product of the momenta so far."""
        moments = {"first": self._first, "second": self._second}
        return {**moments, "steps": self._steps, "product": self._product}


class Rmsprop:
    """torch's RMSprop."""

    def __init__(
        self,
        row: Tensor,
        gradient: Tensor,
        *,
        alpha: float,
        eps: float,
        weight_decay: float,
        momentum: float,
        centered: bool,
    ) -> None:
        self._row, self._gradient, self._square = row, gradient, torch.zeros_like(row)
        self._mean = torch.zeros_like(row) if centered else None
        self._velocity = torch.zeros_like(row) if momentum > 0 else None
        self._alpha, self._eps, self._momentum = alpha, eps, momentum
        self._weight_decay, self._decoupled = weight_decay, False

    def step(self, rate: float) -> None:
        """Update the row at a learning rate."""
        gradient = _decayed(self, rate)
        self._square.mul_(self._alpha).addcmul_(gradient, gradient, value=1 - self._alpha)
        if self._mean is None:
            scale = self._square.sqrt()
        else:
            self._mean.lerp_(gradient, 1 - self._alpha)
            scale = self._square.addcmul(self._mean, self._mean, value=-1).sqrt_()
        scale.add_(self._eps)
        if self._velocity is None:
            self._row.addcdiv_(gradient, scale, value=-rate)
        else:
            self._velocity.mul_(self._momentum).addcdiv_(gradient, scale)
            self._row.add_(self._velocity, alpha=-rate)

    def state(self) -> dict[str, Tensor]:
        """Return the mean square; the mean if centered, the velocity if there is momentum."""
        state = {"square": self._square, "mean": self._mean, "velocity": self._velocity}
        return {name: tensor for name, tensor in state.items() if tensor is not None}


class Adagrad:
    """torch's Adagrad."""

    def __init__(
        self,
        row: Tensor,
        gradient: Tensor,
        *,
        eps: float,
        weight_decay: float,
        initial_accumulator_value: float,
    ) -> None:
        self._row, self._gradient = row, gradient
        self._sum = torch.full_like(row, initial_accumulator_value)
        self._eps = eps
        self._weight_decay, self._decoupled = weight_decay, False

    def step(self, rate: float) -> None:
        """Update the row at a learning rate."""
        gradient = _decayed(self, rate)
        self._sum.addcmul_(gradient, gradient)
        self._row.addcdiv_(gradient, self._sum.sqrt().add_(self._eps), value=-rate)

    def state(self) -> dict[str, Tensor]:
        """Return the sum of squared gradients."""
        return {"sum": self._sum}


class Lion:
    """Lion, as in `tuner.training.lion`."""

    def __init__(
        self, row: Tensor, gradient: Tensor, *, beta1: float, beta2: float, weight_decay: float
    ) -> None:
        self._row, self._gradient, self._average = row, gradient, torch.zeros_like(row)
        self._beta1, self._beta2 = beta1, beta2
        self._weight_decay, self._decoupled = weight_decay, True

    def step(self, rate: float) -> None:
        """Update the row at a learning rate."""
        gradient = _decayed(self, rate)
        direction = self._average * self._beta1
        direction.add_(gradient, alpha=1 - self._beta1).sign_()
        self._row.add_(direction, alpha=-rate)
        self._average.mul_(self._beta2).add_(gradient, alpha=1 - self._beta2)

    def state(self) -> dict[str, Tensor]:
        """Return the averaged gradient."""
        return {"average": self._average}


def _decayed(update: Nadam | Rmsprop | Adagrad | Lion, rate: float) -> Tensor:
    """Apply weight decay, and return the gradient [parameter] for the update."""
    if update._weight_decay == 0:
        return update._gradient
    if update._decoupled:
        update._row.mul_(1 - rate * update._weight_decay)
        return update._gradient
    return update._gradient.add(update._row, alpha=update._weight_decay)


class Parted:
    """An optimizer for each part of a row that has its own multiplier of the rate."""

    def __init__(self, parts: Sequence[tuple[float, RowOptimizer]]) -> None:
        self._parts = parts

    def step(self, rate: float) -> None:
        """Update the parts at a learning rate times their multipliers."""
        for multiplier, optimizer in self._parts:
            optimizer.step(rate * multiplier)

    def state(self) -> dict[str, Tensor]:
        """Return the state of each part."""
        return {
            f"{index} {name}": tensor
            for index, (_, optimizer) in enumerate(self._parts)
            for name, tensor in optimizer.state().items()
        }


def _adamw(row: Tensor, gradient: Tensor, **settings: float) -> RowOptimizer:
    return Adam(row, gradient, decoupled=True, **settings)


ROW_OPTIMIZERS: Mapping[str, Callable[..., RowOptimizer]] = {
    "sgd": Sgd,
    "adam": Adam,
    "adamw": _adamw,
    "nadam": Nadam,
    "rmsprop": Rmsprop,
    "adagrad": Adagrad,
    "lion": Lion,
}
"""Row optimizers by name, with the names and settings of `optimizers.OPTIMIZERS`."""


def make(
    params: Mapping[str, ParameterValue], row: Tensor, gradient: Tensor, parts: Sequence[Part] = ()
) -> RowOptimizer:
    """Return the row optimizer of a trial from its flat parameters; see `optimizers.make`.

    Of a row with frozen parts, or with several multipliers, it is one for each other part.
    """
    name = str(params["optimizer"])
    made = partial(ROW_OPTIMIZERS[name], **own(params, name))
    if all(part.multiplier == 1.0 for part in parts):
        return made(row, gradient)
    return Parted(
        [
            (part.multiplier, made(row[part.place], gradient[part.place]))
            for part in parts
            if part.multiplier is not None
        ]
    )


def restore(optimizer: RowOptimizer, saved: Mapping[str, Tensor]) -> None:
    """Restore a state that `state` returned."""
    state = optimizer.state()
    assert state.keys() == saved.keys(), (list(state), list(saved))
    for name, tensor in state.items():
        tensor.copy_(saved[name])
