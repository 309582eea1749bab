"""Folders of files as states that a trial's checkpoint can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from tuner.core.errors import WorkloadError
from tuner.core.outputs import private_folder


def read(folder: Path, files: Iterable[Path] | None = None) -> dict[str, np.ndarray]:
    """Return the content of files of a folder, by their paths in it; by default of all below it."""
    return {
        one.relative_to(folder).as_posix(): np.frombuffer(one.read_bytes(), np.uint8)
        for one in sorted(folder.rglob("*") if files is None else files)
        if one.is_file()
    }


def restore(files: Mapping[str, np.ndarray], folder: Path) -> None:
    """Write the files of a checkpoint into a folder; a name that leads out of it is refused."""
    for name, content in files.items():
        file = (folder / name).resolve()
        if not file.is_relative_to(folder.resolve()):
            raise WorkloadError(f"a checkpoint has a file outside of its folder, {name!r}")
        private_folder(file.parent)
        file.write_bytes(content.tobytes())
