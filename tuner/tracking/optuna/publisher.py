"""From the ledger into Optuna's tables, so that `optuna.load_study` reads a study without us.

Others may add trials to a study of ours, and have studies of their own beside it. So ours are known
by an attribute (`trial_writers.TRIAL`), and so are our studies; no trial is known by its number.
"""

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
from tuner.ledger.publications import Note, Publications
from tuner.observability import metrics
from tuner.search.mirror import STATES
from tuner.tracking.backlog import Backlog, Mark, OpenTrial, batches
from tuner.tracking.bulk import writes_in_bulk
from tuner.tracking.mismatch import Mismatch
from tuner.tracking.mlflow.views import SIDE
from tuner.tracking.optuna import dashboard
from tuner.tracking.optuna.bulk_writer import TrialTables, unknown
from tuner.tracking.optuna.storage_writer import StorageWriter, TrialWriter, template, written_from

NOTE_SECONDS = 5.0
"""How often the note of a study is written while its trials run."""
FOREIGN = "optuna_extra"
"""The kind of mismatch that says that somebody else wrote trials into the study."""
TAKEN = "optuna_study"
"""The kind that says that the study in Optuna is somebody else's."""
NAME = "tuner.study"
"""The user attribute by which a study of ours is known in Optuna."""
FEW = 5
"""How many trials a detail names."""


class TrialPublisher:
    """Writes trials in the order of their numbers.

    Optuna numbers trials by counting them. One publisher a study, in order, makes its numbers
    ours, unless others add trials too; a RUNNING trial gets its final state when the outcome is
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
        """Delete a study and its trials from Optuna's tables, so that they can be written anew.

        Unless somebody else's trials are among them.
        """
        theirs = load(self._storage, study)
        if not _strangers(theirs, _written(theirs, study, self._ledger.trials(study.id))):
            self.erase(study)

    def erase(self, study: StudyRecord) -> None:
        """Delete a study from Optuna's tables, if it is there and ours."""
        study_id = find_study(self._storage, study)
        if study_id is not None and is_ours(self._storage, study_id, study):
            self._storage.delete_study(study_id)

    def _study_id(self, study: StudyRecord) -> int:
        """Find or create the study. Raise `UnavailableError` where its name is taken."""
        study_id = find_study(self._storage, study)
        if study_id is None:
            direction = StudyDirection[study.spec.study.direction.upper()]
            study_id = self._storage.create_new_study([direction], study.title)
        elif not is_ours(self._storage, study_id, study):
            raise UnavailableError(
                f"Optuna already has a study named {study.title!r} that is not tuner's; it is left "
                "alone, and this one is not published there. Submit this one under another name, "
                "or delete that one with `optuna delete-study`"
            )
        elif NAME in self._storage.get_study_user_attrs(study_id):
            return study_id
        self._storage.set_study_user_attr(study_id, NAME, study.name)
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
        wanted = {one.number: template(trials[one.id], study) for one in new}
        perhaps = [wanted[one.number] for one in new if one.begun or anew]
        there = writer.find(study_id, perhaps)
        self._publications.begin(study.id, [one.id for one in new if not one.begun])
        lacking = [one for number, one in wanted.items() if number not in there]
        if lacking:
            there |= writer.create(study_id, lacking)
        notes = []
        for one in new:
            trial_id, finished = there[one.number]
            notes.append(Note(trial_id=one.id, external_id=str(trial_id), final=finished))
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


def find_study(storage: BaseStorage, study: StudyRecord) -> int | None:
    """Return the id of Optuna's study of this title, whoever made it; None if there is none."""
    try:
        return storage.get_study_id_from_name(study.title)
    except KeyError:
        return None


def is_ours(storage: BaseStorage, study_id: int, study: StudyRecord) -> bool:
    """Return whether one of Optuna's studies is ours, or an empty one that can become ours.

    An empty one without our attribute is left where a recorder was killed after creating it.
    """
    attrs = storage.get_study_user_attrs(study_id)
    if NAME in attrs:
        return bool(attrs[NAME] == study.name)
    directions = [one.name.lower() for one in storage.get_study_directions(study_id)]
    return directions == [study.spec.study.direction] and storage.get_n_trials(study_id) == 0


def load(storage: BaseStorage, study: StudyRecord) -> list[FrozenTrial]:
    """Return the trials that Optuna has of a study; none where it does not have the study."""
    study_id = find_study(storage, study)
    return [] if study_id is None else storage.get_all_trials(study_id, deepcopy=False)


def _written(
    theirs: Sequence[FrozenTrial], study: StudyRecord, ours: Sequence[TrialRecord]
) -> dict[int, list[FrozenTrial]]:
    return written_from(theirs, [template(trial, study) for trial in ours])


def _strangers(
    theirs: Sequence[FrozenTrial], written: Mapping[int, Sequence[FrozenTrial]]
) -> list[FrozenTrial]:
    """Return the trials that somebody else wrote."""
    ids = {one._trial_id for some in written.values() for one in some}
    return [one for one in theirs if one._trial_id not in ids]


def mismatches(
    storage: BaseStorage, study: StudyRecord, ours: Sequence[TrialRecord]
) -> Iterator[Mismatch]:
    """Compare Optuna's trials of a study with the ledger's."""
    study_id = find_study(storage, study)
    if study_id is not None and not is_ours(storage, study_id, study):
        yield Mismatch(TAKEN, None, f"Optuna's study {study.title!r} is not tuner's")
        return
    theirs = load(storage, study)
    written = _written(theirs, study, ours)
    if strangers := _strangers(theirs, written):
        yield Mismatch(FOREIGN, None, _about(strangers, written))
    for trial in ours:
        if trial.params is None and trial.state == RUNNING:
            continue
        told, *more = written.get(trial.number, [None])
        if told is None:
            yield Mismatch("optuna_missing", trial.number, "Optuna does not have it")
            continue
        if more:
            yield Mismatch("optuna_doubled", trial.number, f"Optuna has it {1 + len(more)} times")
        yield from _differences(told, trial)


def _about(strangers: Sequence[FrozenTrial], written: Mapping[int, Sequence[FrozenTrial]]) -> str:
    """Name the trials in Optuna that are not ours, and those of ours that they displaced."""
    numbers = ", ".join(str(one.number) for one in strangers[:FEW])
    more = ", …" if len(strangers) > FEW else ""
    detail = f"{len(strangers)} of Optuna's trials are not tuner's: {numbers}{more}"
    moved = [(ours, some[0].number) for ours, some in sorted(written.items())]
    moved = [(ours, theirs) for ours, theirs in moved if ours != theirs]
    if moved:
        said = ", ".join(f"{ours} is {theirs}" for ours, theirs in moved[:FEW])
        detail += f"; of tuner's trials {said} there{', …' if len(moved) > FEW else ''}"
    return detail


def _differences(told: FrozenTrial, trial: TrialRecord) -> Iterator[Mismatch]:
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
