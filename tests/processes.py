"""Real processes in folders of their own: start `tuner` there, wait for it, read what it left."""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import warm
from training_here import PREFIXES, train

from tuner.config import reading
from tuner.core.curves import Chunk
from tuner.ledger import Ledger, Reader, database
from tuner.operations import submit
from tuner.tracking.recorder import record

ROOT = Path(__file__).parents[1]
_started: list[tuple[subprocess.Popen[str], Path]] = []
STUDY = """
[study]
name = "small"
seed = 3

[workload]
factory = "tests.workloads:noisy"

[training]
steps = 40
batch_size = 8
evaluate_every = 5
dtype = "float64"
checkpoint_seconds = 0.001  # at every look, so that there is always one to go on from

[space]
lr = { low = 1e-3, high = 10.0 }  # so wide that some diverge
schedule = ["constant", "cosine"]
optimizer = [{ name = "sgd", momentum = 0.9 }, "adamw"]

[search]
sampler = { name = "tpe", startup_trials = 3, start = "random" }
pruner = { name = "asha", min_steps = 5, reduction_factor = 2 }

[budget]
trials = 8
"""


@functools.cache
def _template() -> Path:
    """Make databases of this version once, to be copied: a first start takes three seconds."""
    folder = Path(tempfile.mkdtemp(prefix="tuner-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    places = database.addresses({}, folder)
    database.upgrade_ledger(places)
    database.upgrade_tracking(places)
    return folder


def prepare(folder: Path, study: str = STUDY, **changes: str) -> Path:
    """Put fresh databases and a study file into a folder; each change replaces a line's value."""
    folder.mkdir(exist_ok=True)
    for name in ("tuner.db", "mlflow.db"):
        shutil.copy(_template() / name, folder / name)
    return write_study(folder, study, **changes)


def copy(source: Path, folder: Path) -> Path:
    """Copy what a study left, with what SQLite has not yet moved from its log into the file."""
    for name in ("tuner.db", "mlflow.db"):
        with (
            closing(sqlite3.connect(source / name)) as ours,
            closing(sqlite3.connect(folder / name)) as theirs,
        ):
            ours.backup(theirs)
    shutil.copy(source / "study.toml", folder / "study.toml")
    return folder


def write_study(folder: Path, study: str = STUDY, **changes: str) -> Path:
    """Write a study file; `steps="7"` replaces the line `steps = ...`."""
    lines = study.splitlines()
    for key, value in changes.items():
        index = next(n for n, line in enumerate(lines) if line.startswith(f"{key} ="))
        lines[index] = f"{key} = {value}"
    (folder / "study.toml").write_text("\n".join(lines) + "\n")
    return folder


def environment(folder: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give a process our code, and nothing that a person or another test has set."""
    ours = ("TUNER_", "MLFLOW_", "COLUMNS", "OMP_", "PYTHON")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    own = {"PYTHONPATH": str(ROOT), "TUNER_ALLOW": " ".join(PREFIXES), "TUNER_CONFIG": ""}
    return inherited | own | dict(more or {})


@dataclass(frozen=True)
class Done:
    """How a process ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Read the one JSON object that standard output must be."""
        assert self.out.endswith("\n"), self.err
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


def start(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, cold: bool = False
) -> subprocess.Popen[str]:
    """Start `tuner` in a process group of its own, as a terminal does.

    A cold one is started by the real interpreter, which takes seconds: for tests that look at the
    process itself, where a warm one has a stand-in before it that passes signals on.
    """
    started = subprocess.Popen(
        [sys.executable if cold else warm.python(), "-m", "tuner", *arguments],
        cwd=folder,
        env=environment(folder, env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _started.append((started, folder))
    return started


@contextmanager
def ended() -> Iterator[None]:
    """Kill what the body has started and did not wait for, as a test that fails does."""
    before = len(_started)
    yield
    for process, folder in _started[before:]:
        if process.returncode is None:
            for each in (process, *processes_in(folder)):
                with suppress(psutil.Error):
                    each.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
    del _started[before:]


def end(process: subprocess.Popen[str], seconds: float = 240) -> Done:
    """Wait for a process, and for its recorder, which shares its standard error."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Done(process.returncode, out, err)


def tuner(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Done:
    """Run `tuner` in a folder to its end."""
    return end(start(folder, *arguments, env=env))


def train_here(folder: Path) -> None:
    """Do what `tuner run` does, in this process: submit, train, publish."""
    places = database.addresses({}, folder)
    spec = reading.load(folder / "study.toml")
    described = submit.prepare(spec, PREFIXES).description
    ledger = Ledger(database.open_ledger(places, create=True))
    study, _ = submit.submit(ledger, spec, described)
    train(ledger, places, study)
    closing = threading.Event()
    closing.set()
    record(ledger.engine, places, names=[study.name], closing=closing)
    ledger.engine.dispose()


def until(
    condition: Callable[[], object], what: str, seconds: float = 60, every: float = 0.005
) -> None:
    """Wait for a condition; the one place where tests wait for something that tells nobody."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(every)


def processes_in(folder: Path) -> list[psutil.Process]:
    """Find the live processes that work in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            dead = process.status() == psutil.STATUS_ZOMBIE
            if not dead and Path(process.cwd()) == folder.resolve():
                found.append(process)
        except psutil.Error:
            continue
    return found


def stopped(folder: Path) -> list[psutil.Process]:
    """Find the processes in a folder that a signal has stopped."""

    def is_stopped(process: psutil.Process) -> bool:
        try:
            return process.status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return False

    return [one for one in processes_in(folder) if is_stopped(one)]


# --- what a run left


def reader(folder: Path) -> Reader:
    return Reader(database.ledger_engine(database.addresses({}, folder).ledger))


def rows(folder: Path, query: str, file: str = "tuner.db") -> list[tuple[Any, ...]]:
    """Ask SQLite, past all of our code."""
    with closing(sqlite3.connect(folder / file, timeout=60)) as connection:
        return connection.execute(query).fetchall()


def change(folder: Path, statement: str, file: str = "tuner.db") -> int:
    """Change a database behind everybody's back; give how many rows changed."""
    with closing(sqlite3.connect(folder / file, timeout=60)) as connection, connection:
        return connection.execute(statement).rowcount


def trained_steps(folder: Path) -> int:
    """Count the rows of all curves that are committed."""
    return int(rows(folder, "SELECT coalesce(sum(steps), 0) FROM tuner_trials")[0][0])


def bits(chunk: Chunk) -> dict[str, bytes]:
    """Give all numbers of a curve, to be compared bit by bit; times differ between runs."""
    return {
        name: np.ascontiguousarray(values).tobytes()
        for name, values in (*chunk.columns.items(), *chunk.metrics.items())
    } | {"eval_steps": chunk.eval_steps.tobytes()}


@dataclass(frozen=True)
class Left:
    """All that a run left of a study, in a form to be compared; without times and ids."""

    ledger: dict[int, Any]
    optuna: dict[int, Any]
    mlflow: dict[str, Any]


TRIAL = ("params", "state", "reason", "value", "stopped_step", "steps", "reports")


def left(folder: Path, name: str = "small") -> Left:
    """Read what is left of a study in all three places."""
    ledger = reader(folder)
    study = ledger.study(name)
    found = {}
    for trial in ledger.trials(study.id):
        fields = {field: getattr(trial, field) for field in TRIAL}
        found[trial.number] = fields | {"curve": bits(ledger.curve(trial.id))}
    ledger.engine.dispose()
    return Left(found, optuna_left(folder, name), mlflow_left(folder, name))


def optuna_left(folder: Path, name: str = "small") -> dict[int, Any]:
    """Read Optuna's trials as anybody would, without our code."""
    loaded = optuna.storages.RDBStorage(f"sqlite:///{folder}/tuner.db")
    try:
        trials = optuna.load_study(study_name=name, storage=loaded).trials
    finally:
        loaded.engine.dispose()
    found = {
        trial.number: (
            trial.state.name,
            trial.params,
            trial.values,
            trial.intermediate_values,
            trial.user_attrs,
        )
        for trial in trials
    }
    assert len(found) == len(trials), "a number was given twice"
    return found


RUN_IDS = """
SELECT trial.value, run.run_uuid, run.status, run.lifecycle_stage
FROM runs run
JOIN tags trial ON trial.run_uuid = run.run_uuid AND trial.key = 'tuner.trial'
JOIN experiments USING (experiment_id)
WHERE run.lifecycle_stage = 'active' AND experiments.name = '{name}'
"""
VARYING = ("mlflow.parentRunId", "tuner.host")
ADDRESS = re.compile(
    r"(?P<run>(?<=%22)[0-9a-f]{32}|\b[0-9a-f]{32}\b)"
    r"|(?P<experiment>(?<=#/experiments/)\d+|(?<=&experiments=%5B%22)\d+)"
)
"""Summaries link to runs and to their experiment, whose numbers are as they come."""
REPORT = re.compile(r" · \[report\]\([^)]*\)|\n\n!\[[^]]*\]\([^)]*\)")
"""A summary links to a report, and shows its picture, while MLflow has its files."""


def lasting(tag: str) -> str:
    """Give what is the same of a tag whenever its run was made."""
    return ADDRESS.sub(lambda found: found.lastgroup or "", REPORT.sub("", tag))


def mlflow_left(folder: Path, name: str = "small", file: str = "mlflow.db") -> dict[str, Any]:
    """Read MLflow's runs from its tables: status, params, tags, and the points of all metrics."""
    found: dict[str, Any] = {}
    for key, run_id, status, _ in rows(folder, RUN_IDS.format(name=name.replace("'", "''")), file):
        assert key not in found, f"two runs of {key}"

        def of_run(what: str, run_id: str = run_id) -> list[tuple[Any, ...]]:
            return rows(folder, f"{what} WHERE run_uuid = '{run_id}'", file)

        tags = dict(of_run("SELECT key, value FROM tags"))
        found[key] = {
            "status": status,
            "params": dict(of_run("SELECT key, value FROM params")),
            "tags": {k: lasting(v) for k, v in tags.items() if k not in VARYING},
            "points": sorted(of_run("SELECT key, step, value, is_nan FROM metrics")),
        }
    return found


def assert_whole(folder: Path, reference: Left | None = None, name: str = "small") -> None:
    """Assert that every trial is in the ledger, Optuna and MLflow once, and as in the reference."""
    from tuner.operations import doctor

    places = database.addresses({}, folder)
    engine = database.ledger_engine(places.ledger)
    assert doctor.examine(engine, places) == []
    engine.dispose()
    found = left(folder, name)
    numbers = set(found.ledger)
    assert set(found.optuna) == numbers
    assert set(found.mlflow) == {"study", *map(str, numbers)}
    if reference is not None:
        assert found.ledger == reference.ledger
        assert found.optuna == reference.optuna
        assert found.mlflow == reference.mlflow


@functools.cache
def reference() -> Left:
    """Give what an uninterrupted run of `STUDY` leaves."""
    folder = prepare(Path(tempfile.mkdtemp(prefix="tuner-reference-")))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    done = tuner(folder, "run", "study.toml", "--json")
    assert done.code == 0, done.err
    return left(folder)
