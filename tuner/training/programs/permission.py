"""Which commands a worker may run: those that begin with words that it was started with.

A study is a row of the database, so its command is data until it is compared. A permission is an
entry `command:WORDS` beside the allowed prefixes of modules.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from tuner.config import StudySpec
from tuner.core.errors import UsageError, WorkloadError

PREFIX = "command:"
DIGESTED = 16 << 20
"""Files of a command with more bytes, such as data, are not part of its digest."""


def permission(words: str) -> str:
    """Return the entry that allows commands that begin with these words, quoted as in a shell."""
    try:
        split = shlex.split(words)
    except ValueError as error:
        raise UsageError(f"--allow-command: expected words, got {words!r}: {error}") from error
    if not split:
        raise UsageError("--allow-command: expected the first words of a command, got none")
    return f"{PREFIX}{shlex.join(split)}"


def of_file(spec: StudySpec) -> tuple[str, ...]:
    """Return the permission of exactly a study's command, for who runs a study file by its name."""
    command = spec.workload.command
    return () if command is None else (f"{PREFIX}{shlex.join(command)}",)


def refuse_unless_allowed(command: Sequence[str], allowed: Sequence[str]) -> None:
    """Raise `WorkloadError` unless a command begins with the words of a permission."""
    for entry in allowed:
        if entry.startswith(PREFIX):
            words = shlex.split(entry.removeprefix(PREFIX))
            if words and list(command[: len(words)]) == words:
                return
    raise WorkloadError(
        f"workload {shlex.join(command)}: this process was not started to run this command; if you "
        f"trust its code, allow it with --allow-command {shlex.quote(shlex.join(command[:2]))}"
    )


def code_digest(command: Sequence[str], allowed: Sequence[str]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a command and of the files that it names.

    Raise `WorkloadError` if the command is not allowed.
    """
    digest = hashlib.sha256(json.dumps(list(command)).encode())
    for file in files_of(command, allowed):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def files_of(command: Sequence[str], allowed: Sequence[str]) -> list[Path]:
    """Return the files that a command names, without large ones.

    Raise `WorkloadError` if the command is not allowed.
    """
    refuse_unless_allowed(command, allowed)
    return [
        file
        for file in map(Path, command)
        if file.is_file() and not file.is_absolute() and file.stat().st_size <= DIGESTED
    ]
