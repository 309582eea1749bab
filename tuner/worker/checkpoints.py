"""The folders of checkpoints, and removing those that are no longer needed."""

from __future__ import annotations

import shutil
from pathlib import Path

from tuner.core.outcome import RUNNING
from tuner.ledger import Reader, StudyRecord


def folder_of(checkpoints: Path, study: StudyRecord, number: int) -> Path:
    """Return the folder of a trial's checkpoints."""
    return checkpoints / str(study.id) / str(number)


def sweep(checkpoints: Path, ledger: Reader, study: StudyRecord) -> None:
    """Remove the checkpoints of trials that ended, which killed workers left."""
    ended = {str(trial.number) for trial in ledger.trials(study.id) if trial.state != RUNNING}
    for folder in (checkpoints / str(study.id)).glob("*"):
        if folder.name in ended:
            shutil.rmtree(folder, ignore_errors=True)
