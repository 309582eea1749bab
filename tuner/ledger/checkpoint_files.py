"""The files of checkpoints.

Every key is derived from whole numbers: a row may have any content, and no row names a file.
"""

from __future__ import annotations

import logging

from tuner.core.file_stores import FileStore
from tuner.ledger.records import CheckpointRecord, StudyIdentity, is_id

log = logging.getLogger(__name__)


def key_of(record: CheckpointRecord) -> str:
    """Return the key of a checkpoint. Raise `ValueError` unless its numbers are whole."""
    _require_counts(record.study_id, record.trial, record.step, record.attempt)
    return record.path


def remove_file(checkpoints: FileStore, record: CheckpointRecord) -> None:
    """Remove the file of a checkpoint. If that fails, it takes space and does no other harm."""
    try:
        checkpoints.remove(key_of(record))
    except (OSError, ValueError) as error:
        log.warning(f"a checkpoint that is no longer needed cannot be removed: {error}")


def remove_others(
    checkpoints: FileStore, study: StudyIdentity, number: int, kept: CheckpointRecord | None
) -> None:
    """Remove the checkpoints of a trial that has ended, but not the one that it keeps."""
    try:
        prefix, key = _prefix(study.id, number), None if kept is None else key_of(kept)
    except ValueError:
        return
    checkpoints.remove_below(prefix, but=key)


def remove_all(checkpoints: FileStore, study: StudyIdentity) -> None:
    """Remove the checkpoints of all trials of a study; errors are ignored."""
    try:
        prefix = _prefix(study.id)
    except ValueError:
        return
    checkpoints.remove_below(prefix)


def _prefix(*numbers: int) -> str:
    _require_counts(*numbers)
    return "/".join(map(str, numbers))


def _require_counts(*numbers: int) -> None:
    if not all(map(is_id, numbers)):  # one of a study, or a count
        raise ValueError(f"expected whole numbers in the name of a checkpoint, got {numbers}")
