"""The code of a study as one file, with which machines that lack it can train the study.

The file is a JSON object of texts by their paths: the module of the study's function and what that
imports from its package. It is named by the SHA-256 of its content. To unpack it is to write text;
what may be imported of it is for the worker to allow.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tuner.config.study import WorkloadTable
from tuner.core.errors import UsageError, WorkloadError
from tuner.core.outputs import private_folder
from tuner.training import code_files, registration

PREFIX = "shipped:"
"""Beside the allowed prefixes of modules, an entry that allows shipped code: `shipped:WHO`."""
MOST_BYTES = 1 << 20
"""Of all files together; more is data, or a library, which is to be installed."""


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """The packed code of a study."""

    digest: str  # SHA-256 of the content
    content: bytes

    @property
    def key(self) -> str:
        """Where it is kept, beside the checkpoints."""
        return key_of(self.digest)


def is_digest(text: object) -> bool:
    """Return whether a value is a SHA-256; no login of PostgreSQL is so long."""
    return isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) is not None


def key_of(digest: str) -> str:
    """Return where the file of this digest is kept."""
    assert is_digest(digest)
    return f"code/{digest}.json"


def permission(who: str) -> str:
    """Return the entry that allows shipped code of a SHA-256 or of a login of the database."""
    if not who.strip():
        raise UsageError("--allow-shipped: expected a SHA-256 or a login of the database, got none")
    return f"{PREFIX}{who.strip()}"


def is_allowed(digest: str, login: str | None, allowed: Sequence[str]) -> bool:
    """Return whether an entry allows code of this digest, or that this login has shipped."""
    return bool({f"{PREFIX}{one}" for one in (digest, login) if one} & set(allowed))


def pack(table: WorkloadTable, prefixes: Sequence[str]) -> Shipment:
    """Read the files of a study's code. Raise `UsageError` if they cannot be shipped."""
    if table.command is not None:
        raise UsageError("--ship: expected a factory or a train function, got a command")
    if f"{table.function}.".startswith(registration.OWN):
        raise UsageError(f"--ship: {table.function} is part of tuner, which every worker has")
    texts = {}
    for name, file in code_files.files(table, prefixes).items():
        try:
            texts[name] = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"--ship: expected {file} in UTF-8: {error}") from error
    content = json.dumps(texts, sort_keys=True).encode()
    if len(content) > MOST_BYTES:
        raise UsageError(
            f"--ship: expected at most {MOST_BYTES} bytes of code, got {len(content)} in "
            f"{len(texts)} files; install the package on the workers' machines"
        )
    return Shipment(digest=hashlib.sha256(content).hexdigest(), content=content)


def unpack(content: bytes, digest: str, package: str, files: Mapping[str, str]) -> dict[str, str]:
    """Return the texts of a shipment by their paths.

    Raise `WorkloadError` unless its SHA-256 is `digest`, and its files are those of `package` with
    which the study was submitted: `files` has their digests.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise WorkloadError(f"expected code with SHA-256 {digest}, got one with {found}")
    texts = json.loads(content) if len(content) <= MOST_BYTES else None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise WorkloadError(f"expected texts by their paths in the code with SHA-256 {digest}")
    strange = [name for name in texts if not _is_of(package, name)]
    if strange:
        raise WorkloadError(f"expected modules of {package} alone, got {strange[0]!r:.100}")
    digests = {name: code_files.digest(text.encode()) for name, text in texts.items()}
    if digests != dict(files):
        raise WorkloadError("it is not the code with which the study was submitted")
    return texts


def _is_of(package: str, name: str) -> bool:
    """Return whether a path is that of a module of a package."""
    path = PurePosixPath(name)
    parts = [*path.parent.parts, path.stem]
    return (
        path.suffix == ".py" and parts[0] == package and all(part.isidentifier() for part in parts)
    )


def install(texts: Mapping[str, str], folder: Path) -> None:
    """Write the files into a folder that only this user may write, and import from it at last.

    The libraries and the current folder come first.
    """
    for name, text in texts.items():
        file = folder / name
        private_folder(file.parent)
        file.write_text(text, encoding="utf-8", newline="")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
