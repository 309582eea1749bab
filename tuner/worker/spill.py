"""Rows of a curve that wait for the database, in a temporary file of the process.

If the process dies, only time is lost: the next attempt resumes from a checkpoint, whose rows are
in the ledger.
"""

from __future__ import annotations

import struct
import tempfile
from io import FileIO
from pathlib import Path

from tuner.core import curves
from tuner.core.curves import Chunk
from tuner.core.forking import keep_from_children
from tuner.core.outputs import private_folder

LIMIT = 256 * 2**20
"""How many bytes one attempt may spill."""
HEADER = struct.Struct("<qq")  # first step, bytes that follow


class Spill:
    """Consecutive chunks of one attempt."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self._folder = folder
        self._limit = limit
        self._file: FileIO | None = None

    def __bool__(self) -> bool:
        return self._file is not None

    def add(self, chunk: Chunk) -> bool:
        """Append a chunk; return False if there is no space for it, in the limit or on the disk."""
        content = chunk.to_bytes()
        file = self._opened()
        end = 0 if file is None else file.seek(0, 2)
        if file is None or end + len(content) > self._limit:
            return False
        record = HEADER.pack(chunk.first_step, len(content)) + content
        try:
            whole = file.write(record) == len(record)
        except OSError:
            whole = False
        if not whole:
            file.truncate(end)
        return whole

    def read(self) -> Chunk | None:
        """Return all that was added as one chunk; None if nothing was."""
        if self._file is None:
            return None
        self._file.seek(0)
        found = []
        while header := self._file.read(HEADER.size):
            first_step, size = HEADER.unpack(header)
            found.append(Chunk.from_bytes(first_step, self._file.read(size)))
        return curves.join(found) if found else None

    def clear(self) -> None:
        """Delete all."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> FileIO | None:
        if self._file is None:
            try:
                private_folder(self._folder)
                # unbuffered: what a full disk did not take must not be written later
                self._file = tempfile.TemporaryFile(buffering=0, dir=self._folder)  # noqa: SIM115
                keep_from_children(self._file)
            except OSError:
                return None
        return self._file
