"""The optimizers of `tuner.training.optimizers`, each on one flat row of parameters.

The formulas are torch's, in torch's order of operations, so a row gets the same values as from
torch's own optimizer. `torch.optim` itself takes ten times as long for a small model, because it
inspects its settings at each step. Where torch has a kernel for a whole update (`torch.optim` with
`fused=True`), that kernel is called. Rows are updated one by one, independently of their neighbors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tuner.config import ParameterValue, own
from tuner.training.cohort.layout import Part
from tuner.training.rate_free import INITIAL_DISTANCE, Distance


class RowOptimizer(Protocol):
    """The optimizer of one trial, with its state.

    It is constructed with `row` and `gradient`, both [parameter], and updates `row` in place.
    """

    def step(self, rate: float) -> None:
        """Update the row at a learning rate."""

    def state(self) -> dict[str, Tensor]:
        """Return the state tensors themselves; writing into them restores a state."""


@runtime_checkable
class Averaging(Protocol):
    """A `RowOptimizer` that keeps an average of its row, at which the trial is evaluated."""

    def average(self) -> Tensor:  # [parameter]
        """Return the average."""


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


class ScheduleFree:
    """Schedule-free SGD, or AdamW if it has a second `beta`; see `tuner.training.schedule_free`."""

    def __init__(
        self,
        row: Tensor,
        gradient: Tensor,
        *,
        momentum: float,
        weight_decay: float,
        beta2: float | None = None,
        eps: float = 0.0,
    ) -> None:
        self._row, self._gradient, self._z = row, gradient, row.clone()
        self._square = None if beta2 is None else torch.zeros_like(row)
        self._momentum, self._beta2, self._eps = momentum, beta2, eps
        self._weight_decay = weight_decay
        # the highest rate so far, and the sum of the squares of each step's
        self._numbers = _numbers(steps=0.0, highest=-1.0, total=0.0)

    def step(self, rate: float) -> None:
        """Update the row at a learning rate."""
        steps, highest, total = (one.item() for one in self._numbers.values())
        if steps == 0:  # the row may have been written since
            self._z.copy_(self._row)
        highest = max(rate, highest)
        total += highest**2
        _set(self._numbers, steps + 1, highest, total)
        share = highest**2 / total if total else 0.0
        direction = self._gradient
        if self._square is not None and self._beta2 is not None:
            self._square.mul_(self._beta2).addcmul_(direction, direction, value=1 - self._beta2)
            scale = self._square.div(1 - self._beta2 ** (steps + 1)).sqrt_().add_(self._eps)
            direction = direction / scale
        if self._weight_decay != 0:
            direction = direction.add(self._row, alpha=self._weight_decay)
        self._row.lerp_(self._z, share)
        self._row.add_(direction, alpha=rate * (self._momentum * (1 - share) - 1))
        self._z.sub_(direction, alpha=rate)

    def average(self) -> Tensor:  # [parameter]
        """Return the average."""
        if self._numbers["steps"] == 0:
            return self._row.clone()
        return self._row.lerp(self._z, 1 - 1 / self._momentum)

    def state(self) -> dict[str, Tensor]:
        """Return z, the mean square if there is one, and the numbers."""
        state = {"z": self._z, **self._numbers}
        return state if self._square is None else {**state, "square": self._square}


class Prodigy:
    """Prodigy, as in `tuner.training.rate_free`."""

    def __init__(
        self,
        row: Tensor,
        gradient: Tensor,
        *,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        d_coef: float,
        bias_correction: bool,
        safeguard_warmup: bool,
    ) -> None:
        self._row, self._gradient = row, gradient
        names = ("p0", "s", "exp_avg", "exp_avg_sq")
        self._state = {name: torch.zeros_like(row) for name in names}
        self._numbers = _numbers(steps=0.0, d=INITIAL_DISTANCE, numerator=0.0)
        self._eps, self._weight_decay = eps, weight_decay
        self._group: dict[str, Any] = {
            "betas": (beta1, beta2),
            "d_coef": d_coef,
            "use_bias_correction": bias_correction,
            "safeguard_warmup": safeguard_warmup,
        }

    def step(self, rate: float) -> None:
        """Update the row at a factor of the estimated rate."""
        steps, d, numerator = (one.item() for one in self._numbers.values())
        group = {**self._group, "k": int(steps), "d": d, "d_max": d, "d_numerator": numerator}
        if steps == 0:
            self._state["p0"].copy_(self._row)
        estimate = Distance(group)
        step = estimate.rate(rate)
        if rate > 0.0:
            estimate.observe(self._row, self._gradient, self._state, step)
        if not estimate.denominator:
            return
        estimate.update([group])
        _set(self._numbers, group["k"], group["d"], group["d_numerator"])
        scale = self._state["exp_avg_sq"].sqrt().add_(group["d"] * self._eps)
        if self._weight_decay != 0:
            self._row.mul_(1 - self._weight_decay * step)
        self._row.addcdiv_(self._state["exp_avg"], scale, value=-step)

    def state(self) -> dict[str, Tensor]:
        """Return the initial row, the averages and the numbers."""
        return {**self._state, **self._numbers}


class Dog:
    """DoG, as in `tuner.training.rate_free`."""

    def __init__(
        self, row: Tensor, gradient: Tensor, *, reps_rel: float, weight_decay: float, gamma: float
    ) -> None:
        self._row, self._gradient = row, gradient
        self._initial, self._average = torch.zeros_like(row), torch.zeros_like(row)
        self._numbers = _numbers(steps=0.0, distance=0.0, squares=1e-8)
        self._reps_rel, self._gamma = reps_rel, gamma
        self._weight_decay, self._decoupled = weight_decay, False

    def step(self, rate: float) -> None:
        """Update the row at a factor of the estimated rate."""
        steps, distance, squares = (one.item() for one in self._numbers.values())
        if steps == 0:
            self._initial.copy_(self._row)
            distance = self._reps_rel * (1 + float(torch.linalg.vector_norm(self._row)))
        gradient = _decayed(self, rate)
        away = float(torch.linalg.vector_norm(self._row - self._initial))
        distance = max(distance, away)
        squares += float(torch.linalg.vector_norm(gradient)) ** 2
        _set(self._numbers, steps + 1, distance, squares)
        self._row.add_(gradient, alpha=-rate * distance / math.sqrt(squares))
        self._average.lerp_(self._row, (1 + self._gamma) / (steps + 1 + self._gamma))

    def average(self) -> Tensor:  # [parameter]
        """Return the average."""
        return self._row.clone() if self._numbers["steps"] == 0 else self._average

    def state(self) -> dict[str, Tensor]:
        """Return the initial row, the average and the numbers."""
        return {"initial": self._initial, "average": self._average, **self._numbers}


def _numbers(**values: float) -> dict[str, Tensor]:
    """Return numbers that belong to a state, on the CPU, where they are calculated with."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def _set(numbers: Mapping[str, Tensor], *values: float) -> None:
    for number, value in zip(numbers.values(), values, strict=True):
        number.fill_(value)


