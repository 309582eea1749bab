"""`import tuner`: light, with exactly the names that it says, and usable from anywhere."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import training_here
import warm
from sqlalchemy import event
from sqlalchemy.pool import Pool
from training_here import PREFIXES, submitted, train

import tuner
from tuner import api
from tuner.core import processes
from tuner.core.errors import UsageError
from tuner.operations import context
from tuner.worker.loading import PreparedWorkload, load_workload

FEW_STEPS = {"training.steps": 12, "training.batch_size": 4, "training.evaluate_every": 4}
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
        "Budget",
        "NotFoundError",
        "Study",
        "StudyFileError",
        "TunerError",
        "UnavailableError",
        "UsageError",
        "current_trial",
        "floats",
        "ints",
        "load",
        "log",
        "run",
        "studies",
        "train_function",
        "workload",
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


@pytest.fixture
def opened() -> Iterator[list[object]]:
    """The connections to databases that were opened; closed ones are replaced by None."""
    found: list[object] = []

    def connect(connection: object, _record: object) -> None:
        found.append(connection)

    def close(connection: object, _record: object) -> None:
        found[:] = [None if one is connection else one for one in found]

    event.listen(Pool, "connect", connect)
    event.listen(Pool, "close", close)
    yield found
    event.remove(Pool, "connect", connect)
    event.remove(Pool, "close", close)


def test_a_study_opens_its_database_once_and_closes_it(study, opened):
    with tuner.load("line") as one:
        one.status()
        one.best()
        one.trials()
        assert len(opened) == 1
        assert opened[0] is not None
    assert opened == [None]
    one.best()  # opens it again
    assert len(opened) == 2
    del one
    assert opened == [None, None]
    assert tuner.studies() == [study]
    assert opened == [None] * 3


@pytest.mark.slow
def test_a_workload_is_built_once(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", warm.python())  # of its recorder
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "calls"
    factory = f'"tests.training_here:counted"\narguments = {{ log = "{log}" }}'
    changed = STUDY.replace('"tuner.examples.house_prices:line"', factory)
    (tmp_path / "line.toml").write_text(changed)
    study = tuner.run("line.toml", overrides=FEW_STEPS, allow=PREFIXES, progress=False)
    study.close()
    assert study.status()["trials"]["completed"] == 2
    assert log.read_text() == "called\n"
    known = context.open_ledger().study("line")
    other = PreparedWorkload(
        table=known.spec.workload,
        space=known.spec.space,
        prefixes=PREFIXES,
        workload=training_here.fitting(),
        description={"code": "other", "data": "other"},
    )
    with pytest.raises(tuner.UsageError, match="not what study 'line' was submitted with"):
        load_workload(known, PREFIXES, other)


def test_it_writes_files(study, tmp_path):
    files = study.export(tmp_path / "out")
    assert sorted(files) == ["curves", "trials"]
    assert all(file.exists() for file in files.values())


@pytest.mark.longer
def test_a_notebook_shows_it_safely(ledger, places, study):
    name = "<script>alert(1)</script>"
    train(ledger, places, submitted(ledger, study={"name": name}))
    shown = tuner.load(name)._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert shown.count("<tr>") == 5
    assert "Best: val_loss" in study._repr_html_()


@pytest.mark.longer
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
        with processes.stop_on_signals("ending") as stop:
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
        "import threading, tuner, warnings\n"
        "warnings.simplefilter('error', UserWarning)\n"
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
        [warm.python(), "-m", "script", str(script)],
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


def test_addresses_are_those_of_the_moment_and_a_study_keeps_its_own(study, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert study.status()["state"] == "ended"
    with pytest.raises(tuner.UnavailableError, match="no ledger"):
        tuner.load("line")
    assert context.addresses().ledger.endswith("elsewhere/tuner.db")


@pytest.mark.parametrize("given", [{"study": {"name": "mine"}}, None, 3, b"study.toml"])
def test_what_is_no_path_of_a_study_file_is_said_to_be_none(given):
    kind = type(given).__name__
    with pytest.raises(UsageError, match=f"path of a study file, got a {kind}; write the study"):
        tuner.run(given)
