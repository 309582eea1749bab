"""Removing the checkpoints that killed workers left."""

from __future__ import annotations

from pathlib import Path

from tuner.ledger import Reader, StudyRecord
from tuner.ledger.checkpoint_files import remove_others


def clear(
    checkpoints: Path, ledger: Reader, study: StudyRecord, trial_id: int, number: int
) -> None:
    """Remove the checkpoints of a trial that has ended, but not the one that it keeps."""
    keeps = study.spec.training.keep_checkpoint
    kept = ledger.last_checkpoint(trial_id) if keeps else None
    remove_others(checkpoints, study, number, kept)


def sweep(checkpoints: Path, ledger: Reader, study: StudyRecord) -> None:
    """Remove the checkpoints of trials that ended, which killed workers left."""
    folders = {folder.name for folder in (checkpoints / str(study.id)).glob("*")}
    if not folders:
        return
    for trial_id, number in ledger.ended(study.id):
        if str(number) in folders:
            clear(checkpoints, ledger, study, trial_id, number)
