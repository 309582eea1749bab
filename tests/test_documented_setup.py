"""docs/team.md and docs/operations.md, word by word: their blocks run as they are.

Only places are replaced: hosts and ports, and the folder `/srv`.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import postgres
import psycopg
import pytest
import warm
from compose import ROOT, Stack, here, put
from postgres import binaries, free_port, rows
from processes import environment, tuner, until
from team import answers, optuna_trials

from tuner.ledger import Reader
from tuner.ledger.database import ledger_engine

TEAM, OPERATIONS = (ROOT / "docs" / name for name in ("team.md", "operations.md"))

RUN = {
    "export TUNER_DATABASE_URL=postgresql://owner:password@db/tuning  # later": "the team",
    "psql --host db": "the team",
    "deploy/make-secrets anna": "the team",
    "sed ": "the team",
    "export MLFLOW_TRACKING_URI=http://mlflow:5000 MLFLOW_TRACKING_USERNAME=admin": "the team",
    "export TUNER_DATABASE_URL=postgresql://recorder@db": "the team",
    "export TUNER_DATABASE_URL=postgresql://worker@db": "the team",
    "tuner config": "the team",
    "CREATE ROLE anna": "the team",
    "tuner pause": "the team",
    "export TUNER_PROJECT=vision": "the team",
    "tuner project vision": "the team",
    "tuner studies --spend": "the team",
    "export PYTHONPATH": "two people's code",
    "deploy/make-secrets  ": "the stack",
    "docker compose run --rm administrator": "the stack",
    "docker compose run --rm worker tuner timetable": "the stack",
    "docker compose exec -T postgres pg_dump": "the stack",
    "docker compose up --detach --wait postgres": "the stack",
}
"""The blocks that run here, by how they begin."""
ELSEWHERE = {
    "services:": "an override of docker-compose.yml, merged in test_compose.py",
    "pip install 'tuner-lr[buckets]'": "needs a bucket; test_buckets.py has a server of S3's kind",
    "[notify]": "tables of a study file, read in test_documented_snippets.py",
    "[budget]": "tables of a study file, read in test_documented_snippets.py",
    "pool_mode": "pgbouncer's settings, with which pooler.py starts it",
    "git pull": "needs Docker, to build an image; test_migration.py upgrades from each schema",
}
"""The blocks that cannot run here, and why."""
NEEDS_DOCKER = ("docker run --rm -v tuner_mlflow", "docker compose build")
"""Lines that cannot run here: they are about volumes and images of Docker."""
SERVICES = (
    "tuner worker ",
    "tuner recorder ",
    "deploy/entrypoint tuner ",
    "deploy/entrypoint mlflow ",
)


def blocks() -> list[str]:
    """Return all blocks of both pages."""
    found = (re.findall(r"^```\w+\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
             for page in (TEAM, OPERATIONS))  # fmt: skip
    return [block for page in found for block in page]


def block(beginning: str) -> str:
    """Return the one block that begins so."""
    (found,) = (one for one in blocks() if one.startswith(beginning))
    return found


def commands(block: str) -> list[str]:
    """Return the commands of a block, without comments."""
    joined = block.replace("\\\n", " ").splitlines()
    return [line for one in joined if (line := re.sub(r"(^|\s+)# .*", "", one).strip())]


def test_every_block_runs_here_or_it_is_said_why_not():
    for beginning in (*RUN, *ELSEWHERE):
        assert block(beginning), beginning
    left = [one for one in blocks() if not one.startswith((*RUN, *ELSEWHERE))]
    assert left == []
    pooler = (ROOT / "tests" / "pooler.py").read_text()
    for line in block("pool_mode").splitlines():
        assert line.partition(" =")[0] in pooler


# --- the team's setup


class Member(NamedTuple):
    """A person or a service with a home and an environment of its own, in the clone."""

    setup: Setup
    env: dict[str, str]

    def do(self, beginning: str, **replaced: str) -> str:
        """Run a block; return what it prints. Exports stay, and services go on."""
        printed = ""
        for command in commands(block(beginning)):
            line = put(command, {**self.setup.places, **replaced})
            if line.startswith("export "):
                told = self.run(f"{line}; env -0").stdout
                self.env.update(one.split("=", 1) for one in told.split("\0") if "=" in one)
                continue
            if f"{line} ".startswith(SERVICES) and "--until-idle" not in line:
                self.setup.serve(line, self.env)
                continue
            done = self.run(line)
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
            printed += done.stdout
        return printed

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line in a shell."""
        shell = ["bash", "-euo", "pipefail", "-c", line]
        return subprocess.run(
            shell, cwd=self.setup.folder, env=self.env, capture_output=True, text=True, check=False
        )  # fmt: skip


