"""Copy the examples of this package, or start a new study from a template."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tuner.core.errors import UsageError

FOLDER = "studies"
"""The folder that files are written to; study files name their modules by it."""
STARTER = "starter"
"""The example that a new study is copied from."""


@dataclass(frozen=True, kw_only=True)
class Copied:
    """The copied files, as paths relative to the current folder."""

    written: tuple[str, ...]
    present: tuple[str, ...]  # existed with the same content


def examples() -> dict[str, str]:
    """Return the examples' descriptions by name."""
    found = {}
    for path in _shipped("toml"):
        name = path.removesuffix(".toml")
        found[name] = str(tomllib.loads(_text(path))["study"]["description"])
    return found


def copy(names: Sequence[str], folder: Path) -> Copied:
    """Copy examples with the modules that they need into `studies` in a folder.

    Raise `UsageError` for an unknown name, and for a file that exists with other content.
    """
    known = examples()
    for name in names:
        if name not in known:
            raise UsageError(f"there is no example {name!r}; the examples are {', '.join(known)}")
    return _write({path: _text(path) for name in names for path in _needed(f"{name}.toml")}, folder)


def start(name: str, folder: Path) -> Copied:
    """Write a commented study file and a workload of this name into `studies` in a folder.

    Raise `UsageError` if the name is not a valid module name, or if its files exist.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(
            f"expected a module name: lower-case letters, digits and _, beginning with a letter; "
            f"got {name!r}"
        )
    taken = [path for path in (f"{name}.toml", f"{name}.py") if (folder / FOLDER / path).exists()]
    if taken:
        raise UsageError(f"{FOLDER}/{taken[0]} exists; choose another name, such as {name}_2")
    made = {
        f"{name}{suffix}": _text(f"{STARTER}{suffix}").replace(STARTER, name)
        for suffix in (".toml", ".py")
    }
    return _write(made, folder)


def _needed(path: str) -> Iterator[str]:
    """Yield a file and, recursively, the modules of its folder that it names."""
    yield path
    for module in re.findall(rf'"{FOLDER}\.(\w+):|^from \.(\w+) import', _text(path), re.MULTILINE):
        yield from _needed(f"{''.join(module)}.py")


def _write(texts: Mapping[str, str], folder: Path) -> Copied:
    """Write all files, or none if one would be overwritten."""
    into = folder / FOLDER
    present = {
        path for path, text in texts.items() if (into / path).exists() and _same(into / path, text)
    }
    for path in texts:
        if path not in present and (into / path).exists():
            raise UsageError(f"{FOLDER}/{path} exists and differs; nothing was written")
    try:
        into.mkdir(exist_ok=True)
        for path in texts.keys() - present:
            (into / path).write_text(texts[path], encoding="utf-8")
        # a regular package; a namespace package would be shadowed by an installed one of this name
        (into / "__init__.py").touch()
    except OSError as error:
        raise UsageError(f"{into} cannot be written: {error.strerror or error}") from error
    return Copied(
        written=tuple(f"{FOLDER}/{path}" for path in texts if path not in present),
        present=tuple(f"{FOLDER}/{path}" for path in texts if path in present),
    )


def _same(file: Path, text: str) -> bool:
    return file.is_file() and file.read_bytes() == text.encode()


def _text(path: str) -> str:
    return files("tuner.examples").joinpath(path).read_text(encoding="utf-8")


def _shipped(suffix: str) -> list[str]:
    names = [path.name for path in files("tuner.examples").iterdir()]
    return sorted(name for name in names if name.endswith(f".{suffix}"))
