"""An Optuna storage over the mirror of one study.

What Optuna's code writes (drawn parameters, attributes) is collected for one trial at a time, and
the ledger commits it later.
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

from tuner.config import StudySpec
from tuner.search.mirror import Mirror, TrialsByNumber


def directions(spec: StudySpec) -> list[StudyDirection]:
    """Return the direction of each objective of a study."""
    found = [one.direction for one in spec.study.objectives] or [spec.study.direction]
    return [StudyDirection[one.upper()] for one in found]


class MirrorStorage(BaseStorage):
    """One study, read by Optuna's code; trial ids are trial numbers.

    Invariants: no write reaches the mirror; every write concerns the `current` trial or the study.
    """

    def __init__(self, mirror: Mirror, trials: Callable[[], TrialsByNumber]) -> None:
        self._mirror = mirror
        self._trials = trials
        self.current: FrozenTrial | None = None
        self.study_attrs: dict[str, Any] = {}  # written since `begin`

    def begin(self, trial: FrozenTrial) -> None:
        """Make a copy of `trial` the current one, which collects writes from now on."""
        self.current = copy.deepcopy(trial)
        self.study_attrs = {}

    def _written(self, trial_id: int) -> FrozenTrial:
        """Replace the current trial by a copy and return it, to be modified.

        Trials that were read before must not change: ASHA adds a trial's own value to those that
        it has read, and would count it twice.
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
        """Return the trials, including what was written to the current one."""
        trials = self._trials()
        found = list(trials)
        if self.current is not None and (index := trials.index(self.current.number)) is not None:
            found[index] = self.current
        if states is not None:
            found = [trial for trial in found if trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return one trial."""
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
        """Record a drawn parameter of the current trial."""
        trial = self._written(trial_id)
        value = distribution.to_external_repr(param_value_internal)
        trial.params = {**trial.params, param_name: value}
        trial.distributions = {**trial.distributions, param_name: distribution}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Record an attribute of the current trial that a sampler or pruner sets."""
        trial = self._written(trial_id)
        trial.system_attrs = {**trial.system_attrs, key: value}

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Record an attribute of the study that a sampler sets."""
        self.study_attrs[key] = value

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the study's attributes, including written ones."""
        return {**self._mirror.attrs, **self.study_attrs}

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return no attributes: ours are in the ledger."""
        return {}

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of the only study."""
        return 0

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the study's name."""
        return self._mirror.name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the direction of each objective."""
        return directions(self._mirror.spec)

    # Not supported: called only if a study is written through Optuna.

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """Raise `NotImplementedError`."""
        raise NotImplementedError

    def delete_study(self, study_id: int) -> None:
        """Raise `NotImplementedError`."""
        raise NotImplementedError

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Raise `NotImplementedError`."""
        raise NotImplementedError

    def get_all_studies(self) -> list[FrozenStudy]:
        """Raise `NotImplementedError`."""
        raise NotImplementedError

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Raise `NotImplementedError`."""
        raise NotImplementedError

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Raise `NotImplementedError`."""
        raise NotImplementedError

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Raise `NotImplementedError`."""
        raise NotImplementedError

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Raise `NotImplementedError`."""
        raise NotImplementedError
