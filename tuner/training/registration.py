"""Which functions a study may name: registered ones of modules that the worker allows.

A study is a row of the database, so its names are checked as data: a worker calls no function that
was not written to be called by a study.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal, TypeAlias, TypeVar

from tuner.core.errors import WorkloadError

Kind: TypeAlias = Literal["workload", "train_function", "sampler"]

F = TypeVar("F", bound=Callable[..., object])

ALLOWED_PREFIXES = ("tuner.examples.", "studies.")
"""Default prefixes of modules from which workloads may be imported."""

OWN, EXAMPLES = "tuner.", "tuner.examples."
"""Of this package, no prefix allows more than the examples."""

MARK = "__tuner_kind__"


def workload(function: F) -> F:
    """Register a function that returns a `Workload`, so that `[workload] factory` may name it."""
    setattr(function, MARK, "workload")
    return function


def train_function(function: F) -> F:
    """Register a train function, so that `[workload] train` may name it."""
    setattr(function, MARK, "train_function")
    return function


def module_of(name: str, allowed_prefixes: Sequence[str]) -> str:
    """Return the module of a function `module:function`. Raise `WorkloadError` if it is refused."""
    module, _, function = name.partition(":")
    if module == "__main__":
        raise WorkloadError(
            f"workload {name}: expected a module that workers can import, got __main__, which is "
            f"this notebook or script, and a different module in each worker; move {function} into "
            f"a file, such as studies/mine.py, and name it as studies.mine:{function}"
        )
    if not re.fullmatch(r"[A-Za-z]\w*", function):
        raise WorkloadError(
            f"workload {name}: expected the name of a public function of a module, got "
            f"{function!r}; no attribute with dots and no name that begins with _ may be named"
        )
    parts = module.split(".")
    if "__main__" in parts or not all(part.isidentifier() for part in parts):
        raise WorkloadError(
            f"workload {name}: expected a module that can be imported, got {module!r}"
        )
    modules = [one for one in allowed_prefixes if not one.startswith(("command:", "shipped:"))]
    packages = [f"{prefix.removesuffix('.')}." for prefix in modules]
    if not f"{module}.".startswith(tuple(packages)):
        raise WorkloadError(
            f"workload {name}: expected a module whose name begins with "
            f"{' or '.join(repr(package) for package in packages)}, got {module!r}; if you "
            f"trust its code, allow it with --allow {_prefix(module)}"
        )
    if f"{module}.".startswith(OWN) and not f"{module}.".startswith(EXAMPLES):
        raise WorkloadError(
            f"workload {name}: expected a module of yours or of {EXAMPLES.removesuffix('.')}, got "
            f"{module!r}; no other module of tuner may be named by a study"
        )
    return module


def _prefix(module: str) -> str:
    return EXAMPLES if f"{module}.".startswith(OWN) else f"{module.partition('.')[0]}."


def function_of(name: str, module: ModuleType, kind: Kind) -> Callable[..., object]:
    """Return the function `module:function` of its imported module.

    Raise `WorkloadError` unless it is defined there and registered as `kind`, by its decorator or
    by its annotation.
    """
    function_name = name.partition(":")[2]
    function: object = vars(module).get(function_name)
    # a cached or decorated function is judged by what it wraps
    inner = inspect.unwrap(function) if callable(function) else None
    homes = {getattr(one, "__module__", None) for one in (function, inner)}
    if callable(function) and (other := homes - {module.__name__}):
        home = other.pop() or "another module"
        raise WorkloadError(
            f"workload {name}: expected a function that is defined in {module.__name__}, got one "
            f"of {home}; name it where it is defined, or write a function in {module.__name__} "
            "that calls it (a decorator needs functools.wraps)"
        )
    is_code = inspect.isfunction(inner) or (kind == "sampler" and inspect.isclass(inner))
    if not callable(function) or inner is None or not is_code:
        what = "no such name" if function is None else f"a {type(function).__name__}"
        raise WorkloadError(
            f"workload {name}: expected a function {function_name} in {module.__file__}, got {what}"
        )
    _refuse_unregistered(name, function, inner, kind)
    return function


def _refuse_unregistered(
    name: str, function: Callable[..., object], inner: Callable[..., object], kind: Kind
) -> None:
    short = name.partition(":")[2]
    marked = getattr(function, MARK, getattr(inner, MARK, None))
    if marked is None:
        marked = kind if _CONTRACTS[kind](inner) else None
    if marked == kind:
        return
    if marked is not None:
        key, other = ("train", "factory") if marked == "train_function" else ("factory", "train")
        raise WorkloadError(
            f"workload {name}: {short} is registered for [workload] {key}, and was named by {other}"
        )
    raise WorkloadError(
        f"workload {name}: expected a function that says that it is for studies; "
        + _HOW[kind].format(name=short)
    )


def _returns_workload(function: Callable[..., object]) -> bool:
    return _names(inspect.signature(function).return_annotation, "Workload")


def _takes_trial(function: Callable[..., object]) -> bool:
    first = next(iter(inspect.signature(function).parameters.values()), None)
    return first is not None and (first.name == "trial" or _names(first.annotation, "Trial"))


def _is_sampler(maker: Callable[..., object]) -> bool:
    made = maker if inspect.isclass(maker) else inspect.signature(maker).return_annotation
    return _names(made, "BaseSampler", "optuna.")


_CONTRACTS = {
    "workload": _returns_workload,
    "train_function": _takes_trial,
    "sampler": _is_sampler,
}
_HOW = {
    "workload": "annotate it as `def {name}(...) -> Workload`, or decorate it with @tuner.workload",
    "train_function": "write it as `def {name}(trial, ...)`, or decorate it with "
    "@tuner.train_function",
    "sampler": "derive the class from Optuna's BaseSampler, or annotate a function as "
    "`def {name}(...) -> BaseSampler`",
}


def _names(annotation: Any, name: str, package: str = OWN) -> bool:
    """Return whether an annotation, or its text, is this class of a package or one derived."""
    if isinstance(annotation, str):
        return annotation.strip("\"' ").rpartition(".")[2] == name
    bases = inspect.getmro(annotation) if inspect.isclass(annotation) else ()
    return any(base.__name__ == name and base.__module__.startswith(package) for base in bases)
