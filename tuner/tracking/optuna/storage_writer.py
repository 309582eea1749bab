"""How trials get into Optuna's tables: what a writer does, and the one that uses its public API."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from tuner.core.errors import TunerError
from tuner.core.failpoints import reach
from tuner.core.outcome import RUNNING
from tuner.ledger import StudyRecord, TrialRecord
from tuner.search.mirror import frozen


class TrialWriter(Protocol):
    """Writes many trials of one study. Errors are Optuna's and SQLAlchemy's own.

    `create` and `finish` reach their failpoint once a trial.
    """

    trials_at_once: int

    def find(self, study_id: int, numbers: Collection[int]) -> dict[int, tuple[int, bool]]:
        """Find trials by their numbers; give the id of each, and whether it is finished."""
        ...

    def create(self, study_id: int, templates: Sequence[FrozenTrial]) -> list[int]:
        """Create trials with the next numbers; give their ids.

        Raises `TunerError` when the next numbers are not those of the templates.
        """
        ...

    def finish(self, templates: Mapping[int, FrozenTrial]) -> None:
        """Give running trials, by their ids, all that they lack, their final state last."""
        ...


class StorageWriter:
    """Writes through Optuna's public API, one trial after the other."""

    trials_at_once = 1

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._found: dict[int, tuple[int, bool]] | None = None

    def find(self, study_id: int, numbers: Collection[int]) -> dict[int, tuple[int, bool]]:
        """Look through all trials of the study, once: a writer is of one round."""
        if numbers and self._found is None:
            found = self._storage.get_all_trials(study_id, deepcopy=False)
            self._found = {one.number: (one._trial_id, one.state.is_finished()) for one in found}
        return {number: one for number, one in (self._found or {}).items() if number in numbers}

    def create(self, study_id: int, templates: Sequence[FrozenTrial]) -> list[int]:
        """Create one after the other; Optuna numbers by counting."""
        made = []
        for wanted in templates:
            trial_id = self._storage.create_new_trial(study_id, wanted)
            reach("recorder.row_created")
            refuse_foreign(study_id, wanted.number, self._storage.get_trial(trial_id).number)
            made.append(trial_id)
        return made

    def finish(self, templates: Mapping[int, FrozenTrial]) -> None:
        """Write the final state last: it makes a trial's row unchangeable."""
        for trial_id, wanted in templates.items():
            if self._storage.get_trial(trial_id).state.is_finished():
                continue
            for key, value in wanted.system_attrs.items():
                self._storage.set_trial_system_attr(trial_id, key, value)
            for key, value in wanted.user_attrs.items():
                self._storage.set_trial_user_attr(trial_id, key, value)
            for step, value in wanted.intermediate_values.items():
                self._storage.set_trial_intermediate_value(trial_id, step, value)
            reach("recorder.before_final")
            self._storage.set_trial_state_values(trial_id, wanted.state, wanted.values)


def refuse_foreign(study_id: int, ours: int, theirs: int) -> None:
    """Raise `TunerError` when Optuna would give a trial another number."""
    if ours != theirs:
        raise TunerError(
            f"Optuna's study with id {study_id} has trials that are not tuner's: trial {ours} "
            f"would become {theirs} there; somebody else wrote to it"
        )


def template(trial: TrialRecord, study: StudyRecord) -> FrozenTrial:
    """Give a trial as Optuna shall have it."""
    made = frozen(trial, study.spec)
    made.datetime_start = datetime.fromtimestamp(trial.created_at)
    if trial.ended_at is not None:
        made.datetime_complete = datetime.fromtimestamp(trial.ended_at)
    if trial.state != RUNNING:
        made.user_attrs = {"tuner.core.outcome": trial.state, "tuner.reason": trial.reason}
    if trial.imported:
        made.user_attrs["tuner.imported"] = True
    return made
