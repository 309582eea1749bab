"""Removing the checkpoints that killed workers left."""

from __future__ import annotations

from pathlib import Path

from tuner.ledger import Reader, StudyIdentity
from tuner.ledger.checkpoint_files import remove_folder


def sweep(checkpoints: Path, ledger: Reader, study: StudyIdentity) -> None:
    """Remove the checkpoints of trials that ended, which killed workers left."""
    folders = {folder.name for folder in (checkpoints / str(study.id)).glob("*")}
    if not folders:
        return
    for number in ledger.ended(study.id):
        if str(number) in folders:
            remove_folder(checkpoints, study, number)
