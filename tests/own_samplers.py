"""Samplers that a user might write, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


class Between(BaseSampler):
    """Draws each rate halfway between the middle of the range and the largest rate so far."""

    def __init__(self, share: float = 0.5) -> None:
        self._share = share

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return no parameters: all are drawn by themselves."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return no parameters."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        """Return the first choice, or a rate by those of other trials."""
        if isinstance(distribution, IntDistribution):
            return distribution.low
        if not isinstance(distribution, FloatDistribution):
            return next(iter(getattr(distribution, "choices", (None,))))
        others = [one.params[name] for one in study.trials if name in one.params]
        if not others:
            return float(np.sqrt(distribution.low * distribution.high))
        largest = max(others)
        return float(largest ** (1 - self._share) * distribution.high**self._share)


class Seeded(RandomSampler):
    """Draws as Optuna's random sampler does with the same seed."""


class WithState(TPESampler):
    """Optuna's TPE, which learns from completed trials."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed, n_startup_trials=2)


def fixed_rate(seed: int, lr: float) -> BaseSampler:
    """Fix the rate; draw everything else at random."""
    return PartialFixedSampler({"lr": lr}, RandomSampler(seed=seed))


class Raising(RandomSampler):
    """Raises as soon as a trial has completed, or when it is made if it is `broken`."""

    def __init__(self, broken: bool = False) -> None:
        if broken:
            raise RuntimeError("no licence for this sampler")
        super().__init__()

    def sample_independent(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        """Draw, or raise."""
        if any(one.state is TrialState.COMPLETE for one in study.trials):
            raise ZeroDivisionError("nothing is left to divide")
        return super().sample_independent(study, trial, name, distribution)


def unannotated(seed):
    """Leave a trace: no study may call this."""
    Path("ran").touch()
    return RandomSampler(seed=seed)
