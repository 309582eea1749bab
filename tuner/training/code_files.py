"""The files that a study's code consists of, and their digests; nothing is imported or run.

They are the module of its function and what that imports from the same package, found by reading
the import statements. A worker with other files refuses the study and names them.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tuner.config.study import WorkloadTable
from tuner.core.importing import allow_from_current_folder
from tuner.training import registration, workloads
from tuner.training.programs import permission

MOST_FILES = 1000
"""Further files of a package are not compared."""

_IMPORTED: dict[str, dict[str, str]] = {}
"""Of each module when this process first asked for it, which is before it is imported."""


def digests(table: WorkloadTable, prefixes: Sequence[str]) -> dict[str, str]:
    """Return 16 hexadecimal digits of a SHA-256 for each file of a study's code, by path.

    Paths are relative to the folder of the package, or to this folder for a command. Raise
    `WorkloadError` if the code is not allowed or not found.
    """
    is_command = table.command is not None
    module = "" if is_command else registration.module_of(table.function, prefixes)
    if module in sys.modules and module in _IMPORTED:
        return _IMPORTED[module]
    found = {name: digest(file.read_bytes()) for name, file in files(table, prefixes).items()}
    if not is_command:
        _IMPORTED[module] = found
    return found


def files(table: WorkloadTable, prefixes: Sequence[str]) -> dict[str, Path]:
    """Return the files of a study's code, by the paths that `digests` has."""
    if table.command is not None:
        return {str(file): file for file in permission.files_of(table.command, prefixes)}
    module = registration.module_of(table.function, prefixes)
    allow_from_current_folder(prefixes)
    return of_module(workloads.source_of(table.function, module), module)


def of_module(source: Path, module: str) -> dict[str, Path]:
    """Return the files of a module at `source` and of what it imports from its package."""
    parts = module.split(".")
    above = source.parent if source.name == "__init__.py" else source.with_suffix("")
    root = above.parents[len(parts) - 1]
    examples = registration.EXAMPLES.removesuffix(".")
    package = examples if f"{module}.".startswith(registration.OWN) else parts[0]
    found: dict[str, Path] = {}
    modules = [module]
    while modules:
        for one in itertools.accumulate(modules.pop().split("."), "{}.{}".format):
            file = _file(root, one)
            if file is None or not f"{one}.".startswith(f"{package}."):
                continue
            name = file.relative_to(root).as_posix()
            if name not in found and len(found) < MOST_FILES:
                found[name] = file
                modules += _imports(file.read_bytes(), one, is_package=file.name == "__init__.py")
    return dict(sorted(found.items()))


def _file(root: Path, module: str) -> Path | None:
    place = root.joinpath(*module.split("."))
    for file in (place / "__init__.py", place.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def _imports(content: bytes, module: str, *, is_package: bool) -> Iterator[str]:
    """Yield the names of modules that a module may import; some are functions or classes."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # its import says so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")
            above = above[: len(above) + is_package - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names if base)


def digest(content: bytes) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()[:16]
