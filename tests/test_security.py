"""The threat model of docs/security.md: each of its lines names the tests that hold it."""

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
from helpers import claim, draw, drawn, spec, submit
from helpers import rows as rows_of
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name
from processes import (
    ROOT,
    STUDY,
    assert_whole,
    end,
    environment,
    prepare,
    start,
    train_here,
    tuner,
    until,
    write_study,
)
from pydantic import ValidationError

from tuner import failure, storage, studyfile, submission, texts
from tuner.cli import cli
from tuner.ledger import CheckpointRecord, Ledger
from tuner.ledger.tables import chunks
from tuner.outcome import FAILED, Outcome
from tuner.search import Search
from tuner.training import checkpoint
from tuner.worker import work

PAGE = ROOT / "docs" / "security.md"
PLANTED = "pl4nt3d"
TRAP = "trapped"


def test_every_line_of_the_threat_model_names_tests_that_there_are():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    for line in lines:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", line.rpartition(" | ")[2])
        assert named, line
        for file, name in named:
            tree = ast.parse((ROOT / "tests" / file).read_text())
            assert name in {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}


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
@pytest.mark.parametrize(("command", "env", "code"), FAILING.values(), ids=FAILING)
def test_no_output_has_a_password(tmp_path, command, env, code):
    prepare(tmp_path, trials="1")
    done = tuner(tmp_path, *command.split(), env=env)
    assert done.code == code, done.err
    assert PLANTED not in done.out + done.err
    assert "***" in done.err


@pytest.mark.parametrize("how", ["raise error", "threading.Thread(target=fail).start()"])
def test_a_traceback_that_nobody_foresaw_has_no_password(how, tmp_path):
    code = f"""
import threading
from tuner import logs
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
        run = start(tmp_path, "run", "study.toml", "--workers", "2", env=right)
        titles = set()

        until(
            lambda: titles.update(_titles(psutil.Process(run.pid))) or run.poll() is not None,
            "the end",
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
            assert storage.upgrade(places, {name: password}) is None
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


# --- names

HOSTILE = {
    "a path": "../x",
    "the folder above": "..",
    "absolute": "/etc/passwd",
    "quotes": """a'b"c`d\\e""",
    "SQL": "x'; DROP TABLE tuner_trials; --",
    "patterns": "%s {0} %(a)s :a ? *",
    "HTML": "<script>alert(1)</script>",
    "markup": "[bold red]x[/] [/x] [link=file:///]",
    "an option": "--help",
    "emoji": "🚀👩‍👩‍👧",
    "an escape": "\x1b[2J\x1b]0;owned\x07",
    "C1 control": "\x9b2J",
    "NUL": "a\0b",
    "a line's end": "a\nb",
    "from right to left": "a\u202ecod.exe",
    "half a character": "\ud800",
    "250 characters": "n" * 250,
    "251 characters": "n" * 251,
}
REFUSED_NAMES = {
    "an escape", "C1 control", "NUL", "a line's end", "from right to left", "half a character",
    "251 characters", "emoji",
}  # fmt: skip
"""emoji: the joiner in this one is invisible, and two names that look alike are two studies."""


@pytest.mark.parametrize("case", HOSTILE)
def test_a_name_is_refused_or_accepted_and_said_in_printable_words(case):
    try:
        spec(study={"name": HOSTILE[case]})
    except ValidationError:
        assert case in REFUSED_NAMES
    else:
        assert case not in REFUSED_NAMES


@pytest.mark.slow
def test_a_name_is_refused_or_harmless(tmp_path, monkeypatch):
    """All accepted ones side by side, trained and published: whole, and nothing is elsewhere."""
    outside = tmp_path / "outside"
    folder = outside / "here"
    outside.mkdir()
    accepted = [name for case, name in HOSTILE.items() if case not in REFUSED_NAMES]
    prepare(folder, trials="1", steps="10", pruner='"none"')
    (folder / "study.toml").rename(folder / "template.toml")
    template = (folder / "template.toml").read_text()
    for name in accepted:
        text = template.replace('"small"', repr_toml(name))
        (folder / "study.toml").write_text(text)
        train_here(folder)
    for name in accepted:
        assert_whole(folder, name=name)
    monkeypatch.chdir(folder)
    for name in accepted:
        for command in (["status"], ["status", "--json"], ["best"], ["export", "--to", "out"]):
            done = CliRunner().invoke(cli, [*command, "--", name])
            assert done.exit_code == 0, done.output
            assert texts.is_readable(done.output)
    assert len(list((folder / "out").iterdir())) == 2 * len(accepted)
    assert [path.name for path in outside.iterdir()] == ["here"]


