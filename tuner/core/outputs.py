"""Write the output files of commands atomically."""

from __future__ import annotations

import contextlib
import glob
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner.core.errors import OutputError

ABANDONED_SECONDS = 3600.0
"""Age at which a temporary file belongs to a process that no longer exists."""


def private_folder(folder: Path) -> None:
    """Create a folder, and its missing parents, that only this user may read."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(exist_ok=True)  # raises where it is a file


def private_file(file: Path) -> None:
    """Create an empty file that only this user may read, unless it exists."""
    file.touch(mode=0o600)


def output_error(place: object, error: OSError) -> OutputError:
    """Return what a user reads when a folder or a store cannot be written."""
    return OutputError(
        f"cannot write into {place}: {error.strerror or error}; free some space or name another "
        "folder, and run the command again. The trials are safe in the ledger"
    )


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Create a folder; raise `OutputError` if that or the body cannot write."""
    try:
        private_folder(folder)
        yield
    except OSError as error:
        raise output_error(folder, error) from error


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary path, which replaces `file` after the body.

    If the body raises, an existing file is kept. Several processes may replace the same file: the
    last one wins. Temporary files of processes that were killed are removed after an hour.
    """
    for left in file.parent.glob(f".partial-*-{glob.escape(file.name)}"):
        with contextlib.suppress(FileNotFoundError):
            if left.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                left.unlink()
    partial = file.with_name(f".partial-{secrets.token_hex(4)}-{file.name}")
    try:
        private_file(partial)
        yield partial
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
