"""What holds for the project as a whole: its settings, its pins, and the shape of its modules."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = [
    path
    for folder in ("tuner", "studies", "tests", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.read_text().strip()
]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_warnings_are_errors() -> None:
    assert PROJECT["tool"]["pytest"]["ini_options"]["filterwarnings"][0] == "error"


def test_the_command_is_declared() -> None:
    assert PROJECT["project"]["scripts"] == {"tuner": "tuner.cli:main"}


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", pin) for pin in pins)
    pinned = [canonical(pin.partition("==")[0]) for pin in pins]
    assert pinned == sorted(set(pinned))
    declared = PROJECT["project"]["dependencies"]
    declared = declared + PROJECT["project"]["optional-dependencies"]["dev"]
    names = {canonical(re.split(r"[<>=!~\[ ;]", line, maxsplit=1)[0]) for line in declared}
    assert names <= set(pinned)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_the_first_line_of_a_module_says_what_it_does(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module begins with its docstring"
    assert tree.body[0].lineno == 1
    assert len((ast.get_docstring(tree) or "").splitlines()[0]) > 10


@pytest.mark.parametrize(
    "path", [path for path in MODULES if named(path)[:5] == "tuner"], ids=named
)
def test_a_module_fits_in_the_head(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_continuous_integration_runs_what_people_run() -> None:
    commands = (ROOT / ".ci" / "run").read_text().splitlines()
    assert commands[-2:] == ["make lint", "make test"]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test", "quick", "lint", "check", "clean"} <= set(targets)


@pytest.mark.parametrize("package", ["tuner.ledger", "tuner.search", "tuner.config"])
def test_public_names_are_those_that_a_package_lists(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    )
