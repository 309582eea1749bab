"""Compare Optuna's trials of a study with the ledger's, and tell them from foreign trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from tuner.core.outcome import COMPLETED, RUNNING
from tuner.ledger import StudyIdentity, StudyRecord, TrialRecord
from tuner.search.mirror import STATES
from tuner.search.storage import directions
from tuner.tracking.optuna.storage_writer import template, written_from
from tuner.tracking.projection import Mismatch

FOREIGN_TRIALS = "optuna_extra"
"""The kind of mismatch of a study to which other programs added trials."""
NAME_TAKEN = "optuna_study"
"""The kind of mismatch if Optuna's study of this name is not tuner's."""
STUDY_ATTRIBUTE = "tuner.study"
"""The user attribute that identifies a study of tuner's in Optuna."""
FEW = 5
"""How many trials a detail names."""


def find_study(storage: BaseStorage, study: StudyIdentity) -> int | None:
    """Return the id of the study of this title in Optuna, also if it is foreign, or None."""
    try:
        return storage.get_study_id_from_name(study.title)
    except KeyError:
        return None


def is_ours(storage: BaseStorage, study_id: int, study: StudyIdentity) -> bool:
    """Return whether a study in Optuna is tuner's, or an empty one that may become it.

    A recorder that is killed while creating a study leaves an empty one without our attribute.
    """
    attrs = storage.get_study_user_attrs(study_id)
    if STUDY_ATTRIBUTE in attrs:
        return bool(attrs[STUDY_ATTRIBUTE] == study.name)
    if not isinstance(study, StudyRecord):  # it cannot be read
        return False
    same = storage.get_study_directions(study_id) == directions(study.spec)
    return same and storage.get_n_trials(study_id) == 0


def load(storage: BaseStorage, study: StudyRecord) -> list[FrozenTrial]:
    """Return Optuna's trials of a study; none if it does not have the study."""
    study_id = find_study(storage, study)
    return [] if study_id is None else storage.get_all_trials(study_id, deepcopy=False)


def published_trials(
    theirs: Sequence[FrozenTrial], study: StudyRecord, ours: Sequence[TrialRecord]
) -> dict[int, list[FrozenTrial]]:
    """Return the trials in Optuna that tuner wrote, by our numbers, the oldest first."""
    return written_from(theirs, [template(trial, study) for trial in ours])


def foreign_trials(
    theirs: Sequence[FrozenTrial], written: Mapping[int, Sequence[FrozenTrial]]
) -> list[FrozenTrial]:
    """Return the trials that other programs added."""
    ids = {one._trial_id for some in written.values() for one in some}
    return [one for one in theirs if one._trial_id not in ids]


def mismatches(
    storage: BaseStorage, study: StudyRecord, ours: Sequence[TrialRecord]
) -> Iterator[Mismatch]:
    """Compare Optuna's trials of a study with the ledger's."""
    study_id = find_study(storage, study)
    if study_id is not None and not is_ours(storage, study_id, study):
        yield Mismatch(NAME_TAKEN, None, f"Optuna's study {study.title!r} is not tuner's")
        return
    theirs = load(storage, study)
    written = published_trials(theirs, study, ours)
    if foreign := foreign_trials(theirs, written):
        yield Mismatch(FOREIGN_TRIALS, None, _describe(foreign, written))
    for trial in ours:
        if trial.params is None and trial.state == RUNNING:
            continue
        found, *more = written.get(trial.number, [None])
        if found is None:
            yield Mismatch("optuna_missing", trial.number, "Optuna does not have it")
            continue
        if more:
            yield Mismatch("optuna_doubled", trial.number, f"Optuna has it {1 + len(more)} times")
        yield from _differences(found, trial)


def _describe(foreign: Sequence[FrozenTrial], written: Mapping[int, Sequence[FrozenTrial]]) -> str:
    """Return which trials in Optuna are foreign, and which of ours have other numbers there."""
    numbers = ", ".join(str(one.number) for one in foreign[:FEW])
    more = ", …" if len(foreign) > FEW else ""
    detail = f"{len(foreign)} of Optuna's trials are not tuner's: {numbers}{more}"
    moved = [(ours, some[0].number) for ours, some in sorted(written.items())]
    moved = [(ours, theirs) for ours, theirs in moved if ours != theirs]
    if moved:
        renumbered = ", ".join(f"{ours} is {theirs}" for ours, theirs in moved[:FEW])
        detail += f"; of tuner's trials {renumbered} there{', …' if len(moved) > FEW else ''}"
    return detail


def _values(trial: TrialRecord) -> list[float]:
    """Return the value of each objective of a completed trial."""
    assert trial.value is not None
    return [trial.value] if trial.objectives is None else list(trial.objectives)


def _shown(values: Sequence[float] | None) -> str:
    return ", ".join(map(str, values or ())) or "nothing"


def _differences(found: FrozenTrial, trial: TrialRecord) -> Iterator[Mismatch]:
    if found.state != STATES[trial.state]:
        detail = f"{found.state.name} in Optuna, {trial.state} in the ledger"
        yield Mismatch("optuna_state", trial.number, detail)
    elif trial.state == COMPLETED and found.values != (values := _values(trial)):
        detail = f"{_shown(found.values)} in Optuna, {_shown(values)} in the ledger"
        yield Mismatch("optuna_value", trial.number, detail)
    reports = {report.step: report.value for report in trial.reports}
    if trial.state != RUNNING and found.intermediate_values != reports:
        yield Mismatch("optuna_reports", trial.number, "reports differ")
    params = trial.params or {}
    if any(params.get(name) != value for name, value in found.params.items()):
        yield Mismatch("optuna_params", trial.number, "parameters differ")
