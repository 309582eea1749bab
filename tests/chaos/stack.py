"""The stack that faults are tried on: PostgreSQL, MLflow behind a proxy, workers and recorders.

All are processes of their own. Workers and recorders that end are started again, as a service
manager would.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import warm
from postgres import Cluster, cluster, free_port
from processes import PREFIXES, environment, until
from team import answers

from chaos.checker import Findings, Left, compare, consistent, postgresql, read
from chaos.proxy import Proxy
from tuner.config import reading
from tuner.ledger import Ledger, database
from tuner.operations import submit as submission

Process = subprocess.Popen[bytes]
LEASE_SECONDS = 3.0
PATIENCE_SECONDS = 600.0
STUDY = """
[study]
name = "{name}"
seed = 11

[workload]
factory = "tests.workloads:paced"

[training]
steps = 60
batch_size = 8
evaluate_every = 10
dtype = "float64"
checkpoint_seconds = 0.3
trainer = "{trainer}"
slots = 2

[space]
lr = {{ low = 1e-3, high = 10.0 }}
schedule = ["constant", "cosine"]
optimizer = [{{ name = "sgd", momentum = 0.9 }}, "adamw"]

[search]
sampler = "random"
pruner = {{ name = "patient", wraps = "none", patience = 3 }}

[budget]
trials = {trials}
retries = {{ stale = 100 }}
"""
"""A study whose every trial depends on its number alone: what is drawn, and who is pruned."""


@dataclass
class Member:
    """A place in the crew, and the process that has it now."""

    role: str  # worker, recorder
    arm: Callable[[], dict[str, str]]  # gives what the next process there is told
    process: Process
    log: Path


@dataclass
class Stack:
    """What is up, and how to disturb it and look at it."""

    folder: Path
    cluster: Cluster
    url: str
    trials: int
    workers: int
    recorders: int = 2
    warm: bool = False  # processes start without the seconds of their imports
    disk: Path | None = None  # a small one, for checkpoints and spilled rows
    proxy: Proxy | None = None
    crew: list[Member] = field(default_factory=list)
    starts: int = 0
    kept: bool = False  # its folder, to be looked at
    whole: dict[str, Left] = field(default_factory=dict)  # the undisturbed study, by trainer
    _server: subprocess.Popen[bytes] | None = None

    # --- processes

    @property
    def environment(self) -> dict[str, str]:
        tracking = (
            {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.proxy.port}"} if self.proxy else {}
        )
        folders = {"TUNER_CHECKPOINTS": "checkpoints", "TUNER_SPILL": "spill"}
        disk = {name: str(self.disk / one) for name, one in folders.items()} if self.disk else {}
        return {
            "TUNER_DATABASE_URL": self.url,
            "TUNER_LEASE_SECONDS": str(LEASE_SECONDS),
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
            "OMP_NUM_THREADS": "1",
            **tracking,
            **disk,
        }

    def tuner(self, *arguments: str, **env: str) -> int:
        """Run `tuner` to its end; give its exit code."""
        return self.begin(*arguments, **env).wait(PATIENCE_SECONDS)

    def begin(self, *arguments: str, **env: str) -> Process:
        """Start `tuner`."""
        return self._start(arguments, env, self.folder / "commands.log")

    def _start(self, arguments: tuple[str, ...], env: dict[str, str], log: Path) -> Process:
        env = environment(self.folder, {**self.environment, **env})
        python = warm.python() if self.warm else sys.executable
        with log.open("ab") as file:
            return subprocess.Popen(
                [python, "-m", "tuner", *arguments],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def alone(self, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `tuner` on the files of a folder, beside the stack."""
        with folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tuner", *arguments],
                cwd=folder,
                env=environment(folder, {"OMP_NUM_THREADS": "1"}),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def join(self, role: str, arm: Callable[[], dict[str, str]] = dict) -> Member:
        """Start a worker or a recorder, and keep one in its place."""
        log = self.folder / f"{role}-{self.starts}.log"
        member = Member(role, arm, self._member(role, arm(), log), log)
        self.crew.append(member)
        return member

    def _member(self, role: str, env: dict[str, str], log: Path) -> Process:
        self.starts += 1
        beside = ("--no-recorder",) if role == "worker" else ()
        return self._start((role, *beside, "--log", "json"), env, log)

    def fill(self) -> None:
        """Have as many workers and recorders as there should be, with nothing armed."""
        for role, wanted in (("worker", self.workers), ("recorder", self.recorders)):
            for _ in range(wanted - len(self.of(role))):
                self.join(role)

    def of(self, role: str) -> list[Member]:
        return [member for member in self.crew if member.role == role]

    def dismiss(self, *members: Member, by: signal.Signals = signal.SIGTERM) -> list[int]:
        """End members of the crew for good; give their exit codes."""
        for member in members:
            self.crew.remove(member)
            member.process.send_signal(by)
            member.process.send_signal(signal.SIGCONT)
        return [member.process.wait(PATIENCE_SECONDS) for member in members]

    def tend(self) -> list[Member]:
        """Start again whoever has ended; give the places that were empty."""
        ended = [member for member in self.crew if member.process.poll() is not None]
        for member in ended:
            member.process = self._member(member.role, member.arm(), member.log)
        return ended

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Keep the crew going until something holds."""

        def holds() -> bool:
            if condition():
                return True
            self.tend()
            return False

        until(holds, what, PATIENCE_SECONDS, every=0.25)  # each look connects anew

    def pause(self, seconds: float) -> None:
        """Keep the crew going for a time."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, "the time")

    def said(self, text: str) -> int:
        """Count the lines of all logs that hold a text."""
        return sum(
            line.count(text)
            for file in self.folder.glob("*.log")
            for line in file.open(errors="replace")
        )

    # --- MLflow

    def start_mlflow(self) -> None:
        """Start MLflow's server, behind the proxy."""
        port = free_port() if self.proxy is None else self.proxy.target
        tracking = self.url + "?options=-csearch_path%3Dmlflow"
        with (self.folder / "mlflow-server.txt").open("ab") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
                 "--port", str(port), "--workers", "1",
                 "--backend-store-uri", tracking.replace("postgresql:", "postgresql+psycopg:"),
                 "--artifacts-destination", str(self.folder / "artifacts")],
                cwd=self.folder,
                env=environment(self.folder, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.until(lambda: answers(f"http://127.0.0.1:{port}"), "MLflow's server")
        self.proxy = self.proxy or Proxy(port)

    def kill_mlflow(self) -> None:
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()

    def close(self) -> None:
        """Kill what is up."""
        for member in self.crew:
            member.process.kill()
            member.process.wait()
        if self.proxy is not None:
            self.kill_mlflow()
            self.proxy.close()

    # --- studies

    def submit(self, name: str, trainer: str) -> None:
        """Put the study into the database under a name of its own; no command, to save seconds."""
        spec = reading.load(self.write(name, trainer))
        ledger = Ledger(
            database.ledger_engine(database.addresses(self.environment, self.folder).ledger)
        )
        submission.submit(ledger, spec, submission.prepare(spec, PREFIXES).description)
        ledger.engine.dispose()

    def write(self, name: str, trainer: str) -> Path:
        """Write the study's file."""
        file = self.folder / f"{name}.toml"
        file.write_text(STUDY.format(name=name, trainer=trainer, trials=self.trials))
        return file

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Make every step slow meanwhile, so that a study is not over before its fault is."""
        file = self.folder / "slow"
        file.touch()
        try:
            yield
        finally:
            file.unlink()

    def count(self, query: str) -> int:
        """Ask the database for a number, past all of the service's code."""
        with postgresql(self.url) as ask:
            return int(ask(query)[0][0] or 0)

    def text(self, query: str) -> str:
        """Ask the database for a word."""
        with postgresql(self.url) as ask:
            return str(ask(query)[0][0] or "")

    def trained(self, name: str) -> int:
        """Count the rows of the ledger's curves."""
        return self.count(
            "SELECT sum(steps) FROM tuner.tuner_trials t JOIN tuner.tuner_studies s "
            f"ON s.id = t.study_id WHERE name = '{name}'"
        )

    def is_done(self, name: str) -> bool:
        """Tell whether all trials have ended, and are published to their ends."""
        return (
            self.count(
                "SELECT count(*) FROM tuner.tuner_published_trials p JOIN tuner.tuner_trials t "
                "ON t.id = p.trial_id JOIN tuner.tuner_studies s ON s.id = t.study_id "
                f"WHERE name = '{name}' AND final"
            )
            == 2 * self.trials
            and self.count(  # and the study's own run as it is now
                "SELECT count(*) FROM tuner.tuner_published_studies p JOIN tuner.tuner_studies s "
                f"ON s.id = p.study_id WHERE name = '{name}' AND target = 'mlflow' "
                "AND p.revision = s.revision"
            )
            == 1
        )

    def running(self, name: str) -> dict[int, int]:
        """Give the trials that have not ended, and how many steps each has."""
        with postgresql(self.url) as ask:
            return dict(
                ask(
                    "SELECT t.number, t.steps FROM tuner.tuner_trials t JOIN tuner.tuner_studies s "
                    f"ON s.id = t.study_id WHERE name = '{name}' AND t.state = 'running'"
                )
            )

    def points(self, name: str) -> int:
        """Count what MLflow has of a study."""
        return self.count(
            "SELECT count(*) FROM mlflow.metrics JOIN mlflow.runs USING (run_uuid) "
            f"JOIN mlflow.experiments e USING (experiment_id) WHERE e.name = '{name}'"
        )

    def judge(self, name: str, trainer: str) -> tuple[Left, Findings]:
        """Say what is left of a study that is done, and what is wrong with that."""
        with postgresql(self.url) as ask:
            found = read(ask, name)
        assert found is not None, f"there is no study {name}"
        if trainer not in self.whole:
            self.whole[trainer] = found
            return found, consistent(found)
        return found, compare(found, self.whole[trainer])


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a small disk in a folder; root alone may."""
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tuner-chaos", folder], check=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def stack(
    trials: int,
    workers: int,
    *,
    recorders: int = 2,
    warm: bool = False,
    disk_megabytes: int | None = None,
) -> Iterator[Stack]:
    """Bring a stack up, and down again; its folder stays where the block fails."""
    folder = Path(tempfile.mkdtemp(prefix="tuner-chaos-"))
    with ExitStack() as ending:
        server = ending.enter_context(cluster())
        made = Stack(folder, server, server.database(), trials, workers, recorders, warm)
        if disk_megabytes is not None:
            made.disk = ending.enter_context(small_disk(folder / "disk", disk_megabytes))
        ending.callback(made.close)
        assert made.tuner("db", "upgrade") == 0, f"see {folder}/commands.log"
        made.start_mlflow()
        yield made
    if not made.kept:
        shutil.rmtree(folder)
