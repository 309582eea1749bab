"""What holds for the project as a whole: its command, its pins, and its public names."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


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


@pytest.mark.parametrize("package", ["tuner.ledger", "tuner.search", "tuner.config"])
def test_public_names_are_those_that_a_package_lists(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    )
