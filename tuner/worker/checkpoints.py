"""Removing the checkpoints that killed workers left."""

from __future__ import annotations

from tuner.core.errors import UnavailableError
from tuner.core.file_stores import FileStore
from tuner.ledger import Reader, StudyRecord
from tuner.ledger.checkpoint_files import remove_others
from tuner.observability.logs import logger

log = logger(__name__)


def require(checkpoints: FileStore) -> None:
    """Raise `UnavailableError` if checkpoints cannot be listed: a worker could resume nothing."""
    try:
        checkpoints.names("")
    except OSError as error:
        raise UnavailableError(f"the checkpoints cannot be read: {error}") from error


def clear(
    checkpoints: FileStore, ledger: Reader, study: StudyRecord, trial_id: int, number: int
) -> None:
    """Remove the checkpoints of a trial that has ended, but not the one that it keeps."""
    keeps = study.spec.training.keep_checkpoint
    kept = ledger.last_checkpoint(trial_id) if keeps else None
    remove_others(checkpoints, study, number, kept)


def sweep(checkpoints: FileStore, ledger: Reader, study: StudyRecord) -> None:
    """Remove the checkpoints of trials that ended, which killed workers left."""
    try:
        numbers = checkpoints.names(str(study.id))
    except OSError as error:  # they take space; no trial depends on it
        log.warning(f"study {study.name}: its checkpoints cannot be listed: {error}")
        return
    if not numbers:
        return
    for trial_id, number in ledger.ended(study.id):
        if str(number) in numbers:
            clear(checkpoints, ledger, study, trial_id, number)
