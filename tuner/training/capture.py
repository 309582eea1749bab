"""Write a function of a script or a notebook, with what it uses, into a module.

Workers cannot import a notebook, and importing a script would run it. The module has the source of
the function and of the functions and classes that it uses, and imports and constants. It is code
that anyone can read, keep and name in a study file; its digest is part of its name.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import inspect
import linecache
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tuner.core.errors import WorkloadError

FOLDER = "studies"
"""The package of captured modules, in the current folder; workers import from it."""
_LOADS = {"LOAD_NAME", "LOAD_GLOBAL", "LOAD_CLASSDEREF"}


@dataclass(frozen=True, kw_only=True)
class Captured:
    """A function in a module that is to be written."""

    module: str  # `studies.` and a name with the digest of the text
    function: str
    text: str  # of the module

    @property
    def name(self) -> str:
        """What a study file names."""
        return f"{self.module}:{self.function}"

    def write(self, folder: Path) -> Path:
        """Write the module below a folder, unless it is there. Return its file."""
        file = folder.joinpath(*self.module.split(".")).with_suffix(".py")
        if not file.exists() or file.read_text(encoding="utf-8") != self.text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.text, encoding="utf-8")
        return file


def must_be_captured(function: Callable[..., object]) -> bool:
    """Return whether no worker could import a function by its name."""
    name = getattr(function, "__name__", None)
    if name is None:  # such as functools.partial; `capture` refuses it
        return True
    found = getattr(sys.modules.get(function.__module__), name, None)
    return function.__module__ == "__main__" or found is not function


def capture(function: Callable[..., object], study: str) -> Captured:
    """Return a module with a function and what it uses. Raise `WorkloadError`."""
    if not inspect.isfunction(inspect.unwrap(function)) or function.__name__ == "<lambda>":
        raise WorkloadError(
            f"expected a function that is written with def, got {_described(function)}; write one "
            "that calls it, and pass what is fixed in arguments"
        )
    parts = _Parts(function.__name__)
    parts.add(function.__name__, function, inspect.unwrap(function))
    body = "\n\n\n".join(parts.definitions)
    text = (
        f'"""{function.__name__} and what it uses, as `tuner.Study` captured them from Python."""\n'
        "\nfrom __future__ import annotations\n\n"
        + "".join(f"{line}\n" for line in sorted(parts.imports))
        + "".join(f"\n{line}\n" for line in parts.constants)
        + f"\n\n{body}\n"
    )
    stem = re.sub(r"\W+", "_", study.lower()).strip("_") or "study"
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Captured(module=f"{FOLDER}.{stem}_{digest}", function=function.__name__, text=text)


class _Parts:
    """The parts of a captured module, in the order in which they can be run."""

    def __init__(self, function: str) -> None:
        self.imports: list[str] = []
        self.constants: list[str] = []
        self.definitions: list[str] = []
        self._function = function
        self._seen: dict[str, object] = {}

    def add(self, name: str, value: Any, user: Any) -> None:
        """Add what a name refers to in `user`, a function or a class."""
        if name in self._seen:
            if self._seen[name] is not value:
                raise self._refusal(name, value, "one meaning of the name, got two")
            return
        self._seen[name] = value
        if isinstance(value, ModuleType):
            self._import(name, value)
        elif _is_defined_here(value, user):
            self._define(name, value)
        elif (line := _import_line(name, value)) is not None:
            self.imports.append(line)
        elif _is_constant(value):
            self.constants.append(f"{name} = {value!r}")
        else:
            expected = "a module, a function, a class, or a constant of numbers and texts"
            raise self._refusal(name, value, f"{expected}, got {_described(value)}")

    def _import(self, name: str, module: ModuleType) -> None:
        if module.__name__ == "__main__":
            raise self._refusal(name, module, "a module that workers can import, got this one")
        same = module.__name__ == name
        self.imports.append(f"import {module.__name__}" + ("" if same else f" as {name}"))

    def _define(self, name: str, value: Any) -> None:
        source = _source(value)
        if source is None:
            raise self._refusal(name, value, "its source to be in a file or a cell, got none")
        names = _namespace(value)
        for used in _names_used(source):
            if used in names and used != value.__name__:
                self.add(used, names[used], value)
        self.definitions.append(source)
        if name != value.__name__:
            self.definitions.append(f"{name} = {value.__name__}")

    def _refusal(self, name: str, value: object, expected: str) -> WorkloadError:
        return WorkloadError(
            f"{self._function} lives in this script or notebook and uses {name}: expected "
            f"{expected}, which workers cannot get. Make {name} inside of {self._function} or of a "
            f"function that it calls, pass it in arguments, or move all of them into a file such "
            f"as studies/mine.py and use `from studies.mine import {self._function}`"
        )


def _is_defined_here(value: Any, user: Any) -> bool:
    """Return whether a function or class is of the module of its user, or of none that has it."""
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        return value is user
    home = sys.modules.get(value.__module__)
    return value.__module__ == "__main__" or getattr(home, value.__name__, None) is not value


def _import_line(name: str, value: Any) -> str | None:
    """Return the import of what another module has by a plain name, or None."""
    own = getattr(value, "__name__", None)
    if not isinstance(own, str) or not own.isidentifier():
        return None
    module = getattr(value, "__module__", None) or _home(value, own)
    if (
        not isinstance(module, str)
        or module == "__main__"
        or getattr(sys.modules.get(module), own, None) is not value
    ):
        return None
    return f"from {module} import {own}" + ("" if own == name else f" as {name}")


def _home(value: object, name: str) -> str | None:
    """Return a module that has a function which does not know its module, as builtin ones."""
    owner = getattr(value, "__self__", None)  # of a method of a module
    if isinstance(owner, ModuleType):
        return owner.__name__
    for module_name, module in list(sys.modules.items()):
        if module_name != "__main__" and getattr(module, "__dict__", {}).get(name) is value:
            return module_name
    return None


def _is_constant(value: object) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _namespace(value: Any) -> Mapping[str, Any]:
    """Return what the names in a function or a class may refer to."""
    inner = inspect.unwrap(value) if callable(value) and not inspect.isclass(value) else value
    if inspect.isclass(inner):
        found: dict[str, Any] = dict(vars(sys.modules[inner.__module__]))
        for method in vars(inner).values():
            if inspect.isfunction(method):
                found |= inspect.getclosurevars(method).nonlocals
        return found
    return {**inner.__globals__, **inspect.getclosurevars(inner).nonlocals}


def _names_used(source: str) -> list[str]:
    """Return the global names that a definition uses, decorators and defaults included."""
    code = compile(f"from __future__ import annotations\n{source}", "<captured>", "exec")
    return sorted(set(_loaded(code)))


def _loaded(code: CodeType) -> Iterator[str]:
    instructions = list(dis.get_instructions(code))
    stored = {one.argval for one in instructions if one.opname == "STORE_NAME"}
    for one in instructions:
        if one.opname in _LOADS and one.argval not in stored:
            yield str(one.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _loaded(constant)


def _source(value: Any) -> str | None:
    """Return the source of a function or a class, or None."""
    inner = inspect.unwrap(value) if not inspect.isclass(value) else value
    try:
        return textwrap.dedent(inspect.getsource(inner)).rstrip()
    except (OSError, TypeError):
        return _source_of_class(inner) if inspect.isclass(inner) else None


def _source_of_class(found: type) -> str | None:
    """Return the source of a class of a notebook, which `inspect` does not find."""
    for method in vars(found).values():
        if not inspect.isfunction(method):
            continue
        text = "".join(linecache.getlines(method.__code__.co_filename))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.name == found.__name__:
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                lines = text.splitlines()[first - 1 : node.end_lineno]
                return textwrap.dedent("\n".join(lines))
    return None


def _described(value: object) -> str:
    return (
        "a lambda"
        if getattr(value, "__name__", "") == "<lambda>"
        else (f"{'an' if type(value).__name__[0] in 'aeiouAEIOU' else 'a'} {type(value).__name__}")
    )
