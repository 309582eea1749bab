"""What each command imports: what a person waits for before it begins."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers import claim, completed, draw, spec, submit
from processes import environment

from tuner.ledger import Ledger
from tuner.ledger.database import addresses, open_ledger
from tuner.operations import submit as operations

pytestmark = pytest.mark.slow

SCRIPT = """
import contextlib, io, json, sys

def imported():
    names = {name.partition(".")[0] for name in sys.modules} - {"tuner", "cython_runtime"}
    return sorted(one for one in names - sys.stdlib_module_names if not one.startswith("_"))

before = set(imported())
found = {}

def look(what):
    found[what] = sorted(set(imported()) - before)

import tuner
look("import tuner")
from tuner.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as ended:
            assert ended.code == 0, arguments
    look(" ".join(arguments))
print(json.dumps(found))
"""

TO_LOOK = {"annotated_types", "click", "cronsim", "filelock", "numpy", "pydantic", "pydantic_core",
           "rich", "safetensors", "sqlalchemy", "tenacity", "tornado", "typing_extensions",
           "typing_inspection"}  # fmt: skip
"""What reads the ledger and a study's file, prints, and shortens curves; tenacity imports tornado
where that is installed."""

TO_PUBLISH_AND_MODEL = {"alembic", "matplotlib", "mlflow", "pandas", "plotly", "scipy", "sklearn"}
"""What belongs to recorders, to reports, and to samplers that model losses."""


def imported_by(folder, *commands: str) -> dict[str, list[str]]:
    """Run commands one after the other in one process; return what each has loaded by its end."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([one.split() for one in commands])],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(open_ledger(addresses({}, tmp_path), create=True))
    yield made
    made.engine.dispose()


def test_looking_at_a_study_imports_neither_trainers_nor_samplers_nor_mlflow(ledger, tmp_path):
    study = submit(ledger)
    held = claim(ledger, study)
    draw(ledger, held)
    ledger.finish(held.lease, completed(1.0))
    names = ["--help", "worker --help", "best small", "studies", "status small"]
    found = imported_by(tmp_path, *names)
    assert found["import tuner"] == []
    assert found["--help"] == found["worker --help"] == ["click"]
    assert set(found["status small"]) <= TO_LOOK


def test_a_worker_imports_what_it_trains_and_draws_with(ledger, tmp_path):
    made = spec(
        workload={"factory": "tuner.examples.quadratic:parabola"},
        training={"steps": 10},
        budget={"trials": 1},
    )
    described = operations.prepare(made, ["tuner.examples."]).description
    study, _ = operations.submit(ledger, made, described)
    worker = "worker --study small --until-idle --no-recorder --allow tuner.examples."
    found = imported_by(tmp_path, worker)[worker]
    assert ledger.counts(study.id)["completed"] == 1
    assert not TO_PUBLISH_AND_MODEL & set(found)


def test_retraining_imports_what_saves_models_only_to_save_one():
    """`mlflow.pytorch` imports Lightning where that is installed: four seconds."""
    look = "import sys, tuner.operations.retrain; assert 'mlflow.pytorch' not in sys.modules"
    subprocess.run([sys.executable, "-c", look], check=True)
