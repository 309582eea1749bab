"""Folders of files as states that a trial's checkpoint can hold."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from tuner.core.errors import WorkloadError
from tuner.core.outputs import private_folder


def read(folder: Path, files: Iterable[Path] | None = None) -> dict[str, np.ndarray]:
    """Return the content of files of a folder, by their paths in it; by default of all below it.

    Links are followed to files of the folder only: who made them may have fewer rights than we.
    Raise `WorkloadError` for others, and if files become links meanwhile.
    """
    return {
        one.relative_to(folder).as_posix(): np.frombuffer(_content(one, folder), np.uint8)
        for one in sorted(folder.rglob("*") if files is None else files)
        if one.is_file()
    }


def _content(file: Path, folder: Path) -> bytes:
    """Return the content of a file that is in a folder, whatever links appear meanwhile."""
    outside = WorkloadError(f"a checkpoint has a link out of its folder, {file.name!r}")
    whole = folder.parent.resolve() / folder.name  # the folder itself may have become a link
    place = file.resolve()
    if not place.is_relative_to(whole) or place == whole:
        raise outside
    *folders, name = place.relative_to(whole).parts
    above = os.open(whole.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        above = _below(above, whole.name)
        owner = os.fstat(above).st_uid
        for each in folders:
            above = _below(above, each)
        found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=above)
    except OSError as error:
        raise outside from error
    finally:
        os.close(above)
    with os.fdopen(found, "rb") as stream:
        about = os.fstat(found)
        if not stat.S_ISREG(about.st_mode) or (about.st_nlink > 1 and about.st_uid != owner):
            raise outside
        return stream.read()


def _below(above: int, name: str) -> int:
    """Return the descriptor of a folder in a folder, whose own is closed; links are refused."""
    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
    os.close(above)
    return below


def restore(files: Mapping[str, np.ndarray], folder: Path) -> None:
    """Write the files of a checkpoint into a folder; a name that leads out of it is refused."""
    for name, content in files.items():
        file = (folder / name).resolve()
        if not file.is_relative_to(folder.resolve()):
            raise WorkloadError(f"a checkpoint has a file outside of its folder, {name!r}")
        private_folder(file.parent)
        file.write_bytes(content.tobytes())
