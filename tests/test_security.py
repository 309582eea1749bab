"""The threat model of docs/security.md: its lines name tests that there are."""

from __future__ import annotations

import ast
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import postgres
import psutil
import psycopg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from helpers import claim, drawn, submit
from helpers import rows as rows_of
from processes import (
    ROOT,
    STUDY,
    end,
    environment,
    prepare,
    start,
    tuner,
    until,
    write_study,
)

from tuner.cli.app import cli
from tuner.config import reading
from tuner.core.errors import UnreadableError
from tuner.ledger import CheckpointRecord, Ledger
from tuner.ledger import database as storage
from tuner.ledger.tables import chunks
from tuner.operations import submit as submission
from tuner.search import Search
from tuner.training import checkpoint
from tuner.worker import work

PAGE = ROOT / "docs" / "security.md"
PLANTED = "pl4nt3d"
TRAP = "trapped"


ASSETS = ["code", "studies", "records", "secrets", "files", "service", "readers"]


def test_the_threat_model_has_every_asset_for_every_attacker():
    """A line names tests, or says what does not hold, and nothing else."""
    sections = PAGE.read_text().split("\n## ")[1:]
    attackers = [one for one in sections if "| asset |" in one]
    assert len(attackers) >= 6
    for section in attackers:
        lines = [line.strip("| ").split(" | ") for line in section.splitlines() if "|" in line][2:]
        found = [asset for asset, *_ in lines]
        assert list(dict.fromkeys(found)) == ASSETS, section.partition("\n")[0]
        for asset, says, *tests in lines:
            assert bool(tests) != says.startswith("Does not hold: "), (asset, says)


@pytest.mark.longer
def test_every_test_that_the_threat_model_names_is_there():
    named = re.findall(r"`((?:\w+/)?test_\w+\.py)::(test_\w+)`", PAGE.read_text())
    assert len(named) == PAGE.read_text().count("::")
    for file, name in sorted(set(named)):
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert name in {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}, file


# --- passwords

