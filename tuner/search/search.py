"""The search of one study: draws parameters of trials and decides at rungs."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, Trial

from tuner.config import CMAES, TPE, Auto, Custom, ParameterValue, Space
from tuner.ledger import Reader, StudyRecord
from tuner.ledger.ranges import ActiveRange, history
from tuner.ledger.records import ADDED, FIXED
from tuner.search import custom
from tuner.search.active_range import extend, trials_in_range, with_range
from tuner.search.mirror import Mirror, TrialsByNumber
from tuner.search.pruners import (
    GroupPruner,
    Judged,
    bracket_of,
    pruner_for,
    reason_of_decision,
)
from tuner.search.regret import regret_bound
from tuner.search.rungs import RungRankings, rungs
from tuner.search.samplers import (
    LEARN_FROM_VALUES,
    first_params,
    sampler_for,
    sampler_of,
)
from tuner.search.space import FixedSampler, for_sampler, suggest
from tuner.search.storage import MirrorStorage
from tuner.search.tpe import Observations
from tuner.search.transfer import Source, sources_of

REDRAWS = 20
"""Draws of a sampler that may violate the constraints before a trial is drawn at random."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The parameters of a trial, and what the ledger stores with them."""

    params: Mapping[str, ParameterValue]  # complete
    attrs: Mapping[str, Any]  # the sampler's, of the trial
    study_attrs: Mapping[str, Any]  # the sampler's, of the study; only what it changed
    revision: int  # of the study that the draw saw


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The pruner's decision on a trial at a rung."""

    prune: bool
    reason: str
    attrs: Mapping[str, Any]  # the pruner's, of the trial