class Setup:
    """A clone, the places of the documentation's hosts, and what runs."""

    def __init__(self, folder: Path, cluster: postgres.Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        self.port = free_port()  # of MLflow's server
        self.mlflow = f"http://127.0.0.1:{self.port}"
        self.places = {
            "--host db": f"--host 127.0.0.1 --port {cluster.port}",
            "@db/": f"@127.0.0.1:{cluster.port}/",
            "mlflow:5000": f"127.0.0.1:{self.port}",
            "--host 0.0.0.0 --port 5000": f"--host 127.0.0.1 --port {self.port} --workers 1",
        }
        self.running: list[subprocess.Popen[bytes]] = []
        (folder / "deploy").symlink_to(ROOT / "deploy")
        (folder / "bin").mkdir()
        programs = {"tuner": f"{warm.python()} -m tuner", "mlflow": f"{warm.python()} -m mlflow",
                    "python": sys.executable}  # fmt: skip
        programs |= {name: str(binaries() / name) for name in ("psql", "createdb")}
        for name, command in programs.items():
            (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (folder / "bin" / name).chmod(0o755)
        (folder / "studies").mkdir()
        shutil.copy(ROOT / "studies" / "digits.py", folder / "studies")
        study = (ROOT / "studies" / "digits.toml").read_text()
        (folder / "studies" / "digits.toml").write_text(
            study.replace("steps = 300", "steps = 60").replace(
                "trials = 100\ndecide = 0.4", "trials = 3\ndecide = 0.0"
            )
        )

    def member(self, name: str) -> Member:
        """Return a newcomer, who has nothing set."""
        home = self.folder / "homes" / name
        home.mkdir(parents=True)
        env = environment(self.folder, {"HOME": str(home), "OMP_NUM_THREADS": "1"})
        del env["TUNER_CONFIG"], env["TUNER_ALLOW"]
        env["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{env['PATH']}"
        return Member(self, env)

    def serve(self, line: str, env: Mapping[str, str]) -> None:
        """Start a service."""
        with (self.folder / f"service-{len(self.running)}.log").open("wb") as log:
            self.running.append(
                subprocess.Popen(
                    ["bash", "-c", f"exec {line}"], cwd=self.folder, env=env, stdout=log,
                    stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                )
            )  # fmt: skip

    def stop(self) -> list[int]:
        """Stop the services but MLflow's server; return their exit codes."""
        ours = [one for one in self.running if "mlflow" not in str(one.args)]
        self.running = [one for one in self.running if one not in ours]
        for one in ours:
            one.terminate()
        return [one.wait(timeout=120) for one in ours]

    def kill(self) -> None:
        """End what is left, with its children."""
        for one in self.running:
            os.killpg(one.pid, 9)
            one.wait()

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """Ask the database past all of our code."""
        return rows(self.cluster.url("tuning"), query)

    def published(self) -> int:
        """Count the trials that are completely in MLflow."""
        ended = (
            "SELECT count(*) FROM tuner.tuner_published_trials WHERE final AND target = 'mlflow'"
        )
        return int(str(self.rows(ended)[0][0]))


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    with postgres.cluster() as cluster:
        cluster.require_passwords()
        made = Setup(tmp_path, cluster)
        try:
            yield made
        finally:
            made.kill()


def a_database_and_all_on_one_page(setup: Setup) -> Member:
    """The administrator makes the owner, who does everything alone at first."""
    setup.member("administrator").do("psql --host db")
    owner = setup.member("owner")
    owner.do("export TUNER_DATABASE_URL=postgresql://owner:password@db/tuning  # later")
    assert len(optuna_trials(setup.cluster.url("tuning"), "digits")) == 3
    until(lambda: setup.published() == 3, "the recorder", 120)
    assert setup.stop() == [0, 0], "a worker and a recorder"
    return owner


def logins_accounts_and_services(setup: Setup, owner: Member) -> None:
    owner.do("deploy/make-secrets anna")
    setup.member("server").do("sed ")
    until(lambda: answers(setup.mlflow), "MLflow's server", 180)
    setup.member("accounts").do(
        "export MLFLOW_TRACKING_URI=http://mlflow:5000 MLFLOW_TRACKING_USERNAME=admin"
    )
    setup.member("recorder").do("export TUNER_DATABASE_URL=postgresql://recorder@db")
    setup.member("worker").do("export TUNER_DATABASE_URL=postgresql://worker@db")


def joined(setup: Setup, name: str) -> Member:
    """A member with settings and an account, as the page says for Anna."""
    member = setup.member(name)
    told = member.do("tuner config", anna=name)
    password = (setup.folder / "secrets" / name).read_text()
    assert password not in told
    assert f"tracking_uri: {setup.mlflow}" in told
    for file in (".config/tuner/config.toml", ".mlflow"):
        assert (Path(member.env["HOME"]) / file).stat().st_mode & 0o077 == 0
    return member


def a_member_works_in_a_project(setup: Setup) -> Member:
    anna = joined(setup, "anna")
    told = anna.do("export TUNER_PROJECT=vision")
    assert "vision/digits" in told
    told = anna.do("tuner pause")
    assert "the cluster is needed for the release" in told
    assert "(database login anna)" in told
    assert anna.run("tuner resume digits").returncode == 0
    until(lambda: setup.published() == 6, "the worker and the recorder", 240)
    assert "By people:" in anna.do("tuner studies --spend")
    assert setup.rows("SELECT DISTINCT db_role FROM tuner.tuner_events ORDER BY 1") == [
        ("anna",), ("owner",),
    ]  # fmt: skip
    refused = anna.run("tuner project vision --workers 8")
    assert refused.returncode == 4
    assert "anna" in refused.stderr
    return anna


READS = (
    "studies", "studies --spend", "status digits", "best digits", "report digits", "history digits",
    "export digits --to out", "compare digits:all --to out", "project", "similar digits",
    "timetable list", "doctor", "db urls", "config",
)  # fmt: skip
WRITES = (
    "pause digits --yes", "note digits text", "tag digits x", "project vision --shared",
    "enqueue digits lr=0.01 --yes --raise-budget", "delete digits --yes",
)  # fmt: skip


def a_reader_reads_everything_and_is_told_what_it_may_not(setup: Setup) -> None:
    ulla = joined(setup, "ulla")
    for command in READS:
        done = ulla.run(f"tuner {command}")
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert f"{setup.mlflow}/#/experiments/" in ulla.run("tuner status digits").stdout
    for command in WRITES:
        done = ulla.run(f"tuner {command}")
        assert done.returncode == 4, f"{command}: {done.stderr}"
        assert "may not" in done.stderr or "has no rights" in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_a_team_is_set_up_as_the_page_says(setup):
    owner = a_database_and_all_on_one_page(setup)
    logins_accounts_and_services(setup, owner)
    anna = a_member_works_in_a_project(setup)
    assert "of 8 workers now" in owner.do("tuner project vision")
    bob = joined(setup, "bob")
    done = bob.run("tuner run studies/digits.toml --set study.name=bobs")
    assert done.returncode == 0, done.stderr
    refused = bob.run("tuner stop digits")
    assert refused.returncode == 2
    assert "anna" in refused.stderr
    a_reader_reads_everything_and_is_told_what_it_may_not(setup)
    assert anna.run("tuner doctor").stdout == "Everything matches.\n"
    assert setup.stop() == [0, 0], "a recorder and a worker"
    with psycopg.connect(setup.cluster.url("tuning"), autocommit=True) as connection:
        statement = block("CREATE ROLE anna").replace("anna", "carl")  # as Anna has one by now
        connection.execute(statement)
        connection.execute("SET ROLE carl")
        connection.execute("SELECT FROM tuner.tuner_studies")


CODE = """
import torch
from torch import nn
from tuner import workload
from tuner.training.workloads import Workload


@workload
def line():
    inputs = torch.linspace(-1.0, 1.0, 12).reshape(12, 1)
    return Workload(
        model=lambda seed, dtype: nn.Linear(1, 1, dtype=dtype),
        train_inputs=inputs, train_targets=SLOPE * inputs,
        validation_inputs=inputs, validation_targets=SLOPE * inputs, loss=nn.functional.mse_loss,
        data_name="a line", data_digest="SLOPE",
    )
"""
"""A module of a person."""
STUDY = """
[study]
name = "NAME"
[workload]
factory = "NAME.models:line"
[training]
steps = 5
[space]
lr = { low = 0.01, high = 0.1 }
[search]
sampler = "random"
[budget]
trials = 1
"""


@pytest.mark.slow
@pytest.mark.thorough
def test_one_worker_trains_the_code_of_two_people_from_two_folders(tmp_path):
    """As the page starts it; each person submits from a folder of their own."""
    database = {"TUNER_DATABASE_URL": f"sqlite:///{tmp_path}/tuner.db"}
    for name, slope in (("anna", "3.0"), ("bob", "-2.0")):
        package = tmp_path / "code" / name / name
        package.mkdir(parents=True)
        (package / "models.py").write_text(CODE.replace("SLOPE", slope))
        (package.parent / "study.toml").write_text(STUDY.replace("NAME", name))
        allowed = {"TUNER_ALLOW": f"{name}."}
        done = tuner(package.parent, "submit", "study.toml", env=database | allowed)
        assert done.code == 0, done.err
    *exports, command = commands(block("export PYTHONPATH"))
    assert command == "tuner worker --no-recorder"
    shell = "; ".join([*exports, f"exec {sys.executable} -m {command} --until-idle"])
    done = subprocess.run(
        ["bash", "-c", shell.replace("/srv/code", f"{tmp_path}/code")],
        cwd=tmp_path,
        env=environment(tmp_path, database),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ledger = Reader(ledger_engine(database["TUNER_DATABASE_URL"]))
    trained = {one.name: ledger.counts(one.id)["completed"] for one in ledger.studies()}
    ledger.engine.dispose()
    assert trained == {"anna": 1, "bob": 1}


# --- the stack, whose containers are processes


class Docker:
    """Does with the stack's processes what the documented commands do with containers."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def do(self, beginning: str) -> str:
        """Run a block; return what it prints."""
        return "".join(
            self._do(line)
            for line in commands(block(beginning))
            if not line.startswith(NEEDS_DOCKER)
        )

    def _do(self, line: str) -> str:
        match shlex.split(line):
            case ["deploy/make-secrets"]:
                assert self._stack.secrets, "made before the server that has the owner's password"
            case ["docker", "compose", "up", "--detach", "--wait", "postgres"]:
                assert self._stack.healthy("postgres")
            case ["docker", "compose", "--profile", name, "up", "--detach"]:
                self._stack.up(name)
            case ["docker", "compose", "up", "--detach", *_]:
                self._stack.up(*(name for name, one in self._stack.file["services"].items()
                                 if "profiles" not in one))  # fmt: skip
            case ["docker", "compose", "run", "--rm", name]:
                return self._run(name, self._stack.file["services"][name]["command"])
            case ["docker", "compose", "run", "--rm", name, *command]:
                return self._run(name, command)
            case ["docker", "compose", "exec", "-T", "postgres", program, *arguments]:
                self._exec(program, arguments)
            case _:
                raise AssertionError(f"say here what this does: {line}")
        return ""

    def _run(self, name: str, command: Sequence[str]) -> str:
        """Run a command with a service's environment, for somebody who agrees to everything.

        What the service depends on is started before, as Compose does.
        """
        for other, how in self._stack.file["services"][name].get("depends_on", {}).items():
            self._stack.up(other)
            self._stack._wait(other, how["condition"])
        person, terminal = pty.openpty()
        os.write(person, b"y\n" * 3)
        done = subprocess.run(
            here(["entrypoint", *command], self._stack.places),
            cwd=self._stack.folder / "app",
            env=self._stack.environment(name, self._stack.places),
            stdin=terminal,
            capture_output=True,
            text=True,
            check=False,
        )
        os.close(person)
        os.close(terminal)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def _exec(self, program: str, arguments: list[str]) -> None:
        """Run one of PostgreSQL's programs in its container, its streams being files."""
        at = ["--host", "127.0.0.1", "--port", str(self._stack.cluster.port)]
        words = [one for one in arguments if not one.startswith(("<", ">"))]
        files = {one[0]: self._stack.folder / one[1:] for one in arguments if one not in words}
        password = self._stack.secrets["database_owner"]
        done = subprocess.run(
            [binaries() / program, *at, *words],
            input=files["<"].read_bytes() if "<" in files else b"",
            stdout=subprocess.PIPE,
            env={"PGPASSWORD": password, "PATH": os.environ["PATH"]},
            check=True,
        )
        if ">" in files:
            files[">"].write_bytes(done.stdout)


def trained(stack: Stack) -> int:
    ended = "SELECT count(*) FROM tuner.tuner_published_trials WHERE final AND target = 'mlflow'"
    return int(rows(stack.cluster.url("tuning"), ended)[0][0])


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_the_stack_is_run_backed_up_and_restored_as_the_page_says(tmp_path):
    with postgres.cluster() as cluster:
        stack = Stack(tmp_path, cluster)
        (tmp_path / "app" / "studies").unlink()
        shutil.copytree(ROOT / "studies", tmp_path / "app" / "studies")
        study = tmp_path / "app" / "studies" / "digits.toml"
        study.write_text(
            study.read_text().replace("steps = 300", "steps = 60").replace(
                "trials = 100\ndecide = 0.4", "trials = 3\ndecide = 0.0"
            )
        )  # fmt: skip
        docker = Docker(stack)
        try:
            assert "digits: " in docker.do("deploy/make-secrets  ")
            until(lambda: trained(stack) == 3, "three trials in all places", 300)
            docker.do("docker compose run --rm worker tuner timetable")
            docker.do("docker compose exec -T postgres pg_dump")
            docker.do("docker compose run --rm administrator")
            names = "SELECT count(*) FROM tuner.tuner_studies"
            assert rows(stack.cluster.url("tuning"), names) == [(0,)]
            stack.down()
            stack.running.clear()
            docker.do("docker compose up --detach --wait postgres")
            assert rows(stack.cluster.url("tuning"), names) == [(1,)]
            assert trained(stack) == 3
            code, said = stack.tuner("recorder", "doctor")
            assert (code, said) == (0, "Everything matches.\n")
        finally:
            stack.kill()
