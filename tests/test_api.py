"""`import tuner`: light, with exactly the names that it says, and usable from anywhere."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from training_here import PREFIXES, submitted, train

import tuner
from tuner import api
from tuner.core import processes
from tuner.core.errors import UsageError
from tuner.operations import context

HEAVY = ("torch", "optuna", "mlflow", "pandas", "pyarrow", "scipy", "sqlalchemy", "numpy")
STUDY = """
[study]
name = "line"
[workload]
factory = "tuner.examples.house_prices:line"
[training]
steps = 10
batch_size = "full"
dtype = "float64"
[space]
lr = [0.01, 0.1]
schedule = "constant"
optimizer = "sgd"
[search]
sampler = "grid"
pruner = "none"
[budget]
trials = 2
"""


@pytest.fixture
def study(ledger, places, monkeypatch, tmp_path):
    """A trained study in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("TUNER_DATABASE_URL", "MLFLOW_TRACKING_URI", "TUNER_CHECKPOINTS"):
        monkeypatch.delenv(name, raising=False)
    train(ledger, places, submitted(ledger))
    return tuner.load("line")


def test_importing_it_imports_nothing_heavy():
    code = f"import sys, tuner; dir(tuner); print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_these():
    assert tuner.__all__ == [
        "NotFoundError",
        "Study",
        "StudyFileError",
        "TunerError",
        "UnavailableError",
        "UsageError",
        "load",
        "run",
        "studies",
    ]
    assert set(tuner.__all__) <= set(dir(tuner))
    for name in tuner.__all__:
        value = getattr(tuner, name)
        assert value.__name__ == name
        assert value.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tuner.nothing


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(tuner.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    names = [a.name for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names]
    assert sorted(names) == sorted(tuner.__all__)
    assert sorted(tuner._HOMES) == sorted(tuner.__all__)


@pytest.mark.slow
def test_a_study_answers(study):
    assert study.status()["state"] == "ended"
    best = study.best()
    assert best is not None
    assert best["params"]["lr"] == 0.3
    assert study.trials().set_index("number").loc[best["number"], "value"] == best["value"]
    wide = study.curves(2).pivot(index="step", columns="metric", values="value")
    assert set(wide.columns) == {"train_loss", "lr", "grad_norm", "val_loss"}
    assert study.rerun(2, allow=PREFIXES).equal
    assert study.spec.budget.trials == 4
    assert tuner.studies() == [study]
    assert eval(repr(study), {"tuner": tuner}) == study
    assert len({study, tuner.load("line")}) == 1


def test_it_is_governed(study):
    assert study.pause()["state"] == "paused"
    assert study.resume()["state"] == "ended"
    assert study.stop("enough")["reason"] == "Stopped by hand: enough."


def test_it_writes_files(study, tmp_path):
    files = study.export(tmp_path / "out")
    assert sorted(files) == ["curves", "trials"]
    assert all(file.exists() for file in files.values())


def test_a_notebook_shows_it_safely(ledger, places, study):
    name = "<script>alert(1)</script>"
    train(ledger, places, submitted(ledger, study={"name": name}))
    shown = tuner.load(name)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert shown.count("<tr>") == 5
    assert "Best: val_loss" in study._repr_html_()


def test_a_study_that_is_not_there(study):
    with pytest.raises(tuner.NotFoundError, match="no study 'nothing'"):
        tuner.load("nothing")


@pytest.mark.parametrize(
    "value", [1, 1.5, 1e-300, True, 'a "quoted" \\ \n name', [1, 2.5], {"low": 0.1, "high": 1.0}]
)
def test_overrides_say_in_python_what_set_says(value):
    (text,) = api._texts({"a.b": value})
    assert tomllib.loads(f"x = {text.partition('=')[2]}")["x"] == value
    assert api._texts(["a.b=1"]) == api._texts("a.b=1") == ["a.b=1"]


def test_only_the_main_thread_minds_signals():
    found = []

    def elsewhere():
        with processes.told_to_stop("ending") as stop:
            found.append(stop.is_set())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False]


@pytest.mark.slow
def test_a_script_needs_no_main_guard_and_may_run_in_any_thread(tmp_path):
    (tmp_path / "line.toml").write_text(STUDY)
    script = tmp_path / "script.py"
    script.write_text(
        "import threading, tuner\n"
        "found = []\n"
        "def work():\n"
        "    overrides = {'study.name': 'thread', 'budget.trials': 1}\n"
        "    found.append(tuner.run('line.toml', overrides=overrides, progress=False))\n"
        "thread = threading.Thread(target=work)\n"
        "thread.start()\n"
        "thread.join()\n"
        "study = tuner.run('line.toml')\n"
        "print(study.best()['params']['lr'], len(found[0].trials()), len(tuner.studies()))\n"
        "found = study.confirm(top=2, seeds=2)\n"
        "print(found.verdict, found.trials.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "0.1 1 2" in lines
    assert any(line.startswith("trial 0 of 2: lr 0.01") for line in lines)
    assert lines[-1].endswith("line confirm")


def test_addresses_are_those_of_the_moment(study, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(tuner.UnavailableError, match="no ledger"):
        study.status()
    assert context.places().ledger.endswith("elsewhere/tuner.db")


@pytest.mark.parametrize("given", [{"study": {"name": "mine"}}, None, 3, b"study.toml"])
def test_what_is_no_path_of_a_study_file_is_said_to_be_none(given):
    kind = type(given).__name__
    with pytest.raises(UsageError, match=f"path of a study file, got a {kind}; write the study"):
        tuner.run(given)
