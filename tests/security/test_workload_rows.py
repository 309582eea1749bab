"""A row of the database names what a worker runs: only functions that were written for studies.

Each attacker here may write any row. The digest in it is right unless the test says otherwise,
since whoever knows the code can compute it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from training_here import line_spec

from tuner.core.errors import WorkloadError
from tuner.ledger import Ledger, StudyRecord
from tuner.ledger.database import Addresses
from tuner.ledger.tables import studies
from tuner.operations import submit
from tuner.training import train_functions, workloads
from tuner.worker import work
from tuner.worker.loading import load_workload

PREFIXES = ("tuner.", "studies.", "planted.")
GOOD = """
from training_here import fitting
from tuner.training.workloads import Workload
def line() -> Workload:
    return fitting()
"""
EXPORTS = """
from functools import partial, wraps
from io import FileIO
from os import system
from pathlib import Path
from planted.good import line as borrowed
class Opened:
    def __init__(self, file):
        Path(file).touch()
def plain(file):
    Path(file).touch()
def _private(file) -> "Workload":
    Path(file).touch()
def trains(trial, file):
    Path(file).touch()
def returns(file) -> "Workload":
    Path(file).touch()
bound = partial(plain)
short = lambda file: Path(file).touch()
"""
RAN = "ran"
REFUSED: dict[str, tuple[str, str, Mapping[str, str], str]] = {
    "a command of ours": ("factory", "tuner.cli:main", {}, "no other module of tuner"),
    "a program of ours": (
        "factory", "tuner.observability.health:main", {"url": "http://127.0.0.1:9/"},
        "no other module of tuner",
    ),
    "our finder": (
        "factory", "tuner.training.workloads:load", {"factory": "planted.exports:plain"},
        "no other module of tuner",
    ),
    "our package": ("factory", "tuner:run", {"file": RAN}, "no other module of tuner"),
    "an imported class": (
        "factory", "planted.exports:FileIO", {"file": RAN, "mode": "w"},
        "expected a function that is defined in planted.exports, got one of _io",
    ),
    "an imported system call": (
        "factory", "planted.exports:system", {"command": f"touch {RAN}"},
        "expected a function that is defined in planted.exports, got one of posix",
    ),
    "another module's workload": (
        "factory", "planted.exports:borrowed", {},
        "got one of planted.good; name it where it is defined",
    ),
    "a class": ("factory", "planted.exports:Opened", {"file": RAN}, "got a type"),
    "a partial": ("factory", "planted.exports:bound", {"file": RAN}, "got one of functools"),
    "no contract": ("factory", "planted.exports:plain", {"file": RAN}, "decorate it with @tuner.w"),
    "a lambda": ("factory", "planted.exports:short", {"file": RAN}, "decorate it with @tuner.work"),
    "no train function": (
        "train", "planted.exports:plain", {}, "write it as `def plain(trial, ...)`",
    ),
    "a workload to train": ("train", "planted.exports:returns", {}, "@tuner.train_function"),
    "a train function to build": (
        "factory", "planted.exports:trains", {"trial": "1", "file": RAN},
        "annotate it as `def trains(...) -> Workload`",
    ),
    "a private name": (
        "factory", "planted.exports:_private", {"file": RAN}, "no name that begins with _",
    ),
    "a program": ("factory", "planted.__main__:line", {}, "expected a module that can be imported"),
    "a module of Python": ("factory", "os:system", {"command": f"touch {RAN}"}, "with --allow"),
}  # fmt: skip


@pytest.fixture
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Path]:
    """A package `planted` in the current folder, which workers of these tests may import."""
    caplog.set_level("WARNING")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    package = tmp_path / "planted"
    package.mkdir()
    (package / "good.py").write_text(GOOD)
    (package / "exports.py").write_text(EXPORTS)
    (package / "__main__.py").write_text(GOOD + f"open({RAN!r}, 'w').close()\n")
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "planted"]:
        del sys.modules[name]


def put(ledger: Ledger, name: str, table: Mapping[str, Any], code: str) -> StudyRecord:
    """Submit a good study, then let an attacker change its row."""
    spec = line_spec(
        study={"name": name},
        workload={"factory": "planted.good:line"},
        budget={"trials": 1},
        space={"lr": [0.1]},
    )
    study, _ = submit.submit(ledger, spec, submit.prepare(spec, PREFIXES).description)
    if table:
        content = json.loads(spec.model_dump_json()) | {"workload": dict(table)}
        changed = {
            "spec": json.dumps(content),
            "workload": {**study.workload, "code": code, "files": None},
        }
        with ledger.engine.begin() as tx:
            tx.execute(update(studies).where(studies.c.id == study.id).values(**changed))
    return ledger.study(name)


def work_here(ledger: Ledger, places: Addresses) -> None:
    work(
        ledger,
        places,
        names=[],
        prefixes=PREFIXES,
        stop=threading.Event(),
        until_idle=True,
    )


def source_of(module: str, folder: Path) -> Path:
    """Return the file whose digest an attacker would write."""
    if not module.startswith("tuner"):
        return folder / "exports.py"
    place = Path(sys.modules["tuner"].__path__[0], *module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def assert_refused(ledger: Ledger, places: Addresses, names: Iterable[str]) -> None:
    """Nothing of these studies runs, and a worker trains another one after them."""
    other = put(ledger, "other", {}, "")
    work_here(ledger, places)
    assert not Path(RAN).exists()
    assert not any(ledger.study(name).reserved for name in names)
    assert ledger.counts(other.id)["completed"] == 1


@pytest.mark.slow
def test_a_row_runs_only_what_was_written_for_studies(
    ledger: Ledger, places: Addresses, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One worker meets all of these rows, refuses each with a sentence, and goes on."""
    for name, (key, function, arguments, _) in REFUSED.items():
        code = digest(source_of(function.partition(":")[0], folder))
        put(ledger, name, {key: function, "arguments": dict(arguments)}, code)
    assert_refused(ledger, places, REFUSED)
    for name, (*_, said) in REFUSED.items():
        (line,) = [one for one in caplog.messages if one.startswith(f"study {name} is left to oth")]
        assert said in line


