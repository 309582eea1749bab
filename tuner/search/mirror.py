"""A mirror of one study's trials in memory, and the two views of it that Optuna's code sees.

The mirror changes only by `refresh`, from the ledger. A view is an Optuna storage on one study;
what Optuna's code writes to it (parameters that it draws, attributes that it keeps) is collected
for one trial at a time, for the ledger to commit.
"""

from __future__ import annotations

import copy
import math
import statistics
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from tuner.ledger import Changes, TrialRecord
from tuner.outcome import CANCELLED, COMPLETED, DIVERGED, FAILED, PRUNED, RUNNING
from tuner.search.space import distributions
from tuner.spec import ParameterValue, StudySpec

STATES = {
    RUNNING: TrialState.RUNNING,
    COMPLETED: TrialState.COMPLETE,
    PRUNED: TrialState.PRUNED,
    DIVERGED: TrialState.PRUNED,
    FAILED: TrialState.FAIL,
    CANCELLED: TrialState.FAIL,
}
"""Optuna's state of a trial, by our state."""


def frozen(record: TrialRecord, spec: StudySpec) -> FrozenTrial:
    """Give a trial as Optuna has it: with the searched parameters and the reports."""
    searched = {} if record.params is None else distributions(spec.space, record.params)
    reports = {report.step: report.value for report in record.reports}
    state = STATES[record.state]
    value = record.value
    if state == TrialState.PRUNED:
        value = reports[max(reports)] if reports else None
    return FrozenTrial(
        number=record.number,
        trial_id=record.number,
        state=state,
        value=value,
        datetime_start=datetime.fromtimestamp(record.created_at, UTC).replace(tzinfo=None),
        datetime_complete=None
        if record.ended_at is None
        else datetime.fromtimestamp(record.ended_at, UTC).replace(tzinfo=None),
        params={name: (record.params or {})[name] for name in searched},
        distributions=searched,
        user_attrs={},
        system_attrs=dict(record.attrs),
        intermediate_values=reports,
    )


class Mirror:
    """All trials of one study, kept up by revision."""

    def __init__(self, spec: StudySpec, name: str = "") -> None:
        self.spec = spec
        self.name = name or spec.study.name  # of the study in Optuna
        self.revision = 0
        self.attrs: dict[str, Any] = {}
        self._records: dict[int, TrialRecord] = {}
        self._frozen: dict[int, FrozenTrial] = {}

    def refresh(self, changes: Changes) -> None:
        """Take in what changed since `revision`."""
        self.revision = changes.revision
        self.attrs = dict(changes.attrs)
        for record in changes.trials:
            self._records[record.number] = record
            self._frozen[record.number] = frozen(record, self.spec)

    def trial(self, number: int) -> FrozenTrial:
        """Give one trial."""
        return self._frozen[number]

    def for_sampler(self) -> list[FrozenTrial]:
        """Give all trials, diverged ones as pruned before their first report: worse than any other.

        A sampler that is not told of divergence asks for it again. It must not be told of a
        completed trial with a bad value either: TPE ranks every completed trial above every pruned
        one, so where most are pruned it would count divergence among the good.
        """
        return [
            _without_reports(self._frozen[number])
            if self._records[number].state == DIVERGED
            else self._frozen[number]
            for number in sorted(self._records)
        ]

    def for_values(self) -> list[FrozenTrial]:
        """Give all trials, each that ended by itself as completed, whatever stopped it.

        That is for samplers that learn from completed trials alone. A pruned trial has its last
        report, but none better than the median of the completed ones: others were better when it
        was stopped. A diverged one is a little worse than the worst of all these, so that there
        is a difference also where all others are equal. Before there is any other they stay
        pruned: of nothing but equal values a Gaussian process asks for the corners for ever.
        """
        sign = 1.0 if self.spec.study.direction == "minimize" else -1.0
        losses = {  # lower is better
            number: sign * trial.value
            for number, trial in self._frozen.items()
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.value is not None
            if self._records[number].state != DIVERGED
        }
        if not losses:
            return self.for_sampler()
        completed = [losses[n] for n in losses if self._records[n].state == COMPLETED]
        best_pruned = statistics.median(completed) if completed else -math.inf
        for number, loss in losses.items():
            if self._records[number].state == PRUNED:
                losses[number] = max(loss, best_pruned)
        worst = max(losses.values())
        spread = worst - min(losses.values())
        penalty = min(worst + (0.1 * spread or abs(worst) or 1.0), sys.float_info.max)
        told = []
        for number in sorted(self._records):
            trial = self._frozen[number]
            if trial.state == TrialState.PRUNED:
                trial = copy.copy(trial)
                trial.state = TrialState.COMPLETE
                trial.value = sign * losses.get(number, penalty)
            told.append(trial)
        return told

    def for_pruner(self) -> list[FrozenTrial]:
        """Give what the pruner compares: the trials of this version that have not diverged.

        Diverged ones would make bad trials look like the median; imported ones were in other
        brackets, and made their way through other rivals.
        """
        return [
            self._frozen[number]
            for number, record in sorted(self._records.items())
            if record.state != DIVERGED and not record.imported
        ]

    def imported(self) -> list[Mapping[str, ParameterValue]]:
        """Give the parameters of the trials that came from earlier versions of the study."""
        return [r.params or {} for _, r in sorted(self._records.items()) if r.imported]

    def sources(self) -> list[FrozenTrial]:
        """Give the imported trials that have values, as `for_values` does."""
        with_values = {n for n, r in self._records.items() if r.imported and r.state != DIVERGED}
        return [trial for trial in self.for_values() if trial.number in with_values]


