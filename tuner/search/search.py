"""Asking for parameters and deciding at rungs, on one study."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import Trial

from tuner.ledger import Reader, StudyRecord
from tuner.search.mirror import Mirror, View
from tuner.search.space import GridSampler, grid, suggest
from tuner.spec import ASHA, TPE, Grid, Listed, Median, NoPruner, ParameterValue, Random, StudySpec


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The parameters of a trial, and what the ledger keeps beside them."""

    params: Mapping[str, ParameterValue]  # complete
    attrs: Mapping[str, Any]  # the sampler's, of the trial
    study_attrs: Mapping[str, Any]  # the sampler's, of the study; only what it changed
    revision: int  # of the study that the draw saw


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the pruner says of a trial at a rung."""

    prune: bool
    reason: str
    attrs: Mapping[str, Any]  # the pruner's, of the trial


class Search:
    """The sampler and the pruner of one study.

    A draw is a function of the study's seed, the trial's number and the revision that it saw, so
    neither a restart nor a second worker repeats one.
    """

    def __init__(self, study: StudyRecord, ledger: Reader) -> None:
        self._id = study.id
        self._ledger = ledger
        self._spec = study.spec
        self._mirror = Mirror(study.spec)
        self._sampled = View(self._mirror, self._mirror.for_sampler)
        self._pruned = View(self._mirror, self._mirror.for_pruner)
        self._pruner = _pruner(study.spec, study.rungs)
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def refresh(self) -> None:
        """Read what changed in the ledger."""
        self._mirror.refresh(self._ledger.changes(self._id, self._mirror.revision))

    def draw(self, number: int) -> Draw:
        """Draw the parameters of a trial that has none yet."""
        self.refresh()
        self._sampled.begin(self._mirror.trial(number))
        study = _open(self._spec, self._sampled, sampler=_sampler(self._spec, number))
        params = suggest(Trial(study, number), self._spec.space)
        return Draw(
            params=params,
            attrs=self._sampled.get_trial(number).system_attrs,
            study_attrs=self._sampled.study_attrs,
            revision=self._mirror.revision,
        )

    def decide(self, number: int, step: int, value: float) -> Decision:
        """Decide whether a trial goes on from a rung, where its objective is `value`."""
        self.refresh()
        self._pruned.begin(self._mirror.trial(number))
        reported = self._pruned.get_trial(number)
        reported.intermediate_values[step] = value
        study = _open(self._spec, self._pruned, pruner=self._pruner)
        prune = self._pruner.prune(study, reported)
        better = "lower" if self._spec.study.direction == "minimize" else "higher"
        others = [
            trial.intermediate_values[step]
            for trial in self._mirror.for_pruner()
            if trial.number != number and step in trial.intermediate_values
        ]
        sign = 1 if better == "lower" else -1
        ahead = sum(sign * other < sign * value for other in others)
        place = f"{ahead} of the {len(others)} other trials there were {better}"
        what = f"{self._spec.study.metric} was {value:.4g} at step {step}, where {place}"
        name = self._spec.search.pruner.name
        reason = f"Pruned by {name}: {what}." if prune else f"Went on: {what}."
        attrs = self._pruned.get_trial(number).system_attrs
        return Decision(prune=prune, reason=reason, attrs=attrs)


def _open(
    spec: StudySpec,
    view: View,
    sampler: BaseSampler | None = None,
    pruner: BasePruner | None = None,
) -> optuna.Study:
    return optuna.Study(
        study_name=spec.study.name,
        storage=view,
        sampler=sampler or RandomSampler(seed=0),
        pruner=pruner or NopPruner(),
    )


def _sampler(spec: StudySpec, number: int) -> BaseSampler:
    """Make the sampler for one draw; its seed is the study's and the trial's."""
    sequence = np.random.SeedSequence([spec.study.seed, number])
    seed = int(sequence.generate_state(2, np.uint32)[1])
    sampler = spec.search.sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match sampler:
            case TPE():
                return TPESampler(seed=seed, n_startup_trials=sampler.startup_trials)
            case Random():
                return RandomSampler(seed=seed)
            case Grid():
                return GridSampler(grid(spec.space))
            case Listed():
                return GridSampler(sampler.params)


def _pruner(spec: StudySpec, rungs: tuple[int, ...]) -> BasePruner:
    pruner = spec.search.pruner
    match pruner:
        case ASHA():
            return SuccessiveHalvingPruner(
                min_resource=rungs[0] if rungs else spec.training.steps,
                reduction_factor=pruner.reduction_factor,
            )
        case Median():
            return MedianPruner(n_startup_trials=pruner.startup_trials)
        case NoPruner():
            return NopPruner()
