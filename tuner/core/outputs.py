"""Writing what commands leave in files: whole or not at all, and a sentence where it cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner.core.errors import OutputError


def private_folder(folder: Path) -> None:
    """Create a folder, and those above it that are missing, for this user alone."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(exist_ok=True)  # raises where it is a file


def private_file(file: Path) -> None:
    """Create an empty file for this user alone, unless it exists."""
    file.touch(mode=0o600)


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Create a folder and raise `OutputError` where the body, or this, cannot write."""
    try:
        private_folder(folder)
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error.strerror or error}; make room or name another "
            "folder, and run the command again. The trials are safe in the ledger"
        ) from error


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a path beside `file`, which takes its place when the body is done.

    Where that fails the file that was there stays.
    """
    partial = file.with_name(f".partial-{file.name}")
    partial.unlink(missing_ok=True)
    try:
        private_file(partial)
        yield partial
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