@pytest.mark.parametrize("function", ["Opened.__init__", "FileIO.write", "Path.touch", "a:b", ""])
def test_no_attribute_of_anything_is_named(folder: Path, function: str) -> None:
    for find in (workloads.load, train_functions.load):
        with pytest.raises(WorkloadError, match="expected the name of a public function"):
            find(f"planted.exports:{function}", {"file": RAN}, PREFIXES)
    assert "planted.exports" not in sys.modules
    assert folder.exists()


@pytest.mark.longer
@pytest.mark.parametrize("module", ["changed", "package.changed", "namespace.below.changed"])
def test_other_code_is_not_imported_and_neither_is_its_package(
    ledger: Ledger, places: Addresses, folder: Path, caplog: pytest.LogCaptureFixture, module: str
) -> None:
    body = GOOD + f"open({RAN!r}, 'w').close()\n"
    source = folder.joinpath(*module.split(".")).with_suffix(".py")
    source.parent.mkdir(exist_ok=True, parents=True)
    source.write_text(body)
    if module.startswith("package"):
        (source.parent / "__init__.py").write_text(body)
    put(ledger, "planted", {"factory": f"planted.{module}:line"}, "0" * 16)
    assert_refused(ledger, places, ["planted"])
    assert f"the code of planted.{module}:line is not what study 'planted' was sub" in caplog.text
    assert f"planted.{module}" not in sys.modules

    found = workloads.code_digest(f"planted.{module}:line", PREFIXES)
    assert found == digest(source), "the digest is that of the file that would be imported"
    workloads.load(f"planted.{module}:line", {}, PREFIXES)
    assert Path(RAN).exists()


