"""A team's stack of real processes: PostgreSQL, an MLflow server, workers and recorders."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil
import warm
from postgres import Cluster, free_port, rows
from processes import Done, bits, end, environment, start, until

from tuner.ledger import Ledger
from tuner.ledger import database as storage
from tuner.ledger.database import Addresses
from tuner.operations import doctor


@dataclass
class Team:
    """One database, one folder of checkpoints, one MLflow server, and who works there."""

    folder: Path
    cluster: Cluster
    url: str
    mlflow: str | None = None  # its address; None: runs go into the database directly
    more: Mapping[str, str] = field(default_factory=dict)
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Give what every process of the team is told."""
        tracking = {"MLFLOW_TRACKING_URI": self.mlflow} if self.mlflow else {}
        return {"TUNER_DATABASE_URL": self.url, **tracking, **self.more}

    @property
    def places(self) -> Addresses:
        return storage.addresses(self.environment, self.folder)

    @property
    def database(self) -> str:
        return self.url.rpartition("/")[2]

    def start(self, *arguments: str, cold: bool = False, **env: str) -> subprocess.Popen[str]:
        """Start `tuner` for the team; `close` ends what is left of it."""
        process = start(self.folder, *arguments, env={**self.environment, **env}, cold=cold)
        self._started.append(process)
        return process

    def tuner(self, *arguments: str, **env: str) -> Done:
        """Run `tuner` to its end."""
        return end(self.start(*arguments, **env))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the database, past all of our code."""
        return rows(self.url, query)

    def close(self) -> None:
        """Kill what still runs, with its recorders."""
        for process in self._started:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.communicate()

    # --- what is left

    def assert_whole(self, name: str, trials: int) -> None:
        """Assert that every trial is in all three places once, with its whole curve."""
        engine = storage.ledger_engine(self.places.ledger)
        assert doctor.examine(engine, self.places) == []
        ledger = Ledger(engine)
        study = ledger.study(name)
        ours = ledger.trials(study.id)
        assert [trial.number for trial in ours] == list(range(trials))
        assert study.reserved == study.limit == trials, "the budget is exact"
        assert not any(attempt.live for attempt in ledger.attempts(study.id))
        for trial in ours:
            assert trial.state != "running"
            assert ledger.curve(trial.id).next_step == trial.steps
        engine.dispose()
        theirs = optuna_trials(self.url, name)
        assert [trial.number for trial in theirs] == list(range(trials))
        assert all(trial.state.is_finished() for trial in theirs)
        runs = Counter(self.rows(RUNS.format(name=name)))
        assert set(runs) == {("study",), *((str(number),) for number in range(trials))}
        assert set(runs.values()) == {1}, "one run a trial"
        assert self.rows(DOUBLED) == [], "no step twice"

    def curves(self, name: str) -> dict[int, Any]:
        """Give what each trial measured, bit by bit, with its parameters and outcome."""
        engine = storage.ledger_engine(self.places.ledger)
        ledger = Ledger(engine)
        found = {
            trial.number: (
                trial.params,
                trial.state,
                trial.reports,
                bits(ledger.curve(trial.id)),
            )
            for trial in ledger.trials(ledger.study(name).id)
        }
        engine.dispose()
        return found


RUNS = """
SELECT trial.value FROM mlflow.runs JOIN mlflow.experiments USING (experiment_id)
JOIN mlflow.tags trial ON trial.run_uuid = runs.run_uuid AND trial.key = 'tuner.trial'
WHERE experiments.name = '{name}' AND runs.lifecycle_stage = 'active'
"""
DOUBLED = """
SELECT run_uuid, key, step FROM mlflow.metrics GROUP BY 1, 2, 3 HAVING count(*) > 1
"""


def optuna_trials(url: str, name: str) -> list[optuna.trial.FrozenTrial]:
    """Read the trials as anybody would, without our code."""
    loaded = optuna.storages.RDBStorage(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        return optuna.load_study(study_name=name, storage=loaded).trials
    finally:
        loaded.engine.dispose()


@contextmanager
def team(folder: Path, cluster: Cluster, url: str, **more: str) -> Iterator[Team]:
    """Give a team whose runs go into its database directly; end its processes after."""
    made = Team(folder, cluster, url, more=more)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def mlflow_server(
    folder: Path, tracking: str, *more: str, port: int | None = None, **env: str
) -> Iterator[str]:
    """Run a real MLflow server on a database, with `more` arguments; return its address."""
    command = ["mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--backend-store-uri", tracking]
    command += ["--artifacts-destination", str(folder / "artifacts"), *more]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with _server(folder, command, "/health", quiet | env, port) as address:
        yield address


@contextmanager
def dashboard(folder: Path, database: str) -> Iterator[str]:
    """Run a real optuna-dashboard on a database; give its address."""
    command = ["optuna_dashboard._cli", database, "--host", "127.0.0.1"]
    with _server(folder, command, "/dashboard/", {}) as address:
        yield address


@contextmanager
def _server(
    folder: Path, command: list[str], health: str, env: Mapping[str, str], port: int | None = None
) -> Iterator[str]:
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    with (folder / f"{command[0]}.log").open("w") as log:
        process = subprocess.Popen(
            [warm.python(), "-m", *command, "--port", str(port)],
            cwd=folder,
            env=environment(folder, env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            until(lambda: answers(address, health), command[0], 180)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pid in _listening(port):  # a child of a warm process is in another group
                os.kill(pid, signal.SIGKILL)
            until(lambda: not _listening(port), f"the end of {command[0]}")


def _listening(port: int) -> set[int]:
    """Return the ids of the processes that listen on a port of this machine."""
    return {
        one.pid
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid
    }


ACCOUNTS = """
[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = {user}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""
WITH_ACCOUNTS = ("--app-name", "basic-auth")
"""What a server is started with that asks for a login."""


def accounts(folder: Path, user: str, password: str) -> dict[str, str]:
    """Write who administers a server; give what its environment says then."""
    file = folder / "users.ini"
    file.write_text(ACCOUNTS.format(folder=folder, user=user, password=password))
    return {"MLFLOW_AUTH_CONFIG_PATH": str(file), "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret"}


def answers(address: str, page: str = "/health") -> bool:
    """Tell whether a server is there, MLflow's or one with another `page`."""
    try:
        with urllib.request.urlopen(f"{address}{page}", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
