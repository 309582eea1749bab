"""The contract of writers of trials, and the writer that uses Optuna's public API."""

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
from tuner.ledger.records import ADDED, PARENT
from tuner.search.mirror import frozen

TRIAL = "tuner.trial"
"""The user attribute that identifies a trial in Optuna: the study's title and our number.

Optuna's number differs from ours if other programs have added trials to the study.
"""


class Found(NamedTuple):
    """A trial in Optuna's tables."""

    id: int
    finished: bool


class TrialWriter(Protocol):
    """Writes many trials of one study; raises Optuna's and SQLAlchemy's errors.

    A template is a trial as it should be in Optuna, with our number. `create` and `finish` reach
    their failpoint once per trial.
    """

    trials_at_once: int

    def find(self, study_id: int, templates: Sequence[FrozenTrial]) -> dict[int, Found]:
        """Return the existing trials written from these templates, by our numbers."""
        ...

    def create(self, study_id: int, templates: Sequence[FrozenTrial]) -> dict[int, Found]:
        """Create missing trials; return all of them by our numbers."""
        ...

    def finish(self, templates: Mapping[int, FrozenTrial]) -> None:
        """Complete running trials, given by id, writing their final states last.

        Raise `UnavailableError` if an id is not, or no longer, that of the template's trial.
        """
        ...


class StorageWriter:
    """Writes through Optuna's public API, one trial after the other."""

    trials_at_once = 1

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        self._known: Sequence[FrozenTrial] | None = None

    def find(self, study_id: int, templates: Sequence[FrozenTrial]) -> dict[int, Found]:
        """Search all trials of the study once; the result is cached."""
        if templates and self._known is None:
            self._known = self._storage.get_all_trials(study_id, deepcopy=False)
        return _found(self._known or (), templates)

    def create(self, study_id: int, templates: Sequence[FrozenTrial]) -> dict[int, Found]:
        """Create one trial after the other, since Optuna numbers them consecutively."""
        created: dict[int, Found] = {}
        for wanted in templates:
            # the count differs if there are foreign trials, or another recorder wrote this one
            if self._storage.get_n_trials(study_id) != wanted.number:
                there = _found(self._storage.get_all_trials(study_id, deepcopy=False), [wanted])
                if there:
                    created |= there
                    continue
            trial_id = self._storage.create_new_trial(study_id, wanted)
            reach("recorder.row_created")
            created[wanted.number] = Found(trial_id, wanted.state.is_finished())
        return created

    def finish(self, templates: Mapping[int, FrozenTrial]) -> None:
        """Write the final state last, since Optuna then forbids changes of the trial."""
        for trial_id, wanted in templates.items():
            try:
                there = self._storage.get_trial(trial_id)
            except KeyError:
                raise deleted_error(wanted) from None
            if not is_written_from(there, wanted):
                raise deleted_error(wanted)
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
    """Return the trials written from templates, by our numbers, the oldest first."""
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

    Earlier versions wrote no attribute. Their trials are identified by the number and the start
    time in microseconds, which equal the ledger's.
    """
    if TRIAL in theirs.user_attrs:
        return bool(theirs.user_attrs[TRIAL] == template.user_attrs[TRIAL])
    began = (theirs.number, theirs.datetime_start)
    return began == (template.number, template.datetime_start)


def deleted_error(template: FrozenTrial) -> UnavailableError:
    """Return the error for a published trial that is no longer in Optuna's tables."""
    return UnavailableError(
        f"trial {template.user_attrs[TRIAL]} was deleted from Optuna's tables while it ran; "
        "`tuner doctor --repair` republishes it"
    )


def template(trial: TrialRecord, study: StudyRecord) -> FrozenTrial:
    """Return a trial as it should be in Optuna, with our number."""
    made = frozen(trial, study.spec)
    made.datetime_start = datetime.fromtimestamp(trial.created_at)
    if trial.ended_at is not None:
        made.datetime_complete = datetime.fromtimestamp(trial.ended_at)
    made.user_attrs = {TRIAL: f"{study.title}:{trial.number}"}
    if trial.state != RUNNING:
        made.user_attrs |= {"tuner.outcome": trial.state, "tuner.reason": trial.reason}
    if trial.imported:
        made.user_attrs["tuner.imported"] = True
    if ADDED in trial.attrs:
        made.user_attrs["tuner.added"] = trial.attrs[ADDED]
    if PARENT in trial.attrs:
        made.user_attrs["tuner.parent"] = trial.attrs[PARENT]
    return made