def test_a_module_that_is_imported_from_elsewhere_is_refused(folder: Path) -> None:
    """The digest would be that of one file, and the code that of another."""
    (folder / "moving").mkdir()
    (folder / "moving" / "line.py").write_text(GOOD)
    (folder / "moved").mkdir()
    (folder / "moved" / "line.py").write_text(GOOD)
    (folder / "moving" / "__init__.py").write_text(
        "__path__ = [__path__[0].replace('moving', 'moved')]\n"
    )
    with pytest.raises(WorkloadError, match=r"expected planted\.moving\.line to be .*moved"):
        workloads.load("planted.moving.line:line", {}, PREFIXES)


def test_a_retraining_refuses_as_a_worker_does(ledger: Ledger, folder: Path) -> None:
    """Its factory is a name in the row, too."""
    from tuner.retraining import checking

    study = put(ledger, "planted", {}, "")
    table = study.spec.retrain.model_copy(
        update={"factory": "planted.exports:plain", "key_argument": "file"}
    )
    spec = study.spec.model_copy(update={"retrain": table})
    places: Any = None
    tune: Any = None
    with pytest.raises(WorkloadError, match=r"decorate it with @tuner\.workload"):
        checking.prepare(ledger, places, replace(study, spec=spec), RAN, PREFIXES, tune)
    assert not Path(RAN).exists()
    assert folder.exists()


REGISTERED = {
    "annotated": "def line() -> Workload:\n    return fitting()",
    "annotated by a text": "def line() -> 'Workload':\n    return fitting()",
    "annotated by the module": "def line() -> w.Workload:\n    return fitting()",
    "decorated": "@tuner.workload\ndef line():\n    return fitting()",
    "kept": "@tuner.workload\n@functools.cache\ndef line():\n    return fitting()",
    "kept and annotated": "@functools.cache\ndef line() -> Workload:\n    return fitting()",
    "of a class of its own": (
        "class Mine(Workload): ...\ndef line() -> Mine:\n    return fitting()"
    ),
}
TRAINS = {
    "named": "def line(trial): ...",
    "annotated": "def line(one: Trial): ...",
    "annotated by a text": "def line(one: 'Trial'): ...",
    "decorated": "@tuner.train_function\ndef line(one): ...",
}
HEAD = (
    "import functools\nimport tuner\nfrom training_here import fitting\n"
    "import tuner.training.workloads as w\nfrom tuner.training.trial import Trial\n"
    "from tuner.training.workloads import Workload\n"
)


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
@pytest.mark.parametrize("code", REGISTERED.values(), ids=REGISTERED)
def test_a_workload_is_registered(folder: Path, code: str, future: str) -> None:
    (folder / "mine.py").write_text(future + HEAD + code)
    if future and "class Mine" in code:  # a text has no bases
        with pytest.raises(WorkloadError, match=r"decorate it with @tuner\.workload"):
            workloads.load("planted.mine:line", {}, PREFIXES)
    else:
        assert workloads.load("planted.mine:line", {}, PREFIXES).data_name == "a line"


@pytest.mark.parametrize("code", TRAINS.values(), ids=TRAINS)
def test_a_train_function_is_registered(folder: Path, code: str) -> None:
    (folder / "mine.py").write_text(HEAD + code)
    assert train_functions.load("planted.mine:line", {}, PREFIXES).name == "planted.mine:line"


def test_a_registered_function_is_named_by_the_key_of_its_kind(folder: Path) -> None:
    (folder / "mine.py").write_text(HEAD + "@tuner.train_function\ndef line(trial): ...")
    with pytest.raises(WorkloadError, match=r"for \[workload\] train, and was named by factory"):
        workloads.load("planted.mine:line", {"trial": 1}, PREFIXES)


@pytest.mark.longer
def test_the_digest_by_path_is_that_of_submission(
    ledger: Ledger, places: Addresses, folder: Path
) -> None:
    """In a process that has imported nothing of the study."""
    study = put(ledger, "good", {}, "")
    for name in [name for name in sys.modules if name.split(".")[0] == "planted"]:
        del sys.modules[name]
    assert load_workload(study, PREFIXES).data_name == "a line"
    work_here(ledger, places)
    assert ledger.counts(study.id)["completed"] == 1
    assert folder.exists()
