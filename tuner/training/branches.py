"""Branches: copies of a member that are trained on under another schedule and evaluated.

A learning rate cannot be judged in the middle of its schedule: a high rate looks bad until it
decays. A branch decays first. It has the member's parameters, optimizer state, buffers and position
in the data, and random numbers of its own, so the member's curve is the same with and without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from tuner.training.rate_source import PlannedRates

Schedule: TypeAlias = Callable[[Sequence[float], int], list[float]]
"""Map the rates of a trial from its current step to the horizon to those of a branch's steps."""


@dataclass(frozen=True, kw_only=True)
class BranchPlan:
    """How long and under which schedule a branch is trained."""

    steps: int
    schedule: Schedule
    averaged: bool = False  # evaluate the average of the parameters after each of its updates


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A branch of a trial, trained and evaluated."""

    number: int  # of the trial
    step: int  # of the trial, at which the branch began
    losses: np.ndarray  # float64 [step]; up to the first non-finite one
    rates: np.ndarray  # float64 [step]
    time: float  # of the evaluation, in seconds of a monotonic clock
    metrics: Mapping[str, float]  # at its end; nan if it diverged before
    error: BaseException | None = None  # raised by the workload; the metrics are nan


def fast_forward(rates: Sequence[float], steps: int) -> list[float]:
    """Return the rates of a schedule's rest, compressed into fewer steps.

    Step j has the rate in the middle of its share of the rest: for the rate r(t) of a trial at
    step s of H, that is r(s + (H - s) (j + 1/2) / steps).
    """
    return [rates[len(rates) * (2 * j + 1) // (2 * steps)] for j in range(steps)]


def same_schedule(rates: Sequence[float], steps: int) -> list[float]:
    """Return the next rates of the schedule itself."""
    return list(rates[:steps])


class BranchRates(PlannedRates):
    """The rates of a branch, a `RateSource` that begins at the step of its member."""

    def __init__(self, first_step: int, rates: Sequence[float]) -> None:
        self._first_step = first_step
        self._rates = list(rates)
        self.warmup = 0

    def rate(self, step: int) -> float:
        """Return the planned rate."""
        return self._rates[step - self._first_step]

    def ahead(self, step: int, evaluations: Sequence[int]) -> list[float]:
        """Return the planned rates from `step` on."""
        return self._rates[step - self._first_step :]

    def rates(self, step: int, count: int) -> list[float]:
        """Return planned rates."""
        return self._rates[step - self._first_step :][:count]


class LossMonitor(Protocol):
    """Observes the losses of a member and decides when to stop it."""

    def observe(self, loss: float, grad_norm: float) -> str:
        """Observe a step and return the reason to stop there, or an empty string."""

    def observe_if_calm(self, losses: Sequence[float], grad_norms: Sequence[float]) -> bool:
        """Observe steps if none can be a reason to stop; return whether they were observed."""

    def set_initial_loss(self, val_loss: float) -> None:
        """Set the validation loss before the first step."""

    def absorb_calm(self) -> None:
        """Absorb the steps observed by `observe_if_calm`."""


class FiniteMonitor:
    """A `LossMonitor` that stops at the first number that is not finite; for branches."""

    def observe(self, loss: float, grad_norm: float) -> str:
        """Return a reason if one of them is not finite."""
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        return "" if finite else "a loss or gradient of the branch was not finite"

    def observe_if_calm(self, losses: Sequence[float], grad_norms: Sequence[float]) -> bool:
        """Return whether all are finite."""
        return math.isfinite(sum(losses) + sum(grad_norms))

    def set_initial_loss(self, val_loss: float) -> None:
        """Do nothing."""

    def absorb_calm(self) -> None:
        """Do nothing."""


def seed_of_branch(seed: int, step: int) -> int:
    """Derive the seed of a branch's random numbers from its trial's and the step it begins at."""
    return int(np.random.SeedSequence([seed, step, 1]).generate_state(1, np.uint32)[0])
