"""Files to start from: what `tuner init` and `tuner examples` write, and what they refuse."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tuner.cli.app import cli
from tuner.config import reading
from tuner.core import importing
from tuner.core.errors import UsageError
from tuner.operations import examples

ROOT = Path(__file__).parents[1]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in (folder / "studies").iterdir()}


def test_every_study_of_the_clone_is_an_example() -> None:
    files = {path.stem for path in (ROOT / "studies").glob("*.toml")}
    assert set(examples.examples()) == files
    assert all(examples.examples().values())


@pytest.mark.parametrize("name", examples.examples())
def test_an_example_is_copied_with_the_modules_that_it_needs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples.copy([name], tmp_path)
    spec = reading.load(tmp_path / "studies" / f"{name}.toml")
    module, _, function = spec.workload.function.partition(":")
    for imported in [known for known in sys.modules if known.split(".")[0] == "studies"]:
        monkeypatch.delitem(sys.modules, imported)
    # as a new process: others of this one may have allowed `studies` from their folder
    finders = [one for one in sys.meta_path if one is not importing._FIRST]
    monkeypatch.setattr(sys, "meta_path", finders)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = importlib.import_module(module)
    assert Path(found.__file__ or "").parent == tmp_path / "studies"
    assert callable(getattr(found, function))
    for imported in [known for known in sys.modules if known.split(".")[0] == "studies"]:
        del sys.modules[imported]


def test_copying_again_changes_nothing_and_never_overwrites(tmp_path: Path) -> None:
    first = examples.copy(["sine"], tmp_path)
    assert first.written == ("studies/sine.toml", "studies/sine.py", "studies/quadratic.py")
    again = examples.copy(["sine"], tmp_path)
    assert (again.written, again.present) == ((), first.written)
    (tmp_path / "studies" / "quadratic.py").write_text("mine")
    with pytest.raises(UsageError, match=r"studies/quadratic\.py exists and differs; nothing was"):
        examples.copy(["digits", "quadratic"], tmp_path)
    assert "digits.py" not in names_in(tmp_path)
    assert (tmp_path / "studies" / "quadratic.py").read_text() == "mine"


def test_a_new_study_has_its_name_everywhere(tmp_path: Path) -> None:
    examples.start("mine", tmp_path)
    assert names_in(tmp_path) == {"__init__.py", "mine.toml", "mine.py"}
    spec = reading.load(tmp_path / "studies" / "mine.toml")
    assert spec.study.name == "mine"
    assert spec.workload.factory == "studies.mine:workload"
    assert "starter" not in (tmp_path / "studies" / "mine.toml").read_text()


@pytest.mark.parametrize("name", ["a b", "../mine", "3d", "", "Mine", "mine"])
def test_a_name_that_cannot_be_or_is_taken_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "mine.py").touch()
    with pytest.raises(UsageError, match=r"expected a module name|exists; choose another name"):
        examples.start(name, tmp_path)
    assert names_in(tmp_path) == {"mine.py"}


def test_the_list_says_how_to_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["examples"])
    assert "house_prices " in done.stdout
    assert "examples NAME" in done.stdout
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="there is no example 'nothing'"):
        CliRunner().invoke(cli, ["examples", "nothing"], catch_exceptions=False)
