"""A trial's schedule as a `torch.optim.lr_scheduler.LRScheduler` for a user's own optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tuner.training.rate_source import RateSource


class TrialSchedule(LRScheduler):
    """The study's schedule: each parameter group has its own initial rate times the multiplier.

    `last_epoch` counts updates. A parameter group that is added later keeps its own initial rate.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        lr: float,
        multipliers: Sequence[float],  # [update], before any evaluation
        factor: Callable[[int], float],  # see `RateSource.factor`, by update
        rate_source: RateSource,
        update: int = 0,  # the first update
    ) -> None:
        self._lr, self._multipliers = lr, multipliers
        self._factor, self._rate_source = factor, rate_source
        super().__init__(optimizer)
        if update:
            self.move_to(update)

    @property
    def multiplier(self) -> float:
        """The multiplier of the next update."""
        update = self.last_epoch
        return self._multipliers[min(update, len(self._multipliers) - 1)] * self._factor(update)

    @property
    def rate(self) -> float:
        """The rate of the next update of a group whose initial rate is the trial's."""
        return self._lr * self.multiplier

    def get_lr(self) -> list[float | Tensor]:
        """Return the rate of each group for the next update."""
        multiplier = self.multiplier
        return [_initial(group) * multiplier for group in self.optimizer.param_groups]

    def move_to(self, update: int) -> None:
        """Set the rates of an update."""
        self.last_epoch = update
        self.refresh()

    def refresh(self) -> None:
        """Set the rates of the next update again, after an evaluation has changed them."""
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(float(rate))
            else:
                group["lr"] = rate
        self._last_lr = [copy.deepcopy(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; the initial rates are in the optimizer's state."""
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "pace": dict(self._rate_source.state()),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned, and set the rates."""
        if "updates" in state_dict:  # as version 0.1.0 wrote it
            self.move_to(state_dict["updates"])
            return
        self._step_count = state_dict["_step_count"]
        self._rate_source.restore(state_dict["pace"])
        self.move_to(state_dict["last_epoch"])


def _initial(group: dict[str, Any]) -> Any:
    """Return the initial rate of a parameter group, stored in the group on first use."""
    if "initial_lr" not in group:
        group["initial_lr"] = copy.deepcopy(group["lr"])
    return group["initial_lr"]