REFUSED = f"postgresql://me:{PLANTED}@127.0.0.1:1/team"
NOWHERE = f"postgresql://me:{PLANTED}@nowhere.invalid/team"
MLFLOW = f"http://me:{PLANTED}@127.0.0.1:1"
FAILING = {
    "no server": ("worker", {"TUNER_DATABASE_URL": REFUSED}, 4),
    "no server, again": ("db upgrade", {"TUNER_DATABASE_URL": REFUSED}, 4),
    "no server, as JSON": ("doctor --json", {"TUNER_DATABASE_URL": REFUSED}, 4),
    "no such server": ("recorder --once", {"TUNER_DATABASE_URL": NOWHERE}, 4),
    "not encoded": ("studies", {"TUNER_DATABASE_URL": f"postgresql://me:a/{PLANTED}:b@h:x/t"}, 2),
    "no MLflow": ("run study.toml --json", {"MLFLOW_TRACKING_URI": MLFLOW}, 4),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(("command", "env", "code"), FAILING.values(), ids=FAILING)
def test_no_output_has_a_password(tmp_path, command, env, code):
    prepare(tmp_path, trials="1")
    done = tuner(tmp_path, *command.split(), env=env)
    assert done.code == code, done.err
    assert PLANTED not in done.out + done.err
    assert "***" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raise error", "threading.Thread(target=fail).start()"])
def test_a_traceback_that_nobody_foresaw_has_no_password(how, tmp_path):
    code = f"""
import threading
from tuner.observability import logs
logs.plain()
error = RuntimeError("cannot open {REFUSED}")
def fail():
    try:
        raise ValueError("{REFUSED} again")
    except ValueError as cause:
        raise error from cause
{how}
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment(tmp_path),
    )
    assert "RuntimeError: cannot open postgresql://me:***@127.0.0.1:1/team" in done.stderr
    assert PLANTED not in done.stderr.replace(code, "").replace(how, "")


@pytest.mark.slow
@pytest.mark.thorough
def test_a_whole_run_leaves_no_password(tmp_path):
    """With a wrong one refused, the right one in use, trials that raise, and a server's log."""
    with postgres.cluster() as server:
        url = server.database()
        server.execute(f"CREATE ROLE planter LOGIN SUPERUSER PASSWORD '{PLANTED}'")
        server.require_passwords()
        places = storage.addresses({"TUNER_DATABASE_URL": url}, tmp_path)
        storage.upgrade(places)
        name = url.rpartition("/")[2]
        right = {"TUNER_DATABASE_URL": server.url(name, "planter", PLANTED)}
        wrong = {"TUNER_DATABASE_URL": server.url(name, "planter", f"{PLANTED}-and-more")}
        write_study(tmp_path, STUDY.replace(":noisy", ":raising"), trials="2")
        refused = tuner(tmp_path, "run", "study.toml", env=wrong)
        assert refused.code == 4
        assert "password authentication failed" in refused.err
        run = start(tmp_path, "run", "study.toml", "--workers", "2", env=right, cold=True)
        titles = set()

        until(
            lambda: titles.update(_titles(psutil.Process(run.pid))) or run.poll() is not None,
            "the end",
            seconds=240,
        )
        done = end(run)
        assert done.code == 3, done.err
        dump = [postgres.binaries() / "pg_dump", "-d", url]
        tables = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    assert "raised" in tables
    assert any("worker" in title for title in titles)
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    outputs = refused.out + refused.err + done.out + done.err
    for where in (tables, outputs, *titles):
        assert PLANTED not in where
    assert PLANTED.encode() not in files


def _titles(process) -> set[str]:

    found = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            found.add(" ".join(one.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_a_login_is_made_and_its_password_changed(tmp_path):
    """Whatever the name and the password are; and the server's log has neither password."""
    name, first, second = "wor\"k%er's", f"{PLANTED}'%s\"", f"{PLANTED}2"
    with postgres.cluster(
        log_statement="all", log_min_messages="info", logging_collector="on"
    ) as server:
        places = storage.addresses({"TUNER_DATABASE_URL": server.database()}, tmp_path)
        database = places.optuna.rpartition("/")[2]
        server.require_passwords()
        for password, before in ((first, None), (second, first)):
            login = storage.Login(name=name, role="tuner_worker", password=password)
            assert storage.upgrade(places, [login]) is None
            url = server.url(database, name, password)
            assert postgres.rows(url, "SELECT count(*) FROM tuner.tuner_trials") == [(0,)]
            if before:
                with pytest.raises(
                    psycopg.OperationalError, match="password authentication failed"
                ):
                    postgres.rows(server.url(database, name, before), "SELECT 1")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            postgres.rows(url, "DROP TABLE tuner.tuner_trials")
        logs = "".join(path.read_text() for path in (server.folder / "data" / "log").iterdir())
    assert "ALTER ROLE" in logs
    assert PLANTED not in logs


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("worker", "expected NAME=FILE, got 'worker'"),
        ("worker=nothing", "cannot read a password from nothing"),
        ("worker=empty", "expected a password in empty, got nothing"),
        ("worker=secret", "SQLite knows no logins"),
    ],
)
def test_a_login_that_cannot_be_made_is_refused(given, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n")
    Path("secret").write_text(PLANTED)
    done = CliRunner().invoke(cli, ["db", "upgrade", "--worker", given])
    assert said in str(done.exception)
    assert PLANTED not in done.output


# --- code


class Trap:
    """What runs code where it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path(TRAP),)


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """Work in an empty folder, in which nothing may be trapped."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not Path(TRAP).exists()


@pytest.mark.slow
def test_a_planted_checkpoint_runs_nothing(trap, caplog):
    """Put into the folder and the ledger, with its digest: the trial begins anew."""
    folder = prepare(trap / "here", trials="1", steps="10", pruner='"none"')
    places = storage.addresses({}, folder)
    ledger = Ledger(storage.open_ledger(places, create=False))
    found = reading.load(folder / "study.toml")
    study, _ = submission.submit(ledger, found, submission.prepare(found, ("tests.",)).description)
    held, _ = drawn(ledger, study, Search(study, ledger))
    digest = checkpoint.write(places.checkpoints, f"{study.id}/0/0-1.pt", pickle.dumps(Trap()))
    record = CheckpointRecord(study_id=study.id, trial=0, step=0, attempt=1, digest=digest)
    ledger.save_checkpoint(held.lease, record)
    ledger.release(held.lease, "interrupted", "planted")
    never = threading.Event()
    work(ledger, places, names=[], prefixes=("tests.",), stop=never, until_idle=True)
    assert [one.ending for one in ledger.attempts(study.id)] == ["interrupted", "finished"]
    assert "its checkpoint is unusable" in caplog.text
    ledger.engine.dispose()


def test_a_planted_curve_runs_nothing(trap, ledger):
    held = claim(ledger, submit(ledger))
    ledger.append(held.lease, rows_of(0, 10))
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(sa.update(chunks).values(data=pickle.dumps(Trap())))
    with pytest.raises(UnreadableError):
        ledger.curve(held.trial.id)


PICKLED = """
import pickle
from pathlib import Path
import mlflow
class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[str]) -> list[str]:
        return model_input
class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trapped"),)
mlflow.pyfunc.save_model("model", python_model=Model(), pip_requirements=[])
(pickled,) = Path("model").glob("*.pkl")
pickled.write_bytes(pickle.dumps(Trap()))
mlflow.pyfunc.load_model("model")
"""


@pytest.mark.slow
def test_a_pickled_model_is_not_loaded(trap):
    """With what the stack sets; without it MLflow runs whatever the file says."""
    stack = (ROOT / "docker-compose.yml").read_text()
    assert 'MLFLOW_ALLOW_PICKLE_DESERIALIZATION: "false"' in stack
    done = subprocess.run(
        [sys.executable, "-c", PICKLED],
        capture_output=True,
        text=True,
        check=False,
        env=environment(trap, {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}),
    )
    assert done.returncode == 1
    assert "MlflowException" in done.stderr
    assert "pickle" in done.stderr.lower()
