"""Publish the ledger to Optuna's tables, so that `optuna.load_study` reads a study without tuner.

Other programs may add trials to a study and keep their own studies in the same database. Our
studies and trials are therefore identified by user attributes, never by name or number alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from tuner.core.errors import UnavailableError, UnreadableError
from tuner.ledger import Reader, StudyIdentity, StudyRecord, TrialRecord
from tuner.ledger.publications import Note, Publications
from tuner.observability import metrics
from tuner.search.storage import directions
from tuner.tracking.backlog import Backlog, Mark, OpenTrial, batches
from tuner.tracking.bulk import writes_in_bulk
from tuner.tracking.mlflow.links import SIDE
from tuner.tracking.optuna import dashboard
from tuner.tracking.optuna.bulk_writer import BulkTrialWriter, unsupported_schema
from tuner.tracking.optuna.check import (
    STUDY_ATTRIBUTE,
    find_study,
    foreign_trials,
    is_ours,
    load,
    published_trials,
)
from tuner.tracking.optuna.storage_writer import StorageWriter, TrialWriter, template
from tuner.tracking.projection import Due

METRIC_NAMES = "study:metric_names"
"""Optuna's attribute with the names of objectives, see `Study.set_metric_names`."""
NOTE_SECONDS = 5.0
"""How often the note of a study is updated while its trials run."""


class TrialPublisher:
    """Publishes trials in the order of their numbers.

    Optuna numbers trials consecutively. With one publisher per study its numbers equal ours,
    unless other programs add trials. A RUNNING trial gets its final state once the outcome is
    committed.
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
        self._ui = ui  # the address of MLflow's UI, for links
        self._noted: dict[int, float] = {}  # by study: when its note was written
        self._storage = storage
        self._publications = publications
        self._in_bulk = in_bulk

    def due(self, mark: Mark) -> Due:
        """Return when the study must be published."""
        return Due.NOW if _due(self.backlog.open(mark)) else Due.NOTHING

    def publish(self, study: StudyRecord, mark: Mark, *, waiting: bool) -> None:
        """Publish what is new of a claimed study. Raise `UnavailableError` on errors of Optuna."""
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
            wanted = self._templates(study, self.backlog.trials([one.id for one in batch]))
            readable = [one for one in batch if one.id in wanted]
            new = [one for one in readable if one.external_id is None]
            self._create(writer, study, study_id, new, wanted, may_exist=mark.external_id is None)
            ended = {
                one.id: int(one.external_id) for one in readable if one.external_id is not None
            }
            writer.finish({ended[key]: wanted[key] for key in ended})
            self._publications.note(study.id, [Note(trial_id=key, final=True) for key in ended])
        self._write_note(study, study_id, at_rest=not mark.live)
        self._publications.note_study(study.id, str(study_id), study.revision)

    def _templates(
        self, study: StudyRecord, trials: Mapping[int, TrialRecord]
    ) -> dict[int, FrozenTrial]:
        """Return trials as they should be in Optuna, without those that do not fit the study."""
        found = {}
        for key, trial in trials.items():
            try:
                found[key] = template(trial, study)
            except UnreadableError as error:
                self.backlog.leave_out(trial, error)
        return found

    def _write_note(self, study: StudyRecord, study_id: int, *, at_rest: bool) -> None:
        """Write the note for optuna-dashboard; from time to time while trials run."""
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
        elif writes_in_bulk(self.target, unsupported_schema(self._storage)):
            return BulkTrialWriter(self._storage)
        return StorageWriter(self._storage)

    def discard(self, study: StudyRecord) -> None:
        """Delete a study from Optuna's tables, unless it has foreign trials."""
        theirs = load(self._storage, study)
        if not foreign_trials(
            theirs, published_trials(theirs, study, self._ledger.trials(study.id))
        ):
            self.erase(study)

    def erase(self, study: StudyIdentity) -> None:
        """Delete a study from Optuna's tables, if it exists and is tuner's."""
        study_id = find_study(self._storage, study)
        if study_id is not None and is_ours(self._storage, study_id, study):
            self._storage.delete_study(study_id)

    def _study_id(self, study: StudyRecord) -> int:
        """Return the id of the study, created if missing. Raise `UnavailableError` if foreign."""
        study_id = find_study(self._storage, study)
        if study_id is None:
            study_id = self._storage.create_new_study(directions(study.spec), study.title)
        elif not is_ours(self._storage, study_id, study):
            raise UnavailableError(
                f"Optuna already has a study named {study.title!r} that is not tuner's, so this "
                "study is not published there. Submit this study under another name, or delete the "
                "other one with `optuna delete-study`"
            )
        elif STUDY_ATTRIBUTE in self._storage.get_study_user_attrs(study_id):
            return study_id
        self._storage.set_study_user_attr(study_id, STUDY_ATTRIBUTE, study.name)
        if study.version > 1:
            self._storage.set_study_user_attr(study_id, "tuner.version", study.version)
        self._storage.set_study_user_attr(study_id, "tuner.metric", study.spec.study.metric)
        if names := [one.metric for one in study.spec.study.objectives]:
            self._storage.set_study_system_attr(study_id, METRIC_NAMES, names)
        return study_id

    def _create(
        self,
        writer: TrialWriter,
        study: StudyRecord,
        study_id: int,
        new: Sequence[OpenTrial],
        templates: Mapping[int, FrozenTrial],
        *,
        may_exist: bool,
    ) -> None:
        """Create missing trials and record the ids of all; `may_exist`: search for all of them."""
        if not new:
            return
        wanted = {one.number: templates[one.id] for one in new}
        candidates = [wanted[one.number] for one in new if one.begun or may_exist]
        found = writer.find(study_id, candidates)
        self._publications.begin(study.id, [one.id for one in new if not one.begun])
        missing = [one for number, one in wanted.items() if number not in found]
        if missing:
            found |= writer.create(study_id, missing)
        notes = []
        for one in new:
            trial_id, finished = found[one.number]
            notes.append(Note(trial_id=one.id, external_id=str(trial_id), final=finished))
        self._publications.note(study.id, notes)


def _due(found: Sequence[OpenTrial]) -> list[OpenTrial]:
    """Return the trials that have anything to publish, in order."""
    due = []
    for trial in found:
        if trial.external_id is None and trial.running and not trial.drawn:
            break  # its parameters are being drawn; a later trial must not take its number
        if trial.external_id is None or not trial.running:
            due.append(trial)
    return due