def _without_reports(trial: FrozenTrial) -> FrozenTrial:
    told = copy.copy(trial)
    told.value = None
    told.intermediate_values = {}
    return told


class View(BaseStorage):
    """One study as Optuna's code sees it; trial ids are trial numbers.

    Invariants: nothing written here reaches the mirror; everything written is about `current` or
    about the study.
    """

    def __init__(self, mirror: Mirror, trials: Callable[[], list[FrozenTrial]]) -> None:
        self._mirror = mirror
        self._trials = trials
        self.current: FrozenTrial | None = None
        self.study_attrs: dict[str, Any] = {}  # written since `begin`

    def begin(self, trial: FrozenTrial) -> None:
        """Collect what is written from now on in a copy of `trial`, see `current`."""
        self.current = copy.deepcopy(trial)
        self.study_attrs = {}

    def _written(self, trial_id: int) -> FrozenTrial:
        """Give a copy of the current trial to write to, which is the current one from now on.

        Who has read the trials keeps what was read: ASHA counts a trial's own value beside those
        that it has read, and would count it twice.
        """
        assert self.current is not None
        assert self.current.number == trial_id, "only the current trial may be written"
        self.current = copy.copy(self.current)
        return self.current

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Give the view's trials, the current one with what was written to it."""
        current = self.current
        found = [
            current if current is not None and trial.number == current.number else trial
            for trial in self._trials()
        ]
        if states is not None:
            found = [trial for trial in found if trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Give one trial."""
        if self.current is not None and self.current.number == trial_id:
            return self.current
        return self._mirror.trial(trial_id)

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Collect a parameter that was drawn."""
        trial = self._written(trial_id)
        value = distribution.to_external_repr(param_value_internal)
        trial.params = {**trial.params, param_name: value}
        trial.distributions = {**trial.distributions, param_name: distribution}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Collect an attribute of a sampler or pruner."""
        trial = self._written(trial_id)
        trial.system_attrs = {**trial.system_attrs, key: value}

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Collect an attribute that a sampler keeps on the study."""
        self.study_attrs[key] = value

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Give the study's attributes, with what was written."""
        return {**self._mirror.attrs, **self.study_attrs}

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Give none: ours are in the ledger."""
        return {}

    def get_study_id_from_name(self, study_name: str) -> int:
        """Give the one study's id."""
        return 0

    def get_study_name_from_id(self, study_id: int) -> str:
        """Give the study's name."""
        return self._mirror.name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Give the study's direction."""
        return [StudyDirection[self._mirror.spec.study.direction.upper()]]

    # What only a study that is written through Optuna would call.

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """Refuse."""
        raise NotImplementedError

    def delete_study(self, study_id: int) -> None:
        """Refuse."""
        raise NotImplementedError

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Refuse."""
        raise NotImplementedError

    def get_all_studies(self) -> list[FrozenStudy]:
        """Refuse."""
        raise NotImplementedError

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Refuse."""
        raise NotImplementedError

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Refuse."""
        raise NotImplementedError

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Refuse."""
        raise NotImplementedError

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Refuse."""
        raise NotImplementedError
