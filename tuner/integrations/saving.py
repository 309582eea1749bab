"""Checkpoints that a library writes as files, kept in the checkpoint of a trial."""

from __future__ import annotations

import logging
import pickle
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tuner.integrations.ranks import is_of_worker
from tuner.training import checkpoint_files
from tuner.training.checkpoint import CheckpointError
from tuner.training.trial import Trial

FILES = "files"
PICKLED = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
"""Suffixes of files that libraries write by pickle."""
NUMPY: tuple[Any, ...] = (
    np.zeros(0).__reduce__()[0],
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
)
"""What the state of numpy's random numbers consists of."""

log = logging.getLogger(__name__)


class SavedFiles:
    """The files of a trial's checkpoint, restored in a folder that lives as long as this object."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        saved = trial.checkpoint.load()
        self.found = saved is not None
        """Whether there is a checkpoint to resume from."""
        self.folder = Path(tempfile.mkdtemp(prefix="tuner-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._are_data: bool | None = None  # None: not known yet
        if saved is not None:
            checkpoint_files.restore(saved[FILES], self.folder)
            expect_data(self.folder)

    def save(self, write: Callable[[Path], object], *, is_first: bool = True) -> None:
        """Save the files that `write` writes into a folder, if this is the first rank.

        Other ranks that a worker has started save their random states. Files that contain more than
        data are not kept, since whoever changes them would run code in the program that resumes.
        """
        with tempfile.TemporaryDirectory(prefix="tuner-") as name:
            folder = Path(name)
            write(folder)
            if (is_first or is_of_worker()) and self._is_data(folder):
                self._trial.checkpoint.save({FILES: checkpoint_files.read(folder)})

    def _is_data(self, folder: Path) -> bool:
        """Return whether all files are data; they are read until one is saved."""
        if self._are_data is None:
            try:
                expect_data(folder)
            except CheckpointError as error:
                self._are_data = False
                log.warning("trial %d is not saved: %s", self._trial.number, error)
            else:
                self._are_data = True
        return self._are_data


def expect_data(folder: Path) -> None:
    """Raise `CheckpointError` if a file of torch holds other than tensors, numbers and texts."""
    for file in sorted(folder.rglob("*")):
        if file.suffix in PICKLED:
            try:
                with torch.serialization.safe_globals(list(NUMPY)):
                    torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise CheckpointError(
                    f"{file.name}: expected tensors, numbers and texts, got Python objects: {error}"
                ) from error


class SaveTimes:
    """When to save a library's loop that does not know, in an epoch, which data is left.

    At ends of epochs, where a resumed trial gets the same batches as an uninterrupted one; within
    an epoch only if it is longer than the time between checkpoints.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._has_ended = False  # an epoch, since the last save

    def due(self, *, epoch_ended: bool) -> bool:
        """Return whether to save now."""
        self._has_ended = self._has_ended or epoch_ended
        if not self._trial.checkpoint.due or (self._has_ended and not epoch_ended):
            return False
        self._has_ended = False
        return True