class Search:
    """The sampler and the pruner of one study.

    A draw is a function of the study's seed, the trial's number, the revision that it saw and the
    earlier draws of the same call. So neither a restart nor a second worker repeats a draw.
    """

    def __init__(self, study: StudyRecord, ledger: Reader, prefixes: Sequence[str] = ()) -> None:
        """Load a sampler of the user's own. Raise `WorkloadError` if it is not allowed."""
        self._id = study.id
        self._study = study
        self._ledger = ledger
        self._spec = study.spec
        self._name = study.title
        self._mirror = Mirror(study.spec, study.title)
        sampler = study.spec.search.sampler
        by_columns = isinstance(sampler, TPE | Auto) and not study.spec.study.objectives
        self._observations = Observations(study.spec) if by_columns else None
        self._custom = custom.load(study.spec, prefixes)
        self._sources: tuple[Space, list[Source]] | None = None
        self._drawing = 0  # number of the trial being drawn
        self._pruner = pruner_for(study.spec, study.rungs)
        self._storage = MirrorStorage(self._mirror, self._for_sampler)
        self._pruner_study = self._optuna_study(
            MirrorStorage(self._mirror, self._mirror.completed_competitors)
        )
        self._rankings = RungRankings(
            maximize=study.spec.study.direction == "maximize",
            bracket=lambda trial: bracket_of(self._pruner, self._pruner_study, trial),
        )
        self._group_pruner = GroupPruner(study.spec, study.rungs, self._rankings)
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def refresh(self) -> None:
        """Read what changed in the ledger."""
        changes = self._ledger.searched(self._id, self._mirror.revision)
        self._mirror.refresh(changes)
        for record in changes.trials:
            if self._mirror.for_sampler().get(record.number) is None:
                continue  # it cannot be read
            self._observe(self._mirror.for_sampler()[record.number])
            competitor = self._mirror.for_pruner().get(record.number)
            if competitor is None:
                self._rankings.remove(record.number)
            else:
                self._rankings.update(competitor)

    def draw(self, number: int) -> Draw:
        """Return the parameters of a trial that has none yet."""
        (draw,) = self.draw_together([number])
        return draw

    def draw_together(self, numbers: Sequence[int]) -> list[Draw]:
        """Return the parameters of trials that have none yet; each draw sees the ones before it."""
        self.refresh()
        draws = []
        with self._mirror.with_draws() as assume:
            for number in numbers:
                draws.append(self._draw(number))
                drawn = self._storage.get_trial(number)
                assume(drawn, self._storage.study_attrs)
                self._observe(drawn)
        for number in numbers:
            self._observe(self._mirror.trial(number))
        return draws

    def _observe(self, trial: FrozenTrial) -> None:
        if self._observations is not None:
            self._observations.update(trial)

    def _draw(self, number: int) -> Draw:
        """Draw until the constraints hold, from a random combination if the sampler finds none."""
        fixed = self._begin(number)
        for attempt in range(REDRAWS):
            space, params = self._suggest(number, attempt, fixed)
            if space.satisfies(params):
                break
        else:
            seed = f"{self._spec.study.seed} {number}"
            allowed = space.draw(random.Random(seed), fixed)  # noqa: S311 - not for secrets
            self._begin(number)
            study = self._optuna_study(self._storage, FixedSampler(space, allowed))
            params = suggest(Trial(study, number), space)
        attrs = self._storage.get_trial(number).system_attrs
        return Draw(
            params=params,
            attrs={**attrs, FIXED: dict(fixed)} if fixed else attrs,
            study_attrs=self._storage.study_attrs,
            revision=self._mirror.revision,
        )

    def _learned(self, space: Space) -> list[Source]:
        """Return the sources of `learn_from` for a space, which an active range may change."""
        if not self._spec.search.learn_from:
            return []
        if self._sources is None or self._sources[0] != space:
            self._sources = space, sources_of(self._study, space, self._ledger)
        return self._sources[1]

    def _begin(self, number: int) -> Mapping[str, ParameterValue]:
        """Begin a draw; return the parameters that a person fixed, and fix them for the sampler."""
        trial = self._mirror.trial(number)
        self._storage.begin(trial)
        self._drawing = number
        fixed: Mapping[str, ParameterValue] = trial.system_attrs.get(FIXED, {})
        if fixed:
            shown = for_sampler(self._spec.space, fixed)
            self._storage.set_trial_system_attr(number, FIXED, shown)
        return fixed

    def _suggest(
        self, number: int, attempt: int, fixed: Mapping[str, ParameterValue]
    ) -> tuple[Space, dict[str, ParameterValue]]:
        """Return the space and parameters that the sampler draws from it."""
        self._begin(number)
        known, active, spec = self._mirror.imported(), self._active(), self._spec
        is_added = ADDED in self._mirror.trial(number).system_attrs
        added_before = self._mirror.added_before(number)
        if active is not None and _is_within(active, fixed):
            spec = with_range(spec, active)
            index = number - len(known) - added_before
            if not is_added and index < len(active.first):
                first = for_sampler(spec.space, active.first[index])
                self._storage.set_trial_system_attr(number, FIXED, first)
        begins_there = known and isinstance(spec.search.sampler, CMAES)
        sources = self._mirror.sources() if begins_there else []
        sampler = sampler_for(
            spec,
            number,
            known,
            sources,
            self._observations,
            attempt,
            added_before=added_before,
            is_added=is_added,
            learned=self._learned(spec.space),
            custom=self._custom,
        )
        study = self._optuna_study(self._storage, sampler)
        if isinstance(spec.search.sampler, Custom):
            with custom.raised_by(spec.search.sampler.sampler):
                return spec.space, suggest(Trial(study, number), spec.space)
        return spec.space, suggest(Trial(study, number), spec.space)

    def extension(self) -> tuple[int, ActiveRange] | None:
        """Return a wider active range if the best trial is at its edge, else None.

        The first item is the revision of the range that it replaces.
        """
        if not self._spec.probe.enabled:
            return None
        self.refresh()
        active = self._active()
        wider = active and extend(self._spec, active, self._mirror.own())
        return (active.revision, wider) if active and wider else None

    def _active(self) -> ActiveRange | None:
        """Return the active range at the mirror's revision; None: the whole range."""
        known = history(self._mirror.attrs, self._mirror.revision)
        return known[-1] if known else None

    def _for_sampler(self) -> TrialsByNumber:
        by_value = isinstance(sampler_of(self._spec, self._drawing), LEARN_FROM_VALUES)
        trials = self._mirror.for_values() if by_value else self._mirror.for_sampler()
        active = self._active()
        return trials if active is None else trials_in_range(self._spec, active, trials)

    def decide(self, number: int, step: int, value: float) -> Decision:
        """Decide whether a trial continues after a rung, where its objective is `value`."""
        (decision,) = self.decide_together([(number, step, value)])
        return decision

    def decide_together(
        self,
        reports: Sequence[tuple[int, int, float]],
        judged: Mapping[int, Judged] | None = None,
    ) -> list[Decision]:
        """Decide on trials that were advanced in the same step, with one report for each trial.

        A report is a trial's number, the step of the rung and its objective there; `judged` are the
        values of branches, by the trial's number, where trials are compared by them. Every trial is
        compared with all reports, so their order does not matter.
        """
        judged = judged or {}
        assert len({number for number, _, _ in reports}) == len(reports), "one report per trial"
        self.refresh()
        group = [self._reporting(*report) for report in reports]
        with self._rankings.with_reports(group):
            completed = [one.value for one in self._mirror.completed_competitors()]
            stopped = self._group_pruner.stopped(
                self._pruner_study,
                group,
                judged,
                completed=[value for value in completed if value is not None],
                default=self._declared_default,
            )
            return [
                self._decision(
                    trial, step, prune=trial.number in stopped, judged=judged.get(trial.number)
                )
                for trial, (_, step, _) in zip(group, reports, strict=True)
            ]

    @functools.cached_property
    def _declared_default(self) -> int | None:
        """Return the first trial of this version if it has declared values, else None."""
        number = len(self._mirror.imported())
        sampler, learned = sampler_of(self._spec, number), bool(self._learned(self._spec.space))
        params = first_params(self._spec, sampler, number, 0, learned=learned)
        return None if params is None else number

    def regret_bound(self) -> float:
        """Return a bound of how much better than the best completed trial the optimum may be.

        In the metric's unit; inf if there are too few completed trials. Takes about a second.
        """
        self.refresh()
        seed = self._spec.study.seed
        return regret_bound(
            list(self._mirror.completed_competitors()), self._pruner_study.direction, seed
        )

    def expected_gain(self) -> float | None:
        """Return what one more trial is expected to improve the best value by; None if unknown."""
        from tuner.search.outlook import expected_gain

        self.refresh()
        return expected_gain(self._spec, self._mirror.for_values())

    def _reporting(self, number: int, step: int, value: float) -> FrozenTrial:
        """Return a copy of a trial with one more report; its attributes may be modified."""
        trial = copy.copy(self._mirror.trial(number))
        trial.intermediate_values = {**trial.intermediate_values, step: value}
        trial.system_attrs = dict(trial.system_attrs)
        return trial

    def _decision(
        self, trial: FrozenTrial, step: int, *, prune: bool, judged: Judged | None
    ) -> Decision:
        ahead, others = self._rankings.at_step(trial, step)
        completed = rungs(trial)
        if judged is not None and completed:
            last = max(completed)
            ahead, others = self._rankings.at_rung(trial, last, completed[last])
        reason = reason_of_decision(
            self._spec,
            prune=prune,
            step=step,
            value=trial.intermediate_values[step],
            ahead=ahead,
            others=others,
            bracket=self._rankings.bracket(trial),
            judged=judged,
        )
        return Decision(prune=prune, reason=reason, attrs=trial.system_attrs)

    def _optuna_study(
        self, storage: MirrorStorage, sampler: BaseSampler | None = None
    ) -> optuna.Study:
        return optuna.Study(
            study_name=self._name,
            storage=storage,
            sampler=sampler or RandomSampler(seed=0),
            pruner=self._pruner,
        )


def _is_within(active: ActiveRange, fixed: Mapping[str, ParameterValue]) -> bool:
    """Return whether fixed parameters do not lie outside of the active range."""
    rate = fixed.get("lr")
    return rate is None or active.low <= float(rate) <= active.high
