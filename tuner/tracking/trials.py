"""From the ledger into Optuna's tables, so that `optuna.load_study` reads a study without us."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from tuner.errors import TunerError, UnavailableError
from tuner.failpoints import reach
from tuner.ledger import StudyRecord, TrialRecord
from tuner.outcome import COMPLETED, RUNNING
from tuner.search.mirror import STATES, frozen
from tuner.tracking.mismatch import Mismatch
from tuner.tracking.publications import Publication, Publications

FOREIGN = "optuna_extra"
"""The kind of mismatch that says that somebody else wrote trials into the study."""


class TrialPublisher:
    """Writes trials through Optuna's public API, in the order of their numbers.

    Optuna numbers trials by counting them. One publisher a study, in order, makes its numbers
    ours; a RUNNING trial gets its final state when the outcome is committed.
    """

    target = "optuna"

    def __init__(self, storage: BaseStorage, publications: Publications) -> None:
        self._storage = storage
        self._publications = publications

    def behind(self, study: StudyRecord) -> bool:
        """Tell whether there is anything to publish."""
        return any(self._due(study))

    def publish(self, study: StudyRecord) -> None:
        """Publish what is new of a claimed study. Raises `UnavailableError`."""
        try:
            self._publish(study)
        except StorageInternalError as error:
            raise UnavailableError(f"Optuna's tables cannot be used: {error.__cause__}") from error

    def _publish(self, study: StudyRecord) -> None:
        study_id = self._study_id(study)
        existing: dict[int, FrozenTrial] | None = None
        for trial, publication in self._due(study):
            if publication is None or publication.external_id is None:
                if existing is None:
                    found = self._storage.get_all_trials(study_id, deepcopy=False)
                    existing = {one.number: one for one in found}
                self._create(study, study_id, trial, publication, existing.get(trial.number))
            else:
                self._finish(study, trial, int(publication.external_id))

    def discard(self, study: StudyRecord) -> None:
        """Delete a study and its trials from Optuna's tables, so that they can be written anew."""
        self._storage.delete_study(self._study_id(study))

    def erase(self, study: StudyRecord) -> None:
        """Delete a study from Optuna's tables, if it is there."""
        try:
            self._storage.delete_study(self._storage.get_study_id_from_name(study.title))
        except KeyError:
            return

    def _due(self, study: StudyRecord) -> Iterator[tuple[TrialRecord, Publication | None]]:
        """Yield the trials of which there is something to publish, in order."""
        for trial, publication in self._publications.open_trials(study.id):
            if publication is None or publication.external_id is None:
                if trial.params is None and trial.state == RUNNING:
                    return  # it is being drawn, and a later trial must not take its number
                yield trial, publication
            elif trial.state != RUNNING:
                yield trial, publication

    def _study_id(self, study: StudyRecord) -> int:
        try:
            return self._storage.get_study_id_from_name(study.title)
        except KeyError:
            direction = StudyDirection[study.spec.study.direction.upper()]
            study_id = self._storage.create_new_study([direction], study.title)
            self._storage.set_study_user_attr(study_id, "tuner.study", study.name)
            if study.version > 1:
                self._storage.set_study_user_attr(study_id, "tuner.version", study.version)
            self._storage.set_study_user_attr(study_id, "tuner.metric", study.spec.study.metric)
            return study_id

    def _create(
        self,
        study: StudyRecord,
        study_id: int,
        trial: TrialRecord,
        publication: Publication | None,
        existing: FrozenTrial | None,
    ) -> None:
        if publication is None:
            self._publications.begin(trial)
        if existing is None:
            template = _template(trial, study)
            trial_id = self._storage.create_new_trial(study_id, template)
            reach("recorder.row_created")
            number = self._storage.get_trial(trial_id).number
            if number != trial.number:
                raise TunerError(
                    f"Optuna's study {study.title!r} has trials that are not tuner's: trial "
                    f"{trial.number} became {number} there; somebody else wrote to it"
                )
            finished = template.state.is_finished()
        else:
            trial_id, finished = existing._trial_id, existing.state.is_finished()
        self._publications.note(trial, external_id=str(trial_id), final=finished)

    def _finish(self, study: StudyRecord, trial: TrialRecord, trial_id: int) -> None:
        """Write the final state last: it makes a trial's row unchangeable."""
        if not self._storage.get_trial(trial_id).state.is_finished():
            template = _template(trial, study)
            for key, value in template.system_attrs.items():
                self._storage.set_trial_system_attr(trial_id, key, value)
            for key, value in template.user_attrs.items():
                self._storage.set_trial_user_attr(trial_id, key, value)
            for step, value in template.intermediate_values.items():
                self._storage.set_trial_intermediate_value(trial_id, step, value)
            reach("recorder.before_final")
            self._storage.set_trial_state_values(trial_id, STATES[trial.state], template.values)
        self._publications.note(trial, final=True)


def _template(trial: TrialRecord, study: StudyRecord) -> FrozenTrial:
    template = frozen(trial, study.spec)
    if trial.state != RUNNING:
        template.user_attrs = {"tuner.outcome": trial.state, "tuner.reason": trial.reason}
    if trial.imported:
        template.user_attrs["tuner.imported"] = True
    return template


def load(storage: BaseStorage, name: str) -> list[FrozenTrial]:
    """Read the trials that Optuna has of a study; none when it does not know the study."""
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        return []
    return storage.get_all_trials(study_id, deepcopy=False)


def mismatches(
    storage: BaseStorage, study: StudyRecord, ours: Sequence[TrialRecord]
) -> Iterator[Mismatch]:
    """Compare Optuna's trials of a study with the ledger's."""
    theirs = load(storage, study.title)
    if len(theirs) > len(ours):
        detail = f"Optuna has {len(theirs)} trials, the ledger {len(ours)}"
        yield Mismatch(FOREIGN, None, detail)
    by_number = {trial.number: trial for trial in theirs}
    for trial in ours:
        if trial.params is None and trial.state == RUNNING:
            continue
        told = by_number.get(trial.number)
        if told is None:
            yield Mismatch("optuna_missing", trial.number, "Optuna does not have it")
            continue
        if told.state != STATES[trial.state]:
            detail = f"{told.state.name} in Optuna, {trial.state} in the ledger"
            yield Mismatch("optuna_state", trial.number, detail)
        elif trial.state == COMPLETED and told.value != trial.value:
            detail = f"{told.value} in Optuna, {trial.value} in the ledger"
            yield Mismatch("optuna_value", trial.number, detail)
        reports = {report.step: report.value for report in trial.reports}
        if trial.state != RUNNING and told.intermediate_values != reports:
            yield Mismatch("optuna_reports", trial.number, "reports differ")
        params = trial.params or {}
        if any(params.get(name) != value for name, value in told.params.items()):
            yield Mismatch("optuna_params", trial.number, "parameters differ")
