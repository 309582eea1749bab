"""Asking for parameters and deciding at rungs, on one study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import Trial

from tuner.ledger import Reader, StudyRecord
from tuner.search.mirror import Mirror, View
from tuner.search.pruners import bracket_of, pruner_for, sentence
from tuner.search.samplers import LEARN_FROM_VALUES, sampler_for
from tuner.search.space import suggest
from tuner.spec import ParameterValue


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
        self._name = study.title
        mirror = self._mirror = Mirror(study.spec, study.title)
        by_value = isinstance(study.spec.search.sampler, LEARN_FROM_VALUES)
        self._sampled = View(mirror, mirror.for_values if by_value else mirror.for_sampler)
        self._pruned = View(mirror, mirror.for_pruner)
        self._pruner = pruner_for(study.spec, study.rungs)
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def refresh(self) -> None:
        """Read what changed in the ledger."""
        self._mirror.refresh(self._ledger.changes(self._id, self._mirror.revision))

    def draw(self, number: int) -> Draw:
        """Draw the parameters of a trial that has none yet."""
        self.refresh()
        self._sampled.begin(self._mirror.trial(number))
        known = self._mirror.imported()
        sources = self._mirror.sources() if known else []
        sampler = sampler_for(self._spec, number, known, sources)
        study = self._open(self._sampled, sampler)
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
        study = self._open(self._pruned)
        prune = self._pruner.prune(study, reported)
        bracket = bracket_of(self._pruner, study, reported)
        others = [
            trial.intermediate_values[step]
            for trial in self._mirror.for_pruner()
            if trial.number != number
            and step in trial.intermediate_values
            and bracket_of(self._pruner, study, trial) == bracket
        ]
        reason = sentence(
            self._spec, prune=prune, step=step, value=value, others=others, bracket=bracket
        )
        attrs = self._pruned.get_trial(number).system_attrs
        return Decision(prune=prune, reason=reason, attrs=attrs)

    def _open(self, view: View, sampler: BaseSampler | None = None) -> optuna.Study:
        return optuna.Study(
            study_name=self._name,
            storage=view,
            sampler=sampler or RandomSampler(seed=0),
            pruner=self._pruner,
        )
