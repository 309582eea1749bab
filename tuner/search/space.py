"""The search space as Optuna's distributions, and draws from it."""

from __future__ import annotations

from collections.abc import Mapping
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

from tuner.config import (
    CHOSEN,
    Entry,
    Parameter,
    ParameterValue,
    Range,
    Space,
    WholeRange,
    options,
)


def distribution(entry: Entry) -> BaseDistribution:
    """Return the distribution of an entry of the space, as recorded in Optuna."""
    if isinstance(entry, WholeRange):
        return IntDistribution(entry.low, entry.high, log=bool(entry.log))
    if isinstance(entry, Range):
        return FloatDistribution(entry.low, entry.high, log=bool(entry.log))
    return CategoricalDistribution(options(entry))


def distributions(space: Space, params: Mapping[str, ParameterValue]) -> dict[str, Any]:
    """Return the distributions of a trial's searched parameters, as recorded in Optuna.

    These are the rate, the schedule and the optimizer, and the other parameters that vary.
    """
    return {
        one.name: distribution(one.entry)
        for one in space.parameters()
        if one.name in params and _is_searched(one)
    }


def _is_searched(one: Parameter) -> bool:
    return one.varies or one.name in CHOSEN


# --- what samplers see: a list of numbers is ordered, as the indices of its sorted values


def ordered_distribution(one: Parameter) -> BaseDistribution:
    """Return the distribution of a parameter for samplers."""
    values = one.ordered
    if one.varies and values is not None:
        return IntDistribution(0, len(values) - 1)
    return distribution(one.entry)


def to_sampler(one: Parameter, value: ParameterValue) -> Any:
    """Return a parameter's value as samplers see it."""
    values = one.ordered
    if one.varies and values is not None:
        return values.index(cast("float", value))
    return value


def for_sampler(space: Space, params: Mapping[str, ParameterValue]) -> dict[str, Any]:
    """Return some parameters of a trial as samplers see them."""
    known = {one.name: one for one in space.parameters()}
    return {name: to_sampler(known[name], value) for name, value in params.items()}


def from_sampler(one: Parameter, value: Any) -> ParameterValue:
    """Return a parameter's value from what a sampler drew."""
    values = one.ordered
    if one.varies and values is not None:
        return values[int(value)]
    return cast("ParameterValue", value)


def all_distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the distributions, for samplers, of all varying parameters, conditional ones too."""
    found = {one.name: ordered_distribution(one) for one in space.parameters()}
    return {key: one for key, one in found.items() if not one.single()}


def shared_distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the distributions, for samplers, of the numbers that every trial has."""
    every = all_distributions(space)
    return {key: every[key] for key in space.shared_numbers()}


def suggest(trial: Trial, space: Space) -> dict[str, ParameterValue]:
    """Return the complete parameters of a trial, drawn ones and fixed ones."""
    params: dict[str, ParameterValue] = {}
    for one in space.parameters():
        if not one.exists(params):
            continue
        if _is_searched(one):
            drawn = _suggest(trial, one.name, ordered_distribution(one))
            params[one.name] = from_sampler(one, drawn)
        else:
            params[one.name] = options(one.entry)[0]
    return params


def completed(space: Space, drawn: Mapping[str, Any]) -> dict[str, ParameterValue]:
    """Return the complete parameters of a trial from those that a sampler drew."""
    params: dict[str, ParameterValue] = {}
    for one in space.parameters():
        if one.exists(params):
            found = one.name in drawn
            value = from_sampler(one, drawn[one.name]) if found else options(one.entry)[0]
            params[one.name] = value
    return params


def _suggest(trial: Trial, name: str, of: BaseDistribution) -> Any:
    if isinstance(of, IntDistribution):
        return trial.suggest_int(name, of.low, of.high, log=of.log)
    if isinstance(of, FloatDistribution):
        return trial.suggest_float(name, of.low, of.high, log=of.log)
    assert isinstance(of, CategoricalDistribution)
    return trial.suggest_categorical(name, of.choices)


class IndependentSampler(BaseSampler):
    """Draws every parameter by `sample_independent`."""

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


class FixedSampler(IndependentSampler):
    """Draws one fixed combination of parameters."""

    def __init__(self, space: Space, params: Mapping[str, ParameterValue]) -> None:
        self._params = for_sampler(space, params)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the parameter's value in the combination."""
        return self._params[param_name]
