"""Every command: its help, its place in the README, its JSON, its exit codes and its messages."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from processes import (
    ROOT,
    STUDY,
    change,
    copy,
    end,
    environment,
    prepare,
    processes_in,
    reader,
    start,
    train_here,
    tuner,
    until,
    write_study,
)

from tuner.cli.app import cli
from tuner.cli.base import SECTIONS

README = (ROOT / "README.md").read_text()


def commands(group: click.Group = cli, prefix: tuple[str, ...] = ()) -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, (*prefix, name))
        else:
            found[" ".join((*prefix, name))] = command
    return found


COMMANDS = commands()


# --- help and documentation


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_explained(name):
    command = COMMANDS[name]
    assert command.help, "a docstring"
    assert re.fullmatch(r"[A-Z].*\.", command.get_short_help_str(1000).strip()), command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.help.endswith("."), parameter.name
    assert "--json" in {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name):
    assert re.search(rf"`tuner {name}\b", README), f"`tuner {name}` is missing from README.md"


def test_every_variable_of_the_environment_is_in_the_readme():
    sources = "".join(path.read_text() for path in (ROOT / "tuner").rglob("*.py"))
    named = set(re.findall(r"\b(?:TUNER|MLFLOW_TRACKING)_[A-Z_]+\b", sources))
    ours = {name for name in named if "FAILPOINTS" not in name}
    assert {name for name in ours if f"`{name}`" not in README} == set()


def test_the_help_lists_every_command_once_by_section():
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(cli.commands)
    shown = CliRunner().invoke(cli, ["--help"]).stdout
    assert [line for line in shown.splitlines() if line in {f"{one}:" for one in SECTIONS}] == [
        f"{section}:" for section in SECTIONS
    ]


# --- at once, without the libraries


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["--help", "--version", "run --help", "db urls", "schema"])
def test_what_needs_no_library_loads_none(arguments, tmp_path):
    script = (
        "import sys\nfrom tuner.cli import main\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    code = ended.code\n"
        "heavy = {'torch', 'optuna', 'mlflow', 'sklearn'} & set(sys.modules)\n"
        "print(sorted(heavy), code, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments.split()],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "[] 0\n"
    assert done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_importing_the_command_line_changes_no_setting():
    script = (
        "import logging, os, sys\nbefore = dict(os.environ)\nimport tuner.cli\n"
        "assert 'numpy' not in sys.modules, 'it reads OMP_NUM_THREADS, which main sets'\n"
        "import tuner.cli.app, tuner.api, tuner.core.failpoints\n"
        "assert dict(os.environ) == before\n"
        "assert not logging.root.handlers and not logging.getLogger('urllib3').level\n"
    )
    env = environment(ROOT, {"TUNER_FAILPOINTS": "no place"})
    subprocess.run([sys.executable, "-c", script], env=env, cwd=ROOT, check=True)


# --- refusals

WORKLOADS = {
    "not allowed": ("os:getcwd", "expected a module whose name begins with"),
    "no such module": ("tests.nothing:here", "there is no module tests.nothing"),
    "no such function": ("tests.workloads:nothing", "expected a function nothing"),
    "raises": ("tests.workloads:not_buildable", "raised OSError: no such data"),
    "returns something else": ("tests.workloads:not_a_workload", "got str"),
    "other arguments": ("studies.digits:mlp", "unexpected keyword"),
}
FILES = {
    "not TOML": ("[study\n", "study.toml"),
    "unknown key": (STUDY.replace("seed = 3", "sed = 3"), "sed"),
    "reversed range": (STUDY.replace("low = 1e-3", "low = 1e3"), "[space.lr] low"),
    "unknown metric": (STUDY.replace("seed = 3", 'metric = "accuracy"'), "accuracy"),
    "empty": ("", "[study]"),
}


def assert_refused(done, code: int, *said: str) -> None:
    assert done.code == code, done.err
    assert done.out == "", "errors are told on standard error"
    for words in said:
        assert words in done.err
    assert "Traceback" not in done.err
    assert done.err.startswith(("Error: ", "Usage: ")), done.err
    assert done.err.endswith("\n")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_a_bad_study_file_is_refused_and_nothing_is_created(file, tmp_path):
    content, said = file
    command = "submit" if content == "" else "run"  # they read it alike
    (tmp_path / "study.toml").write_text(content)
    assert_refused(tuner(tmp_path, command, "study.toml", "--json"), 2, said)
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_a_bad_workload_is_refused_and_nothing_is_created(workload, tmp_path):
    factory, said = workload
    arguments = "\narguments = { colour = 1 }" if "digits" in factory else ""
    write_study(tmp_path, factory=f'"{factory}"{arguments}')
    assert_refused(tuner(tmp_path, "run", "study.toml"), 2, said)
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("run nothing.toml", "nothing.toml"),
        ("run", "Missing argument 'FILE'"),
        ("run study.toml --set budget", "budget"),
        ("run study.toml --set budget.trials=none", "budget"),
        ("run study.toml --frobnicate", "No such option"),
        ("frobnicate", "No such command"),
    ],
)
def test_bad_usage_is_refused_and_nothing_is_created(arguments, said, tmp_path):
    write_study(tmp_path)
    assert_refused(tuner(tmp_path, *arguments.split()), 2, said)
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


def garbage(folder: Path) -> str:
    (folder / "garbage.db").write_bytes(b"this is no database, " * 100)
    return f"sqlite:///{folder}/garbage.db"


def newer(folder: Path) -> str:
    prepare(folder)
    change(folder, "UPDATE tuner_alembic_version SET version_num = '9999'")
    return f"sqlite:///{folder}/tuner.db"


def read_only(folder: Path) -> str:
    prepare(folder)
    return f"sqlite:///file:{folder}/tuner.db?mode=ro&uri=true"


DATABASES = {
    "no folder": (lambda folder: f"sqlite:///{folder}/none/tuner.db", 4, "there is no folder"),
    "garbage": (garbage, 4, "cannot be used: file is not a database"),
    "newer": (newer, 4, "newer than this version of tuner"),
    "read-only": (read_only, 4, "cannot be used: attempt to write a readonly database"),
    "not there": (lambda _: "postgresql://me:secret@127.0.0.1:1/tuner", 4, "Connection refused"),
    "another kind": (lambda _: "mysql://me:secret@db/tuner", 2, "names mysql"),
    "no URL": (lambda _: "tuner.db", 2, "not a database URL"),
}


@pytest.mark.slow
@pytest.mark.parametrize("database", DATABASES.values(), ids=DATABASES)
def test_a_database_that_cannot_be_used_is_named(database, tmp_path):
    make, code, said = database
    url = {"TUNER_DATABASE_URL": make(tmp_path)}
    write_study(tmp_path)
    done = tuner(tmp_path, "run", "study.toml", env=url)
    assert_refused(done, code, said)
    assert "secret" not in done.err


@pytest.mark.slow
def test_where_there_is_no_database_only_run_and_submit_make_one(tmp_path):
    for arguments in ("status x", "doctor", "worker", "recorder"):
        assert_refused(tuner(tmp_path, *arguments.split()), 4, "there is no ledger at")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_tracking_file_that_is_garbage_is_named_and_the_trials_are_kept(tmp_path):
    prepare(tmp_path, trials="1", lr="0.01")
    (tmp_path / "mlflow.db").write_bytes(b"this is no database, " * 100)
    done = tuner(tmp_path, "run", "study.toml", "--json")
    assert done.code == 4, done.err
    assert done.json["trials"]["completed"] == 1
    assert "MLflow at sqlite:///" in done.err
    assert "Traceback" not in done.err


# --- each command, with --json and without


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = prepare(tmp_path_factory.mktemp("trained"), trials="4")
    train_here(folder)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return copy(trained, tmp_path)


TRIALS = ["completed", "pruned", "diverged", "failed", "cancelled", "running", "waiting"]


@pytest.mark.slow
def test_looking(folder):
    status = tuner(folder, "status", "small", "--json").json
    assert {"study", "state", "trials", "budget", "best", "workers"} <= set(status)
    assert (status["version"], status["title"], status["imported"]) == (1, "small", 0)
    assert status["reason"] is None
    assert list(status["trials"]) == TRIALS
    assert list(status["best"]) == ["number", "value", "params", "run_id"]
    assert status["budget"] == {"trials": 4, "reserved": 4}
    assert (status["state"], status["workers"]) == ("ended", [])
    assert status.pop("spend")["trials"] == 4
    details = ("unreadable", "notes", "quota_reached")
    assert [status.pop(one) for one in details] == [[], [], None]
    assert tuner(folder, "studies", "--json").json == {"studies": [status]}
    best = tuner(folder, "best", "small", "--json").json
    assert best == {"study": "small", "best": status["best"]}

    shown = tuner(folder, "best", "small").out
    assert re.fullmatch(r"Best: val_loss \S+ in trial \d with lr \S+, .*\.\n", shown)
    assert shown.strip() in tuner(folder, "status", "small").out
    assert tuner(folder, "studies").out.startswith("small: ended, ")
    for command in ("status", "best"):
        refused = tuner(folder, command, "nothing")
        assert_refused(refused, 2, "there is no study 'nothing'; studies here: small")


@pytest.mark.slow
def test_where_nothing_is_trained(tmp_path):
    folder = prepare(tmp_path)
    assert tuner(folder, "studies").out == "No studies yet; `tuner run FILE` creates one.\n"
    submitted = tuner(folder, "submit", "study.toml", "--json")
    assert submitted.json == {
        "study": "small",
        "version": 1,
        "created": True,
        "changed": [],
        "budget": 8,
    }
    assert "exists already, 8 trials. No change." in tuner(folder, "submit", "study.toml").out
    more = tuner(folder, "submit", "study.toml", "--set", "retrain.promote='manual'").out
    assert "exists already, 8 trials. Changed: [retrain]." in more
    best = tuner(folder, "best", "small", "--json")
    assert (best.code, best.json) == (3, {"study": "small", "best": None})
    assert tuner(folder, "status", "small", "--json").json["state"] == "open"
    worker = tuner(folder, "worker", "--until-idle", "--study", "small", "--json")
    assert worker.code == 0, worker.err
    assert sum(worker.json["studies"]["small"].values()) == 8
    assert tuner(folder, "recorder", "--once", "--json").json == {"published": ["small"]}


@pytest.mark.slow
def test_the_database(tmp_path):
    done = tuner(tmp_path, "db", "upgrade", "--json")
    assert done.code == 0, done.err
    shown = done.json["upgraded"]
    assert list(shown) == ["ledger", "optuna", "mlflow", "checkpoints"]
    assert shown["ledger"] == f"sqlite:///{tmp_path}/tuner.db"
    assert shown["mlflow"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert {"tuner.db", "mlflow.db"} <= {path.name for path in tmp_path.iterdir()}
    assert "is up to date" in tuner(tmp_path, "db", "upgrade").out
    assert tuner(tmp_path, "db", "urls", "--json").json == shown
    lines = tuner(tmp_path, "db", "urls").out.splitlines()
    assert [line.split() for line in lines] == [list(item) for item in shown.items()]
    modes = [
        sqlite3.connect(tmp_path / name).execute("PRAGMA journal_mode").fetchone()[0]
        for name in ("tuner.db", "mlflow.db")
    ]
    assert modes[0] == "wal"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["db urls", "db urls --json", "db upgrade --json"])
def test_no_password_is_shown(command, tmp_path):
    url = {"MLFLOW_TRACKING_URI": "http://user:secret@127.0.0.1:1"}
    done = tuner(tmp_path, *command.split(), env=url)
    assert done.code == 0, done.err
    assert "secret" not in done.out + done.err
    assert "http://user:***@127.0.0.1:1" in done.out


@pytest.mark.slow
def test_the_schema_is_one_of_study_files(tmp_path):
    found = tuner(tmp_path, "schema", "--json").json
    assert {"study", "workload", "training", "space", "search", "guard", "budget"} <= set(
        found["properties"]
    )
    assert json.loads(tuner(tmp_path, "schema").out) == found


@pytest.mark.slow
def test_the_ui_serves_until_it_is_stop_on_signals(folder):
    process = start(folder, "ui", "--port", "0", "--json")
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]

        def healthy() -> bool:
            assert process.poll() is None
            try:
                return urllib.request.urlopen(f"{url}/health", timeout=5).read() == b"OK"
            except OSError:
                return False

        until(healthy, "the UI", seconds=120)
        with urllib.request.urlopen(f"{url}/", timeout=30) as page:
            assert b"<title>MLflow</title>" in page.read()
        asked = urllib.request.Request(
            f"{url}/api/2.0/mlflow/experiments/search",
            json.dumps({"max_results": 10}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            names = [one["name"] for one in json.load(answer)["experiments"]]
        assert "small" in names
    finally:
        process.terminate()
        done = end(process)
    assert done.code in {0, 130}
    assert done.out == "", "one JSON object on standard output, and nothing after it"
    until(lambda: not processes_in(folder), "MLflow's server to end")


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(folder):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_refused(tuner(folder, "ui", "--port", str(port)), 4, f"port {port} is taken")


@pytest.mark.slow
def test_a_worker_refuses_a_study_whose_code_is_not_its_own(tmp_path):
    folder = prepare(tmp_path, factory='"mine:line"')
    source = (
        "from tests import workloads\n"
        "def line() -> workloads.Workload:\n    return workloads.line()\n"
    )
    (folder / "mine.py").write_text(source)
    assert tuner(folder, "submit", "study.toml", "--allow", "mine").code == 0
    (folder / "mine.py").write_text(source + "# another version\n")
    refused = tuner(folder, "worker", "--study", "small", "--allow", "mine", "--until-idle")
    assert refused.code == 2
    assert "the code of mine:line is not what study 'small' was submitted with" in refused.err
    assert "Traceback" not in refused.err
    again = tuner(folder, "submit", "study.toml", "--set", "budget.trials=99", "--allow", "mine")
    assert again.code == 2
    assert "the code of mine:line is not what study 'small' was submitted with" in again.err
    assert reader(folder).study("small").limit == 8
    idle = tuner(folder, "worker", "--allow", "mine", "--until-idle")
    assert idle.code == 0, idle.err
    assert "study small is left to other workers" in idle.err
    until(lambda: not processes_in(folder), "its recorder to end")
