"""How trials get into Optuna's tables: what a writer does, and the one that uses its public API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from tuner.core.errors import UnavailableError
from tuner.core.failpoints import reach
from tuner.core.outcome import RUNNING
from tuner.ledger import StudyRecord, TrialRecord
from tuner.search.mirror import frozen

TRIAL = "tuner.trial"
"""The user attribute by which a trial is known in Optuna: the study's title and our number.

Optuna's own number of it is another one where somebody else has added trials to the study.
"""


class Found(NamedTuple):
    """A trial in Optuna's tables."""

    id: int
    finished: bool


class TrialWriter(Protocol):
    """Writes many trials of one study. Errors are Optuna's and SQLAlchemy's own.

    A template is a trial as Optuna shall have it, with our number. `create` and `finish` reach
    their failpoint once a trial.
    """

    trials_at_once: int

    def find(self, study_id: int, templates: Sequence[FrozenTrial]) -> dict[int, Found]:
        """Find the trials that have been written from these templates, by our numbers."""
        ...

    def create(self, study_id: int, templates: Sequence[FrozenTrial]) -> dict[int, Found]:
        """Create the trials that are not there; return all of them by our numbers."""
        ...

    def finish(self, templates: Mapping[int, FrozenTrial]) -> None:
        """Complete running trials, by their ids; their final state is written last.

        Raise `UnavailableError` where one of the ids is not, or no longer, the template's trial.
        """
        ...


class StorageWriter:
    """Writes through Optuna's public API, one trial after the other."""

    trials_at_once = 1

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._known: Sequence[FrozenTrial] | None = None

    def find(self, study_id: int, templates: Sequence[FrozenTrial]) -> dict[int, Found]:
        """Look through all trials of the study, once: a writer is of one round."""
        if templates and self._known is None:
            self._known = self._storage.get_all_trials(study_id, deepcopy=False)
        return _found(self._known or (), templates)

    def create(self, study_id: int, templates: Sequence[FrozenTrial]) -> dict[int, Found]:
        """Create one after the other; Optuna numbers by counting."""
        made: dict[int, Found] = {}
        for wanted in templates:
            # another count: somebody else's trials are there, or another recorder wrote this one
            if self._storage.get_n_trials(study_id) != wanted.number:
                there = _found(self._storage.get_all_trials(study_id, deepcopy=False), [wanted])
                if there:
                    made |= there
                    continue
            trial_id = self._storage.create_new_trial(study_id, wanted)
            reach("recorder.row_created")
            made[wanted.number] = Found(trial_id, wanted.state.is_finished())
        return made

    def finish(self, templates: Mapping[int, FrozenTrial]) -> None:
        """Write the final state last: it makes a trial's row unchangeable."""
        for trial_id, wanted in templates.items():
            try:
                there = self._storage.get_trial(trial_id)
            except KeyError:
                raise lost(wanted) from None
            if not is_written_from(there, wanted):
                raise lost(wanted)
            if there.state.is_finished():
                continue
            for key, value in wanted.system_attrs.items():
                self._storage.set_trial_system_attr(trial_id, key, value)
            for key, value in wanted.user_attrs.items():
                self._storage.set_trial_user_attr(trial_id, key, value)
            for step, value in wanted.intermediate_values.items():
                self._storage.set_trial_intermediate_value(trial_id, step, value)
            reach("recorder.before_final")
            self._storage.set_trial_state_values(trial_id, wanted.state, wanted.values)


def _found(theirs: Iterable[FrozenTrial], templates: Sequence[FrozenTrial]) -> dict[int, Found]:
    return {
        number: Found(written[0]._trial_id, written[0].state.is_finished())
        for number, written in written_from(theirs, templates).items()
    }


def written_from(
    theirs: Iterable[FrozenTrial], templates: Iterable[FrozenTrial]
) -> dict[int, list[FrozenTrial]]:
    """Return the trials that were written from templates, by our numbers, the oldest first."""
    by_name = {one.user_attrs[TRIAL]: one for one in templates}
    by_number = {one.number: one for one in by_name.values()}
    found: dict[int, list[FrozenTrial]] = {}
    for trial in sorted(theirs, key=lambda one: one._trial_id):
        wanted = by_name.get(trial.user_attrs.get(TRIAL)) or by_number.get(trial.number)
        if wanted is not None and is_written_from(trial, wanted):
            found.setdefault(wanted.number, []).append(trial)
    return found


def is_written_from(theirs: FrozenTrial, template: FrozenTrial) -> bool:
    """Return whether a trial in Optuna's tables was written from a template.

    Earlier versions wrote no attribute. Their trials have the same number and began at the same
    microsecond, which is the ledger's.
    """
    if TRIAL in theirs.user_attrs:
        return bool(theirs.user_attrs[TRIAL] == template.user_attrs[TRIAL])
    began = (theirs.number, theirs.datetime_start)
    return began == (template.number, template.datetime_start)


def lost(template: FrozenTrial) -> UnavailableError:
    """Return the error that a published trial is no longer in Optuna's tables."""
    return UnavailableError(
        f"trial {template.user_attrs[TRIAL]} was deleted from Optuna's tables while it ran; "
        "`tuner doctor --repair` writes it again"
    )


def template(trial: TrialRecord, study: StudyRecord) -> FrozenTrial:
    """Return a trial as Optuna shall have it, with our number."""
    made = frozen(trial, study.spec)
    made.datetime_start = datetime.fromtimestamp(trial.created_at)
    if trial.ended_at is not None:
        made.datetime_complete = datetime.fromtimestamp(trial.ended_at)
    made.user_attrs = {TRIAL: f"{study.title}:{trial.number}"}
    if trial.state != RUNNING:
        made.user_attrs |= {"tuner.outcome": trial.state, "tuner.reason": trial.reason}
    if trial.imported:
        made.user_attrs["tuner.imported"] = True
    return made
