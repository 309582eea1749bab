"""The files of checkpoints.

Every path is derived from whole numbers: a row may have any content, and no row names a file.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from tuner.ledger.records import CheckpointRecord, StudyIdentity, is_count


def file_of(checkpoints: Path, record: CheckpointRecord) -> Path:
    """Return the file of a checkpoint. Raise `ValueError` if it lies outside of `checkpoints`."""
    numbers = (record.study_id, record.trial, record.step, record.attempt)
    if not all(map(is_count, numbers)):
        raise ValueError(f"expected whole numbers in the name of a checkpoint, got {numbers}")
    return _resolved(checkpoints, checkpoints / record.path)


def remove_file(checkpoints: Path, record: CheckpointRecord) -> None:
    """Remove the file of a checkpoint, if it exists and lies in the folder of checkpoints."""
    try:
        file = file_of(checkpoints, record)
    except ValueError:
        return
    file.unlink(missing_ok=True)


def remove_others(
    checkpoints: Path, study: StudyIdentity, number: int, kept: CheckpointRecord | None
) -> None:
    """Remove the checkpoints of a trial that has ended, but not the one that it keeps."""
    if kept is None:
        remove_folder(checkpoints, study, number)
        return
    try:
        file = file_of(checkpoints, kept)
    except ValueError:
        return
    for other in file.parent.glob("*"):
        if other != file:
            with contextlib.suppress(OSError):
                other.unlink()


def remove_folder(checkpoints: Path, study: StudyIdentity, number: int | None = None) -> None:
    """Remove the checkpoints of a trial, or of all trials of a study; errors are ignored."""
    numbers = (study.id,) if number is None else (study.id, number)
    if not all(map(is_count, numbers)):
        return
    try:
        folder = _resolved(checkpoints, checkpoints.joinpath(*map(str, numbers)))
    except ValueError:
        return
    shutil.rmtree(folder, ignore_errors=True)


def _resolved(checkpoints: Path, path: Path) -> Path:
    """Return `path`. Raise `ValueError` if a symbolic link leads out of the checkpoints."""
    if not path.resolve().is_relative_to(checkpoints.resolve()):
        raise ValueError(f"{path} lies outside the folder of checkpoints")
    return path
