"""Imports from the current folder, and the commands of child processes.

Python puts the current folder before the libraries, so that an `optuna.py` there runs in place of
Optuna. Here the folder provides modules under the allowed prefixes only.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from types import ModuleType

_LOADERS = (
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (SourceFileLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module in a child without the current folder on its path."""
    return [sys.executable, "-P", "-m", module, *arguments]


def safe_environment() -> dict[str, str]:
    """Return this process's environment, in which Python leaves the current folder off the path.

    It is for programs of libraries that start other programs. Programs that a workload starts may
    need the folder of their script.
    """
    return os.environ | {"PYTHONSAFEPATH": "1"}


def leave_current_folder() -> None:
    """Remove the current folder from the path, where `python -m` puts it."""
    if not sys.flags.safe_path and sys.path[:1] in ([""], [str(Path.cwd())]):
        del sys.path[0]


class _AllowedFinder(FileFinder):
    """A finder of the allowed modules of one folder, which replaces Python's own finder."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, *_LOADERS)

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of an allowed module, else None."""
        if fullname.partition(".")[0] not in _FIRST.allowed:
            return None
        return super().find_spec(fullname, target)


class _FolderFirst:
    """A finder that looks for allowed modules in the current folder first."""

    def __init__(self) -> None:
        self.folder = ""
        self.allowed: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of an allowed module in the current folder, or None."""
        if path is not None or fullname not in self.allowed:
            return None
        return PathFinder.find_spec(fullname, [self.folder], target)


_FIRST = _FolderFirst()


def allow_from_current_folder(prefixes: Sequence[str]) -> None:
    """Allow imports of modules under the prefixes from the current folder.

    They precede installed modules of the same name, as for `python -m`. Other modules are not found
    there, unless the folder is on the path already, so none is imported in place of a library, or
    of an optional dependency of a library. The folder is also added at the end of the path, for
    the children that `multiprocessing` spawns; there, libraries come first.
    """
    _FIRST.folder = str(Path.cwd())
    names = {one.partition(".")[0] for one in prefixes if one[:8] not in ("command:", "shipped:")}
    _FIRST.allowed |= names - {"tuner", ""}
    if _FIRST not in sys.meta_path:
        sys.meta_path.insert(0, _FIRST)
    if _FIRST.folder not in sys.path and "" not in sys.path:
        sys.path_importer_cache[_FIRST.folder] = _AllowedFinder(_FIRST.folder)
        sys.path.append(_FIRST.folder)
    importlib.invalidate_caches()
