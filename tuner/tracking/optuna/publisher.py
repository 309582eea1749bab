"""From the ledger into Optuna's tables, so that `optuna.load_study` reads a study without us."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from tuner.core.errors import UnavailableError
from tuner.core.outcome import COMPLETED, RUNNING
from tuner.ledger import Reader, StudyRecord, TrialRecord
from tuner.observability import metrics
from tuner.search.mirror import STATES
from tuner.tracking.backlog import Backlog, Mark, OpenTrial, batches
from tuner.tracking.bulk import writes_in_bulk
from tuner.tracking.mismatch import Mismatch
from tuner.tracking.mlflow.views import SIDE
from tuner.tracking.optuna import dashboard
from tuner.tracking.optuna.bulk_writer import TrialTables, unknown
from tuner.tracking.optuna.storage_writer import StorageWriter, TrialWriter, template
from tuner.tracking.publications import Note, Publications

NOTE_SECONDS = 5.0
"""How often the note of a study is written while its trials run."""
FOREIGN = "optuna_extra"
"""The kind of mismatch that says that somebody else wrote trials into the study."""


class TrialPublisher:
    """Writes trials in the order of their numbers.

    Optuna numbers trials by counting them. One publisher a study, in order, makes its numbers
    ours; a RUNNING trial gets its final state when the outcome is committed.
    """

    target = "optuna"

    def __init__(
        self,
        storage: BaseStorage,
        publications: Publications,
        engine: Engine,
        *,
        ui: str,
        in_bulk: bool = True,
    ) -> None:
        self.backlog = Backlog(engine, self.target)
        self._ledger = Reader(engine)
        self._ui = ui  # where MLflow's pages are, for links
        self._noted: dict[int, float] = {}  # when the study's note was written
        self._storage = storage
        self._publications = publications
        self._in_bulk = in_bulk

    def due(self, mark: Mark) -> bool:
        """Tell whether there is anything to publish."""
        return bool(_due(self.backlog.open(mark)))

    def publish(self, study: StudyRecord, mark: Mark, *, waiting: bool) -> None:
        """Publish what is new of a claimed study; nothing may wait. Raises `UnavailableError`."""
        try:
            self._publish(study, mark)
        except StorageInternalError as error:
            raise UnavailableError(f"Optuna's tables cannot be used: {error.__cause__}") from error
        except SQLAlchemyError as error:
            raise UnavailableError(f"Optuna's tables cannot be used: {error}") from error

    def _publish(self, study: StudyRecord, mark: Mark) -> None:
        study_id = self._study_id(study)
        writer = self._writer()
        for batch in batches(_due(self.backlog.open(mark)), writer.trials_at_once):
            trials = self.backlog.trials([one.id for one in batch])
            new = [one for one in batch if one.external_id is None]
            self._create(writer, study, study_id, new, trials, anew=mark.external_id is None)
            told = {one.id: int(one.external_id) for one in batch if one.external_id is not None}
            writer.finish({told[key]: template(trials[key], study) for key in told})
            self._publications.note(study.id, [Note(trial_id=key, final=True) for key in told])
        self._tell(study, study_id, at_rest=not mark.live)
        self._publications.note_study(study.id, str(study_id), study.revision)

    def _tell(self, study: StudyRecord, study_id: int, *, at_rest: bool) -> None:
        """Write the note that optuna-dashboard shows; from time to time while trials run."""
        if not at_rest and time.monotonic() < self._noted.get(study.id, 0.0) + NOTE_SECONDS:
            return
        run_id, _ = Publications(self._ledger.engine, "mlflow").study(study.id)
        page = f"{self._ui}/#/runs/{run_id}?{SIDE}" if run_id else None
        dashboard.write(self._storage, study_id, dashboard.study_note(self._ledger, study, page))
        self._noted[study.id] = time.monotonic()

    def close(self) -> None:
        """Close the connections to Optuna's tables."""
        if isinstance(self._storage, RDBStorage):
            self._storage.engine.dispose()

    def _writer(self) -> TrialWriter:
        if not (self._in_bulk and isinstance(self._storage, RDBStorage)):
            metrics.BULK_WRITER.labels(self.target).set(0.0)
        elif writes_in_bulk(self.target, unknown(self._storage)):
            return TrialTables(self._storage)
        return StorageWriter(self._storage)

    def discard(self, study: StudyRecord) -> None:
        """Delete a study and its trials from Optuna's tables, so that they can be written anew."""
        self._storage.delete_study(self._study_id(study))

    def erase(self, study: StudyRecord) -> None:
        """Delete a study from Optuna's tables, if it is there."""
        try:
            self._storage.delete_study(self._storage.get_study_id_from_name(study.title))
        except KeyError:
            return

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
        writer: TrialWriter,
        study: StudyRecord,
        study_id: int,
        new: Sequence[OpenTrial],
        trials: Mapping[int, TrialRecord],
        *,
        anew: bool,
    ) -> None:
        """Create what Optuna does not have, and note what it has."""
        if not new:
            return
        perhaps = [one.number for one in new if one.begun or anew]
        existing = writer.find(study_id, perhaps)
        self._publications.begin(study.id, [one.id for one in new if not one.begun])
        lacking = [one for one in new if one.number not in existing]
        templates = [template(trials[one.id], study) for one in lacking]
        made = writer.create(study_id, templates) if lacking else []
        ids = existing | {
            one.number: (trial_id, trials[one.id].state != RUNNING)
            for one, trial_id in zip(lacking, made, strict=True)
        }
        notes = [
            Note(trial_id=one.id, external_id=str(ids[one.number][0]), final=ids[one.number][1])
            for one in new
        ]
        self._publications.note(study.id, notes)


def _due(found: Sequence[OpenTrial]) -> list[OpenTrial]:
    """Give the trials of which there is something to publish, in order."""
    due = []
    for trial in found:
        if trial.external_id is None and trial.running and not trial.drawn:
            break  # it is being drawn, and a later trial must not take its number
        if trial.external_id is None or not trial.running:
            due.append(trial)
    return due


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
