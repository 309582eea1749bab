"""Importing: which modules the current folder may provide, and how our own children start.

Python puts the current folder before the libraries, so that an `optuna.py` there runs in place of
Optuna. Here the folder provides modules under the allowed prefixes, and nothing else.
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
    """Return this process's environment; Python, in all that is started with it, as in `command`.

    It is for programs of libraries that start others. A workload's own programs may need the
    folder of their script.
    """
    return os.environ | {"PYTHONSAFEPATH": "1"}


def leave_current_folder() -> None:
    """Take the current folder off the path, where `python -m` has put it."""
    if not sys.flags.safe_path and sys.path[:1] in ([""], [str(Path.cwd())]):
        del sys.path[0]


class _AllowedFinder(FileFinder):
    """Finds the allowed modules of one folder, in place of Python's finder of all of them."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, *_LOADERS)

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of an allowed module; None of any other."""
        if fullname.partition(".")[0] not in _FIRST.allowed:
            return None
        return super().find_spec(fullname, target)


class _FolderFirst:
    """Looks for allowed modules in the current folder before anywhere else."""

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
    """Let modules whose names begin with one of the prefixes be imported from the current folder.

    They come before installed ones of the same name, as for `python -m`. Modules of no allowed
    prefix are not found there, unless the folder is on the path already: none is imported in place
    of a library, or of one that a library would use if it were installed. The folder stands at the
    end of the path as well, where children that `multiprocessing` spawns look: libraries come
    first there.
    """
    _FIRST.folder = str(Path.cwd())
    _FIRST.allowed |= {prefix.partition(".")[0] for prefix in prefixes} - {"tuner", ""}
    if _FIRST not in sys.meta_path:
        sys.meta_path.insert(0, _FIRST)
    if _FIRST.folder not in sys.path and "" not in sys.path:
        sys.path_importer_cache[_FIRST.folder] = _AllowedFinder(_FIRST.folder)
        sys.path.append(_FIRST.folder)
    importlib.invalidate_caches()