def _decayed(update: Nadam | Rmsprop | Adagrad | Lion | Dog, rate: float) -> Tensor:
    """Apply weight decay, and return the gradient [parameter] for the update."""
    if update._weight_decay == 0:
        return update._gradient
    if update._decoupled:
        update._row.mul_(1 - rate * update._weight_decay)
        return update._gradient
    return update._gradient.add(update._row, alpha=update._weight_decay)


class Parted:
    """An optimizer for each part of a row that has its own multiplier of the rate."""

    def __init__(
        self, row: Tensor, parts: Sequence[Part], make: Callable[[slice], RowOptimizer]
    ) -> None:
        self.row = row
        self._parts = [
            (part.place, part.multiplier, make(part.place))
            for part in parts
            if part.multiplier is not None
        ]

    def step(self, rate: float) -> None:
        """Update the parts at a learning rate times their multipliers."""
        for _, multiplier, optimizer in self._parts:
            optimizer.step(rate * multiplier)

    def averages(self) -> Tensor | None:  # [parameter]
        """Return the row with the averages of its parts, or None if they have none."""
        row = self.row.clone()
        for place, _, optimizer in self._parts:
            if not isinstance(optimizer, Averaging):
                return None
            row[place] = optimizer.average()
        return row

    def state(self) -> dict[str, Tensor]:
        """Return the state of each part."""
        return {
            f"{index} {name}": tensor
            for index, (_, _, optimizer) in enumerate(self._parts)
            for name, tensor in optimizer.state().items()
        }


def averaged(optimizer: RowOptimizer) -> Tensor | None:  # [parameter]
    """Return the average of its row that an optimizer keeps, or None if it keeps none."""
    if isinstance(optimizer, Parted):
        return optimizer.averages()
    return optimizer.average() if isinstance(optimizer, Averaging) else None


def _adamw(row: Tensor, gradient: Tensor, **settings: float) -> RowOptimizer:
    return Adam(row, gradient, decoupled=True, **settings)


def _schedule_free_adamw(
    row: Tensor, gradient: Tensor, *, beta1: float, **settings: float
) -> RowOptimizer:
    return ScheduleFree(row, gradient, momentum=beta1, **settings)


ROW_OPTIMIZERS: Mapping[str, Callable[..., RowOptimizer]] = {
    "sgd": Sgd,
    "adam": Adam,
    "adamw": _adamw,
    "nadam": Nadam,
    "rmsprop": Rmsprop,
    "adagrad": Adagrad,
    "lion": Lion,
    "schedule_free_sgd": ScheduleFree,
    "schedule_free_adamw": _schedule_free_adamw,
    "prodigy": Prodigy,
    "dog": Dog,
}
"""Row optimizers by name, with the names and settings of `optimizers.OPTIMIZERS` but Muon."""

OF_WHOLE_ROWS = frozenset({"prodigy", "dog"})
"""Row optimizers whose steps depend on the whole row, so that it cannot have parts."""


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
    return Parted(row, parts, lambda place: made(row[place], gradient[place]))


def restore(optimizer: RowOptimizer, saved: Mapping[str, Tensor]) -> None:
    """Restore a state that `state` returned."""
    state = optimizer.state()
    assert state.keys() == saved.keys(), (list(state), list(saved))
    for name, tensor in state.items():
        tensor.copy_(saved[name])
