"""Workers on a real Slurm: whatever it does, the study is that of one undisturbed machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import processes
import psutil
import pytest
from postgres import Cluster
from processes import end, write_study
from slurm import Slurm, slurm
from team import Team, team

pytestmark = pytest.mark.integrations

STUDY = """
[study]
name = "digits"
seed = 5

[workload]
factory = "tests.workloads:paced_digits"

[training]
steps = 40
batch_size = 32
evaluate_every = 10
dtype = "float64"
trainer = "reference"
threads = 1
checkpoint_seconds = 0.1

[space]
lr = { low = 1e-3, high = 1.0 }
schedule = ["constant", "cosine"]
optimizer = ["sgd", "adamw"]

[search]
sampler = "random"
pruner = "none"

[budget]
trials = 60
decide = 0
"""
SETTINGS = """
[worker]
grace_seconds = 10
environment = { TUNER_SPILL = "spill" }

[slurm]
partition = "low"
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[Slurm]:
    with slurm() as made:
        yield made


@pytest.fixture
def here(tmp_path: Path, cluster: Cluster, migrated: str, engine: Slurm) -> Iterator[Team]:
    """A team with a small study of digits, which is slow while the file `slow` is there."""
    more = {"TUNER_LEASE_SECONDS": "3", **engine.environment}
    with team(tmp_path, cluster, cluster.database(migrated), **more) as made:
        write_study(tmp_path, STUDY)
        (tmp_path / "cluster.toml").write_text(SETTINGS)
        (tmp_path / "slow").touch()
        yield made


def until(condition: Callable[[], object], what: str, seconds: float = 300) -> None:
    """Wait for a condition that takes a process or a connection to check.

    A job that is queued again waits for two minutes.
    """
    processes.until(condition, what, seconds, every=0.3)


def ask(here: Team, *arguments: str) -> dict[str, Any]:
    done = here.tuner(*arguments, "--json")
    assert done.code in (0, 1), done.err
    found = json.loads(done.out)
    assert isinstance(found, dict)
    return found


def phases(here: Team) -> dict[str, str]:
    """Give what `tuner workers list` says of each worker."""
    found = ask(here, "workers", "list", "digits", "--ended")["workers"]
    return {one["handle"]: one["phase"] for one in found}


def count(here: Team, condition: str) -> int:
    return int(here.rows(f"SELECT count(*) FROM tuner.tuner_attempts WHERE {condition}")[0][0])


def restarts(engine: Slurm, handle: str) -> int:
    shown = engine.run("scontrol", "--oneliner", "show", "job", handle)
    return int(shown.partition("Restarts=")[2].partition(" ")[0] or 0)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_a_study_survives_everything_that_slurm_does(here: Team, engine: Slurm) -> None:
    assert here.tuner("submit", "study.toml").code == 0
    start = ("workers", "start", "digits", "--executor", "slurm", "--no-recorder")
    first = ask(here, *start, "--workers", "4")["handles"]  # which fill a node
    until(lambda: count(here, "live") == 4, "four workers")
    # Slurm notifies it up to a minute early
    (here.folder / "limited.toml").write_text(f"{SETTINGS}minutes = 2\n")
    (alone,) = ask(here, *start, "--cluster", "limited.toml")["handles"]  # on the other node
    until(lambda: count(here, "live") == 5, "five workers")
    assert phases(here) == dict.fromkeys([*first, alone], "running")
    assert "worker started" in ask(here, "workers", "logs", "digits", alone)["log"]

    # the controller restarts
    engine.stop("slurmctld")
    assert set(phases(here).values()) == {"unknown"}
    engine.start("slurmctld")
    until(lambda: "unknown" not in phases(here).values(), "the controller to know them")
    until(lambda: count(here, "live") == 5, "five workers")

    # a job of more importance takes the node
    engine.run(
        "sbatch", "--partition=high", "--nodelist=n1", "--exclusive", "--output=/dev/null",
        "--wrap=sleep 3",
    )  # fmt: skip
    until(lambda: all(restarts(engine, one) for one in first), "preemption")
    assert count(here, "ending = 'interrupted'") >= 1, "trials were saved"
    until(lambda: count(here, "live") == 5, "them to be started again")

    # a node dies and its workers train on, one of them after its lease
    (node,) = {one["where"] for one in ask(here, "workers", "list", "digits")["workers"]} - {
        node_of(here, alone)
    }
    old = workers_of(here, first)
    assert old
    engine.kill(node)
    old[0].suspend()
    until(lambda: count(here, "ending = 'stale'") >= 1, "its lease to expire")
    old[0].resume()
    until(lambda: count(here, "live") > 5, "their successors, elsewhere")
    assert all(one.is_running() for one in old)

    # the time limit of the worker alone
    until(lambda: restarts(engine, alone) >= 1, "its time limit")
    for one in old:  # as the node would, when it is started again
        with suppress(psutil.NoSuchProcess):
            one.kill()
    engine.start(node)
    until(lambda: phases(here)[alone] == "running", "it to be started again")

    # all are cancelled
    assert ask(here, "workers", "stop", "digits")["problems"] == []
    until(lambda: set(phases(here).values()) == {"ended"}, "their end")
    assert ask(here, "workers", "list", "digits")["workers"] == []

    # others finish the study
    (here.folder / "slow").unlink()
    done = here.tuner("run", "study.toml", "--executor", "slurm", "--workers", "2", "--no-report")
    assert done.code == 0, done.err
    here.assert_whole("digits", 60)
    write_study(here.folder, STUDY.replace('"digits"', '"calm"'))
    assert here.tuner("run", "study.toml", "--no-report").code == 0
    assert here.curves("digits") == here.curves("calm")


def node_of(here: Team, handle: str) -> str:
    found = ask(here, "workers", "list", "digits")["workers"]
    return next(str(one["where"]) for one in found if one["handle"] == handle)


def workers_of(here: Team, handles: list[str]) -> list[psutil.Process]:
    """Find the processes of the workers with these handles that have trials."""
    listed = ask(here, "workers", "list", "digits")["workers"]
    keys = {one["launch"] for one in listed if one["handle"] in handles}
    live = here.rows("SELECT worker, environment FROM tuner.tuner_attempts WHERE live")
    names = [worker for worker, about in live if json.loads(about)["launch"] in keys]
    return [psutil.Process(int(name.split(":")[-2])) for name in names]


def test_an_interrupted_run_takes_its_workers_along(here: Team) -> None:
    assert here.tuner("submit", "study.toml").code == 0
    run = here.start("run", "study.toml", "--executor", "slurm", "--workers", "2", "--no-report")
    until(lambda: count(here, "live") == 2, "two workers")
    run.terminate()
    assert end(run).code == 130
    assert count(here, "live") == 0
    assert set(phases(here).values()) == {"ended"}
    assert ask(here, "workers", "list", "digits")["workers"] == []


def test_what_slurm_refuses_is_said_and_not_recorded_as_running(here: Team) -> None:
    assert here.tuner("submit", "study.toml").code == 0
    (here.folder / "cluster.toml").write_text('[slurm]\npartition = "nowhere"\n')
    done = here.tuner("workers", "start", "digits", "--executor", "slurm")
    assert done.code == 2
    assert "Slurm refuses the workers" in done.err
    assert "invalid partition specified: nowhere" in done.err
    assert ask(here, "workers", "list", "digits")["workers"] == []
