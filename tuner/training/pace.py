"""A trial's rate, step by step: planned ahead where the schedule is a function of the step alone.

A trainer asks for the rate of each step, and tells what it measured at each evaluation. The plans
of pure schedules do not listen; plateau does, and keeps a state that belongs into the snapshot. So
only a trainer that goes through one trial's evaluations in order can run it.
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


class Pace(Protocol):
    """The rates of one trial.

    Invariant: the rate of step t depends on the trial's parameters, the horizon and the evaluations
    up to step t alone.
    """

    warmup: int  # steps before the rate is at its highest, in which the guard holds back

    def rate(self, step: int) -> float:
        """Give the learning rate of the update from `step` to the next."""

    def factor(self, step: int) -> float:
        """Return what evaluations have made of the multiplier of a step: 1, or less."""

    def ahead(self, step: int, evaluations: Sequence[int]) -> list[float]:
        """Give the rates from `step` to the horizon, if none of the `evaluations` is progress.

        These are the steps of all evaluations; those from `step` on are still to come.
        """

    def rates(self, step: int, count: int) -> list[float]:
        """Give the rates of so many steps; there is no evaluation between them."""

    def evaluated(self, step: int, value: float) -> None:
        """Take in the study's metric, finite, as measured at `step`."""

    def state(self) -> dict[str, float]:
        """Give what it learnt from evaluations, for a snapshot."""

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` gave."""


class Planned:
    """The rates of a pure schedule; a `Pace`."""

    def __init__(self, params: Mapping[str, ParameterValue], horizon: int) -> None:
        multipliers = schedules.multipliers(params, horizon)
        self._rates: list[float] = (float(params["lr"]) * multipliers).tolist()
        self.warmup = schedules.first_highest(multipliers)

    def rate(self, step: int) -> float:
        """Look the rate up."""
        return self._rates[step]

    def factor(self, step: int) -> float:
        """Return 1."""
        return 1.0

    def ahead(self, step: int, evaluations: Sequence[int]) -> list[float]:
        """Give what is planned."""
        return self._rates[step:]

    def rates(self, step: int, count: int) -> list[float]:
        """Look rates up."""
        return self._rates[step : step + count]

    def evaluated(self, step: int, value: float) -> None:
        """Do nothing."""

    def state(self) -> dict[str, float]:
        """Give nothing."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        """Do nothing."""
        assert not state, state


class Plateau:
    """A rate that falls by `factor` when more than `patience` evaluations bring no progress.

    A `Pace`, with the rule of torch's `ReduceLROnPlateau(threshold_mode="rel", eps=0)`: an
    evaluation is progress if it is better than the best so far by more than `threshold` of it;
    after the fall, counting begins anew. Differences: the threshold is a share of the best value's
    size, so that negative metrics work too; `floor` is torch's `min_lr` as a multiplier; and
    evaluations within the warm-up are passed over, since its rates are not the one to be judged.
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
        self._before = 1.0  # the multiplier before its last fall
        self._fell = 0  # the step from which it has been what it is
        self._best = math.inf  # with the sign that makes lower better
        self._waited = 0  # evaluations in a row without progress

    def rate(self, step: int) -> float:
        """Give the rate as it is now, and for steps before the last fall as it was until then."""
        return self._rates[step] * self.factor(step)

    def factor(self, step: int) -> float:
        """Return the multiplier that falls, as it is for a step."""
        return self._multiplier if step >= self._fell else self._before

    def ahead(self, step: int, evaluations: Sequence[int]) -> list[float]:
        """Let a copy wait in vain."""
        later, rates = copy.copy(self), []
        for evaluation in evaluations:
            if evaluation >= step:
                rates += later.rates(step, evaluation - step)
                later.evaluated(evaluation, self._sign * sys.float_info.max)
                step = evaluation
        return rates + later.rates(step, len(self._rates) - step)

    def rates(self, step: int, count: int) -> list[float]:
        """Give rates as they are now."""
        return [self.rate(step + index) for index in range(count)]

    def evaluated(self, step: int, value: float) -> None:
        """Count an evaluation, and let the rate fall when the patience is over."""
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
        """Give the multiplier and its last fall, the best value and how long it has waited."""
        return {
            "multiplier": self._multiplier,
            "before": self._before,
            "fell": self._fell,
            "best": self._best,
            "waited": self._waited,
        }

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` gave."""
        self._multiplier, self._best = state["multiplier"], state["best"]
        self._waited = int(state["waited"])
        # version 0.1.0 did not keep these
        self._before, self._fell = state.get("before", 1.0), int(state.get("fell", 0))


STATEFUL: Mapping[str, Callable[..., Pace]] = {"plateau": Plateau}
"""Every schedule with a state by its name; the others are in `schedules.SCHEDULES`."""


def pace(params: Mapping[str, ParameterValue], horizon: int, direction: str) -> Pace:
    """Give the pace of a trial from its flat parameters; `direction` is the study's."""
    name = str(params["schedule"])
    if name in STATEFUL:
        return STATEFUL[name](float(params["lr"]), horizon, direction, **own(params, name))
    return Planned(params, horizon)


def planned(params: Mapping[str, ParameterValue], horizon: int) -> Tensor:
    """Return a trial's multipliers before any evaluation, float64 [step]; see `Pace.factor`."""
    name = str(params["schedule"])
    if name in STATEFUL:
        return _constant(horizon, float(own(params, name).get("warmup", 0.0)))
    return schedules.multipliers(params, horizon)


def _constant(horizon: int, warmup: float) -> Tensor:  # [step]
    constant: dict[str, ParameterValue] = {"schedule": "constant", "constant.warmup": warmup}
    return schedules.multipliers(constant, horizon)
