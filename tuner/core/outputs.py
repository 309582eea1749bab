"""Write the output files of commands atomically."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner.core.errors import OutputError


@contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Create a folder; raise `OutputError` if that or the body cannot write."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error.strerror or error}; free some space or name "
            "another folder, and run the command again. The trials are safe in the ledger"
        ) from error


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary path, which replaces `file` after the body.

    If the body raises, an existing file is kept.
    """
    partial = file.with_name(f".partial-{file.name}")
    try:
        yield partial
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
