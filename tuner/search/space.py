"""The search space as Optuna's distributions, and draws from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, cast

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from tuner.config import Entry, ParameterValue, Range, Space, WholeRange, options


def distribution(entry: Entry) -> BaseDistribution:
    """Return the distribution of an entry of the space."""
    if isinstance(entry, WholeRange):
        return IntDistribution(entry.low, entry.high, log=bool(entry.log))
    if isinstance(entry, Range):
        return FloatDistribution(entry.low, entry.high, log=bool(entry.log))
    return CategoricalDistribution(options(entry))


def distributions(space: Space, params: Mapping[str, ParameterValue]) -> dict[str, Any]:
    """Return the distributions of a trial's searched parameters.

    These are the rate, the schedule, the optimizer, and the parameters of the two that vary.
    """
    found = {
        "lr": distribution(space.lr),
        "schedule": CategoricalDistribution([choice.name for choice in space.schedule]),
        "optimizer": CategoricalDistribution([choice.name for choice in space.optimizer]),
    }
    chosen = space.entries(str(params["schedule"]), str(params["optimizer"]))
    return found | {key: distribution(entry) for key, entry in chosen.items() if _varies(entry)}


def all_distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the distributions of all varying parameters, of every schedule and optimizer."""
    found = {
        "lr": distribution(space.lr),
        "schedule": CategoricalDistribution([choice.name for choice in space.schedule]),
        "optimizer": CategoricalDistribution([choice.name for choice in space.optimizer]),
    }
    for choice in (*space.schedule, *space.optimizer):
        found |= {key: distribution(entry) for key, entry in choice.entries()}
    return {key: one for key, one in found.items() if not one.single()}


def shared_distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the distributions of the ranges that every trial has."""
    every = all_distributions(space)
    return {key: every[key] for key in space.shared_ranges()}


def suggest(trial: Trial, space: Space) -> dict[str, ParameterValue]:
    """Return the complete parameters of a trial, drawn ones and fixed ones."""
    params: dict[str, ParameterValue] = {
        "lr": _suggest(trial, "lr", space.lr),
        "schedule": _suggest(trial, "schedule", tuple(c.name for c in space.schedule)),
        "optimizer": _suggest(trial, "optimizer", tuple(c.name for c in space.optimizer)),
    }
    for key, entry in space.entries(str(params["schedule"]), str(params["optimizer"])).items():
        params[key] = _suggest(trial, key, entry) if _varies(entry) else options(entry)[0]
    return params


def _suggest(trial: Trial, name: str, entry: Entry) -> ParameterValue:
    if isinstance(entry, WholeRange):
        return trial.suggest_int(name, entry.low, entry.high, log=bool(entry.log))
    if isinstance(entry, Range):
        return trial.suggest_float(name, entry.low, entry.high, log=bool(entry.log))
    return cast("ParameterValue", trial.suggest_categorical(name, options(entry)))


def _varies(entry: Entry) -> bool:
    return isinstance(entry, Range) or len(options(entry)) > 1


class GridCells:
    """Every combination of a space's values, in the order of the study file.

    The rate varies slowest. A parameter of another schedule or optimizer does not multiply the
    combinations, unlike in Optuna's GridSampler. A combination is computed from its index: a grid
    may have more of them than fit in memory.
    """

    def __init__(self, space: Space) -> None:
        self._rates = options(space.lr)
        self._blocks = [  # the combinations of one schedule and one optimizer
            {
                "schedule": (schedule.name,),
                "optimizer": (optimizer.name,),
                **{
                    name: options(entry)
                    for name, entry in space.entries(schedule.name, optimizer.name).items()
                },
            }
            for schedule, optimizer in product(space.schedule, space.optimizer)
        ]
        self._sizes = [math.prod(map(len, block.values())) for block in self._blocks]
        self.size = len(self._rates) * sum(self._sizes)

    def at(self, index: int) -> dict[str, ParameterValue]:
        """Return one combination. Raise `IndexError`."""
        if not 0 <= index < self.size:
            raise IndexError(f"combination {index} of a grid of {self.size}")
        rate, rest = divmod(index, sum(self._sizes))
        block = 0
        while rest >= self._sizes[block]:
            rest -= self._sizes[block]
            block += 1
        chosen: dict[str, ParameterValue] = {}
        for name, values in reversed(self._blocks[block].items()):  # the last one varies fastest
            rest, digit = divmod(rest, len(values))
            chosen[name] = values[digit]
        return {"lr": self._rates[rate], **dict(reversed(chosen.items()))}

    def index(self, params: Mapping[str, ParameterValue]) -> int | None:
        """Return the index of a combination, or None if the grid does not have it."""
        if params.get("lr") not in self._rates:
            return None
        before = self._rates.index(params["lr"]) * sum(self._sizes)
        for block, size in zip(self._blocks, self._sizes, strict=True):
            if params.keys() == {"lr", *block} and all(
                params[name] in values for name, values in block.items()
            ):
                within = 0
                for name, values in block.items():
                    within = within * len(values) + values.index(params[name])
                return before + within
            before += size
        return None

    def untried(self, index: int, tried: Iterable[Mapping[str, ParameterValue]]) -> int:
        """Return the index in the grid of the combination `index` among those not tried."""
        known = {found for params in tried if (found := self.index(params)) is not None}
        for found in sorted(known):
            if found <= index:
                index += 1
        return index


class FixedSampler(BaseSampler):
    """Draws one fixed combination of parameters."""

    def __init__(self, params: Mapping[str, ParameterValue]) -> None:
        self._params = params

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Leave every parameter to `sample_independent`."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return no parameters."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the parameter's value in the combination."""
        return self._params[param_name]
