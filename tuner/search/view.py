"""One study as Optuna's code sees it: an Optuna storage over a mirror of the ledger.

What Optuna's code writes to it (parameters that it draws, attributes that it keeps) is collected
for one trial at a time, for the ledger to commit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from tuner.search.mirror import Mirror, Numbered

FIXED = "fixed_params"
"""Optuna's attribute of a trial whose parameters are given, wholly or in part: an enqueued one."""


class View(BaseStorage):
    """One study as Optuna's code sees it; trial ids are trial numbers.

    Invariants: nothing written here reaches the mirror; everything written is about `current` or
    about the study.
    """

    def __init__(self, mirror: Mirror, trials: Callable[[], Numbered]) -> None:
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
        trials = self._trials()
        found = list(trials)
        if self.current is not None and (place := trials.place(self.current.number)) is not None:
            found[place] = self.current
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
