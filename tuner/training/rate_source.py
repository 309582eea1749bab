"""The learning rate of one trial at each step, for schedules with and without feedback.

A trainer asks for the rate of each step and passes on what it measured at each evaluation. Pure
schedules are functions of the step, so their rates are planned in advance. `plateau` reacts to
evaluations; its state belongs in the snapshot, and it needs the evaluations in order.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from tuner.config import ParameterValue, own
from tuner.training import schedules


class RateSource(Protocol):
    """The rates of one trial.

    Invariant: the rate of step t depends on the trial's parameters, the horizon and the evaluations
    up to step t alone.
    """

    warmup: int  # steps before the rate first peaks; until then the guard only checks finiteness

    def rate(self, step: int) -> float:
        """Return the learning rate of the update from `step` to the next."""

    def factor(self, step: int) -> float:
        """Return the factor, at most 1, that evaluations have put on the multiplier of a step."""

    def ahead(self, step: int, evaluations: Sequence[int]) -> list[float]:
        """Return the rates from `step` to the horizon, if no further evaluation improves.

        `evaluations` are the steps of all evaluations; those before `step` are ignored.
        """

    def rates(self, step: int, count: int) -> list[float]:
        """Return the rates of `count` steps from `step` on, without an evaluation between them."""

    def evaluated(self, step: int, value: float) -> None:
        """React to the study's metric as measured at `step`; it must be finite."""

    def state(self) -> dict[str, float]:
        """Return the state that depends on evaluations, for a snapshot."""

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from a state that `state` returned."""


class PlannedRates:
    """The rates of a pure schedule; a `RateSource`."""

    def __init__(self, params: Mapping[str, ParameterValue], horizon: int) -> None:
        multipliers = schedules.multipliers(params, horizon)
        self._rates: list[float] = (float(params["lr"]) * multipliers).tolist()
        self.warmup = schedules.first_highest(multipliers)

    def rate(self, step: int) -> float:
        """Return the planned rate."""
        return self._rates[step]

    def factor(self, step: int) -> float:
        """Return 1."""
        return 1.0

    def ahead(self, step: int, evaluations: Sequence[int]) -> list[float]:
        """Return the planned rates from `step` on."""
        return self._rates[step:]

    def rates(self, step: int, count: int) -> list[float]:
        """Return planned rates."""
        return self._rates[step : step + count]

    def evaluated(self, step: int, value: float) -> None:
        """Do nothing."""

    def state(self) -> dict[str, float]:
        """Return an empty state."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Do nothing."""
        assert not state, state


class PlateauRates:
    """Multiply the rate by `factor` after more than `patience` evaluations without improvement.

    A `RateSource` with the rule of torch's `ReduceLROnPlateau(threshold_mode="rel", eps=0)`: an
    evaluation improves if it is better than the best so far by more than `threshold` times it;
    counting restarts after a reduction. Differences: the threshold is relative to the absolute
    value of the best, so that negative metrics work; `floor` is torch's `min_lr` as a multiplier;
    and evaluations during the warm-up are ignored, since the rate has not been reached yet.
    """

    def __init__(
        self,
        lr: float,
        horizon: int,
        direction: str,  # of the study's metric
        *,
        factor: float,
        patience: int,
        threshold: float,
        floor: float,
        warmup: float = 0.0,
    ) -> None:
        multipliers = _constant(horizon, warmup)
        self._rates: list[float] = (lr * multipliers).tolist()
        self.warmup = schedules.first_highest(multipliers)
        self._sign = 1.0 if direction == "minimize" else -1.0
        self._factor, self._patience = factor, patience
        self._threshold, self._floor = threshold, floor
        self._multiplier = 1.0
        self._before = 1.0  # the multiplier before its last reduction
        self._fell = 0  # the step of the last reduction
        self._best = math.inf  # negated if the study maximizes
        self._waited = 0  # consecutive evaluations without improvement

    def rate(self, step: int) -> float:
        """Return the rate of a step; steps before the last reduction have the rate before it."""
        return self._rates[step] * self.factor(step)

    def factor(self, step: int) -> float:
        """Return the reduced multiplier of a step."""
        return self._multiplier if step >= self._fell else self._before

    def ahead(self, step: int, evaluations: Sequence[int]) -> list[float]:
        """Return the rates of a copy whose evaluations never improve."""
        later, rates = copy.copy(self), []
        for evaluation in evaluations:
            if evaluation >= step:
                rates += later.rates(step, evaluation - step)
                later.evaluated(evaluation, self._sign * sys.float_info.max)
                step = evaluation
        return rates + later.rates(step, len(self._rates) - step)

    def rates(self, step: int, count: int) -> list[float]:
        """Return rates with the current multiplier."""
        return [self.rate(step + index) for index in range(count)]

    def evaluated(self, step: int, value: float) -> None:
        """Count an evaluation, and reduce the rate if the patience is exceeded."""
        if step < self.warmup:
            return
        signed = self._sign * value
        if self._best == math.inf or signed < self._best - self._threshold * abs(self._best):
            self._best, self._waited = signed, 0
            return
        self._waited += 1
        if self._waited > self._patience:
            self._waited = 0
            if self._multiplier > self._floor:
                self._before, self._fell = self._multiplier, step
                self._multiplier = max(self._multiplier * self._factor, self._floor)

    def state(self) -> dict[str, float]:
        """Return the multiplier, its last reduction, the best value and the evaluations since."""
        return {
            "multiplier": self._multiplier,
            "before": self._before,
            "fell": self._fell,
            "best": self._best,
            "waited": self._waited,
        }

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from a state that `state` returned."""
        self._multiplier, self._best = state["multiplier"], state["best"]
        self._waited = int(state["waited"])
        # version 0.1.0 did not keep these
        self._before, self._fell = state.get("before", 1.0), int(state.get("fell", 0))


STATEFUL: Mapping[str, Callable[..., RateSource]] = {"plateau": PlateauRates}
"""Schedules that react to evaluations, by name; the others are in `schedules.SCHEDULES`."""


def rate_source(params: Mapping[str, ParameterValue], horizon: int, direction: str) -> RateSource:
    """Return the rates of a trial from its flat parameters and the study's `direction`."""
    name = str(params["schedule"])
    if name in STATEFUL:
        return STATEFUL[name](float(params["lr"]), horizon, direction, **own(params, name))
    return PlannedRates(params, horizon)


def initial_multipliers(params: Mapping[str, ParameterValue], horizon: int) -> Tensor:
    """Return a trial's multipliers without reductions, float64 [step]; see `RateSource.factor`."""
    name = str(params["schedule"])
    if name in STATEFUL:
        return _constant(horizon, float(own(params, name).get("warmup", 0.0)))
    return schedules.multipliers(params, horizon)


def _constant(horizon: int, warmup: float) -> Tensor:  # [step]
    constant: dict[str, ParameterValue] = {"schedule": "constant", "constant.warmup": warmup}
    return schedules.multipliers(constant, horizon)
