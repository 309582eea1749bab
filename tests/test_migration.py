"""Databases of earlier schemas: every version must bring them up to its own and read them.

`tests/data/README.md` says how each file was made. They are never made anew.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import psycopg
import pytest
from processes import STUDY, end, prepare, start, trained_steps, tuner, until

from tuner.core.environment import is_gone
from tuner.ledger import Ledger, database, migrations
from tuner.ledger.database import Addresses, open_ledger, upgrade
from tuner.ledger.tables import HEAD
from tuner.operations.doctor import examine
from tuner.tracking.recorder import Recorder

DATA = Path(__file__).parent / "data"
VERSIONS = Path(migrations.__file__).parent / "versions"
FROZEN = sorted(path for path in DATA.glob("schema_*") if path.suffix in {".db", ".sql"})
FILES = [path for path in FROZEN if "postgresql" not in path.stem]


@pytest.fixture(
    params=[
        pytest.param(path, marks=() if path in FILES else pytest.mark.slow, id=path.stem)
        for path in FROZEN
    ]
)
def old(request: pytest.FixtureRequest, places: Addresses) -> Addresses:
    """Give a copy of a frozen database, as its version left it."""
    if request.param not in FILES:
        url = request.getfixturevalue("postgres").database()
        with psycopg.connect(url) as connection:
            connection.execute(request.param.read_text())
        return database.addresses({"TUNER_DATABASE_URL": url}, places.file.parent)
    assert places.file is not None
    if request.param.suffix == ".db":
        shutil.copy(request.param, places.file)
    else:
        with closing(sqlite3.connect(places.file)) as connection:
            connection.executescript(request.param.read_text())
    return places


@pytest.fixture
def upgraded(old: Addresses) -> Ledger:
    """Bring it up to this version's schema."""
    database.upgrade_ledger(old)
    return Ledger(open_ledger(old, create=False))


def test_there_is_a_database_of_every_schema_from_the_first_to_the_one_before_ours() -> None:
    found = {path.stem.split("_")[1] for path in FILES}
    revisions = {path.name[:4] for path in VERSIONS.glob("[0-9]*.py")}
    assert HEAD in revisions
    assert revisions - {HEAD} <= found
    assert any("postgresql" in path.stem for path in FROZEN)


@pytest.mark.longer
def test_a_study_is_read_as_it_was(upgraded: Ledger) -> None:
    study = upgraded.study("frozen")
    assert study.spec.study.name == "frozen"
    trials = upgraded.trials(study.id)
    assert [trial.state for trial in trials] == ["completed", "completed", "diverged", "running"]
    assert trials[0].value == pytest.approx(231551, rel=5e-6)
    assert trials[1].value == pytest.approx(86.17695, rel=5e-6)
    for trial in trials:
        curve = upgraded.curve(trial.id)
        assert curve.next_step == trial.steps
        assert set(curve.columns) >= {"train_loss", "lr", "grad_norm"}
    assert upgraded.best(study) == trials[1]


def test_its_interrupted_trial_can_be_taken_up(upgraded: Ledger) -> None:
    study = upgraded.study("frozen")
    claim = upgraded.claim(study.id, "somebody", {})
    assert claim is not None
    assert claim.trial.number == 3
    assert claim.checkpoint is not None
    assert claim.lease.token == 2


@pytest.mark.longer
def test_optuna_still_reads_it(upgraded: Ledger, old: Addresses) -> None:
    study = optuna.load_study(study_name="frozen", storage=old.optuna)
    assert [trial.state.name for trial in study.trials][:3] == ["COMPLETE", "COMPLETE", "PRUNED"]


@pytest.mark.slow
@pytest.mark.thorough
def test_it_can_be_projected_again_into_a_new_mlflow(old: Addresses) -> None:
    upgrade(old)
    engine = open_ledger(old, create=False)
    recorder = Recorder(engine, old)
    recorder.republish(Ledger(engine).study("frozen"))
    kinds = {problem.kind for problem in examine(engine, old)}
    assert kinds <= {"checkpoint"}  # the files of its checkpoints are not frozen with it


# --- workers of two versions


SERVICES = ("worker --until-idle --no-recorder", "recorder --once", "scheduler --once")


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("service", SERVICES)
def test_a_newer_service_does_not_start_beside_an_older_database(
    service: str, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "tuner.db")) as connection:
        connection.executescript(FILES[-1].read_text())
        before = list(connection.iterdump())
    done = tuner(tmp_path, *service.split())
    assert done.code == 4
    assert (
        f"this version of tuner needs {HEAD}; back it up, then run `tuner db upgrade`" in done.err
    )
    with closing(sqlite3.connect(tmp_path / "tuner.db")) as connection:
        assert list(connection.iterdump()) == before


@pytest.mark.slow
@pytest.mark.nightly
def test_older_services_end_once_a_newer_version_has_migrated_their_database(
    tmp_path: Path,
) -> None:
    """Without a word to them; what was trained is resumed by the next version's worker."""
    factory = 'factory = "tests.workloads:noisy"'
    slow = STUDY.replace(factory, f"{factory}\narguments = {{ step_seconds = 0.05 }}")
    folder = prepare(tmp_path, slow, steps="1000", trials="1", lr="0.01")
    assert tuner(folder, "submit", "study.toml").code == 0
    older = [
        start(folder, *line.split()) for line in ("worker --no-recorder", "recorder", "scheduler")
    ]
    until(lambda: trained_steps(folder) > 0, "a step")
    _set_revision(folder, "9999")
    for service in older:
        done = end(service, 60)
        assert done.code == 4, done.err
        said = done.err.splitlines()[-1]
        assert "was migrated to schema 9999 while this process, which needs" in said
        assert "Traceback" not in done.err
    _set_revision(folder, HEAD)
    ledger = Ledger(open_ledger(database.addresses({}, folder), create=False))
    study = ledger.study("small")
    (trial,) = ledger.trials(study.id)
    assert trial.state == "running"
    assert ledger.reap(is_gone) == 1
    claim = ledger.claim(study.id, "newer", {})
    assert claim is not None
    assert claim.checkpoint is not None


def _set_revision(folder: Path, revision: str) -> None:
    with closing(sqlite3.connect(folder / "tuner.db")) as connection, connection:
        connection.execute("UPDATE tuner_alembic_version SET version_num = ?", [revision])