def repr_toml(text: str) -> str:
    """Write a basic string of TOML."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(st.text(max_size=20) | st.text(alphabet="./:- a\\", min_size=1, max_size=6))
@example("../x")
@example("a/../b")
@example("/a")
@example("a//b")
@example("")
@example("<script>")
@example("n" * 251)
def test_a_metric_is_named_as_mlflow_allows(name):
    """What we let a loop report, MLflow takes; else its run would never be published."""
    if texts.is_metric_name(name):
        _validate_metric_name(name)
        assert texts.is_readable(name)
        assert ".." not in name.split("/")


@pytest.mark.parametrize("text", ["\0", "\x1b[2J", "a\rb", "\x9b", "\ud800", "\u202e"])
@pytest.mark.parametrize("where", ["description", "an argument", "arguments"])
def test_free_text_has_no_control_characters(text, where):
    tables = {
        "description": {"study": {"description": text}},
        "an argument": {"workload": {"arguments": {"a": text}}},
        "arguments": {"workload": {"arguments": {"a": ["b", text]}}},
    }
    with pytest.raises(ValidationError):
        spec(**tables[where])
    plain = spec(study={"description": "Two\nlines,\ta <tab> and größe."})
    assert plain.study.description.startswith("Two\n")


@given(st.text(max_size=50))
@example("\0")
@example("\x1b[2J")
@example("\ud800")
def test_what_an_exception_says_is_not_obeyed(text):
    def fail():
        raise ValueError(text)

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - it says whatever is drawn
        fail()
    said = failure.sentence(caught.value)
    assert said.isprintable()
    assert said.encode()
    assert failure.cause(said) == ("ValueError", f"test_security.py:{_line_of_raise()}")


def _line_of_raise() -> int:
    lines = Path(__file__).read_text().splitlines()
    return lines.index("        raise ValueError(text)") + 1


def test_a_reason_in_the_database_is_not_obeyed(tmp_path, monkeypatch):
    """Whoever writes it there past us."""
    prepare(tmp_path)
    ledger = Ledger(storage.ledger_engine(storage.addresses({}, tmp_path).ledger))
    held = claim(ledger, submit(ledger))
    draw(ledger, held)
    ledger.finish(held.lease, Outcome(kind=FAILED, reason="\x1b[2J\x1b]0;owned\x07 [red]x[/red]"))
    ledger.engine.dispose()
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["status", "small"])
    assert "\\x1b[2J" in done.output
    assert texts.is_readable(done.output)


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


def test_a_planted_checkpoint_runs_nothing(trap, caplog):
    """Put into the folder and the ledger, with its digest: the trial begins anew."""
    folder = prepare(trap / "here", trials="1", steps="10", pruner='"none"')
    places = storage.addresses({}, folder)
    ledger = Ledger(storage.open_ledger(places, create=False))
    found = studyfile.load(folder / "study.toml")
    study, _ = submission.submit(ledger, found, submission.prepare(found, ("tests.",)))
    held, _ = drawn(ledger, study, Search(study, ledger))
    digest = checkpoint.write(places.checkpoints / "planted.pt", pickle.dumps(Trap()))
    record = CheckpointRecord(step=0, path="planted.pt", digest=digest)
    ledger.save_checkpoint(held.lease, record)
    ledger.release(held.lease, "interrupted", "planted")
    never = threading.Event()
    work(ledger, places.checkpoints, names=[], prefixes=("tests.",), stop=never, until_idle=True)
    assert [one.ending for one in ledger.attempts(study.id)] == ["interrupted", "finished"]
    assert "its checkpoint is unusable" in caplog.text
    ledger.engine.dispose()


def test_a_planted_curve_runs_nothing(trap, ledger):
    held = claim(ledger, submit(ledger))
    ledger.append(held.lease, rows_of(0, 10))
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(sa.update(chunks).values(data=pickle.dumps(Trap())))
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says, it is refused
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
