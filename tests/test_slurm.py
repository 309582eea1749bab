"""Workers on a real Slurm: whatever it does, the study is that of one undisturbed machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
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

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(600)]

STUDY = """
[study]
name = "digits"
seed = 5

[workload]
factory = "tests.workloads:paced_digits"

[workload.arguments]
step_seconds = 0.4  # while it is slow: so long that no fault finds the study at its end

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
        assert made.tuner("submit", "study.toml").code == 0
        yield made
        made.tuner("workers", "stop", "digits")  # of a test that has failed


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, cluster: Cluster, migrated: str
) -> dict[int, Any]:
    """What the study's trials measure on one machine without any fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with team(folder, cluster, cluster.database(migrated)) as made:
        write_study(folder, STUDY)
        assert made.tuner("run", "study.toml", "--no-report").code == 0
        return made.curves("digits")


def until(condition: Callable[[], object], what: str, seconds: float = 180) -> None:
    """Wait for a condition that takes a process or a connection to check.

    Slurm takes up to a minute for what it does in its own time.
    """
    processes.until(condition, what, seconds, every=0.3)


def ask(here: Team, *arguments: str) -> dict[str, Any]:
    done = here.tuner(*arguments, "--json")
    assert done.code in (0, 1), done.err
    found = json.loads(done.out)
    assert isinstance(found, dict)
    return found


def started(here: Team, workers: int) -> list[str]:
    """Start workers, wait until each has a trial, and return their handles."""
    handles = ask(
        here, "workers", "start", "digits", "--executor", "slurm", "--no-recorder",
        "--workers", str(workers),
    )["handles"]  # fmt: skip
    until(lambda: count(here, "live") == workers, f"{workers} workers")
    assert phases(here) == dict.fromkeys(handles, "running")
    return list(handles)


def phases(here: Team) -> dict[str, str]:
    """Return what `tuner workers list` says of each worker."""
    found = ask(here, "workers", "list", "digits", "--ended")["workers"]
    return {one["handle"]: one["phase"] for one in found}


def count(here: Team, condition: str) -> int:
    return int(here.rows(f"SELECT count(*) FROM tuner.tuner_attempts WHERE {condition}")[0][0])


def restarts(engine: Slurm, handle: str) -> int:
    shown = engine.run("scontrol", "--oneliner", "show", "job", handle)
    return int(shown.partition("Restarts=")[2].partition(" ")[0] or 0)


def all_restarted(engine: Slurm, handles: Sequence[str]) -> bool:
    return all(restarts(engine, one) for one in handles)


def node_of(here: Team) -> str:
    """Return the node that has all of the workers."""
    (node,) = {one["where"] for one in ask(here, "workers", "list", "digits")["workers"]}
    return str(node)


def assert_as_undisturbed(here: Team, undisturbed: dict[int, Any]) -> None:
    """Let the workers finish the study; assert that nothing is lost, doubled or different."""
    assert count(here, "live") > 0, "the fault has met a study that was being trained"
    (here.folder / "slow").unlink()
    until(lambda: set(phases(here).values()) == {"ended"}, "the workers' end")
    assert_whole(here, undisturbed)


def assert_whole(here: Team, undisturbed: dict[int, Any]) -> None:
    assert here.tuner("recorder", "--once").code == 0
    here.assert_whole("digits", 60)
    assert here.curves("digits") == undisturbed


def test_preempted_workers_go_on_where_they_were(here: Team, engine: Slurm, undisturbed) -> None:
    handles = started(here, 4)
    engine.run(
        "sbatch", "--partition=high", f"--nodelist={node_of(here)}", "--exclusive",
        "--output=/dev/null", "--wrap=sleep 1",
    )  # fmt: skip
    until(lambda: all_restarted(engine, handles), "preemption")
    assert count(here, "ending = 'interrupted'") >= 1, "trials were saved"
    until(lambda: count(here, "live") == 4, "them to be started again")
    assert_as_undisturbed(here, undisturbed)


def test_requeued_workers_go_on_where_they_were(here: Team, engine: Slurm, undisturbed) -> None:
    handles = started(here, 2)
    engine.run("scontrol", "requeue", handles[0])
    until(lambda: restarts(engine, handles[0]), "the requeue")
    until(lambda: count(here, "live") == 2, "it to be started again")
    assert_as_undisturbed(here, undisturbed)


def test_workers_of_a_dead_node_train_on_beside_their_successors(
    here: Team, engine: Slurm, undisturbed
) -> None:
    handles = started(here, 3)
    node, old = node_of(here), workers_of(here)
    engine.kill(node)
    try:
        old[0].suspend()  # one of them past its lease
        until(lambda: count(here, "ending = 'stale'") >= 1, "its lease to expire")
        old[0].resume()
        until(lambda: all_restarted(engine, handles), "the requeue")
        until(lambda: count(here, "live") == 6, "their successors, elsewhere")
        assert all(one.is_running() for one in old)
        (here.folder / "slow").unlink()
        until(lambda: set(phases(here).values()) == {"ended"}, "the successors' end")
        until(lambda: not any(one.is_running() for one in old), "the end of the others")
    finally:
        for one in old:  # of a test that has failed
            with suppress(psutil.NoSuchProcess):
                one.kill()
        engine.start(node)
    assert_whole(here, undisturbed)


def test_workers_go_on_while_the_controller_restarts(
    here: Team, engine: Slurm, undisturbed
) -> None:
    handles = started(here, 2)
    listed = ask(here, "workers", "list", "digits")["workers"]
    assert all(one["device"] and one["peak_memory_mib"] > 50 for one in listed), listed
    assert "worker started" in ask(here, "workers", "logs", "digits", handles[0])["log"]
    engine.stop("slurmctld")
    try:
        assert set(phases(here).values()) == {"unknown"}
        steps = trained(here)
        until(lambda: trained(here) > steps, "more steps")
    finally:
        engine.start("slurmctld")
    until(lambda: phases(here) == dict.fromkeys(handles, "running"), "the controller's knowledge")
    assert count(here, "number > 1") == 0, "no attempt ended"
    assert_as_undisturbed(here, undisturbed)


def test_a_worker_is_queued_again_before_its_time_limit(
    here: Team, engine: Slurm, undisturbed
) -> None:
    (here.folder / "cluster.toml").write_text(f"{SETTINGS}minutes = 1\n")
    (handle,) = started(here, 1)
    until(lambda: restarts(engine, handle), "the time limit")
    assert count(here, "ending = 'interrupted'") == 1, "its trial was saved"
    until(lambda: count(here, "live") == 1, "it to be started again")
    assert_as_undisturbed(here, undisturbed)


def test_cancelled_workers_save_their_trials_and_others_finish(
    here: Team, engine: Slurm, undisturbed
) -> None:
    started(here, 2)
    assert ask(here, "workers", "stop", "digits")["problems"] == []
    until(lambda: set(phases(here).values()) == {"ended"}, "their end")
    assert count(here, "ending = 'interrupted'") == 2, "trials were saved"
    assert ask(here, "workers", "list", "digits")["workers"] == []
    (here.folder / "slow").unlink()
    done = here.tuner("run", "study.toml", "--executor", "slurm", "--workers", "2", "--no-report")
    assert done.code == 0, done.err
    assert_whole(here, undisturbed)


def trained(here: Team) -> int:
    return int(here.rows("SELECT sum(steps) FROM tuner.tuner_trials")[0][0])


def workers_of(here: Team) -> list[psutil.Process]:
    """Find the processes of the workers that have trials."""
    live = here.rows("SELECT worker FROM tuner.tuner_attempts WHERE live")
    return [psutil.Process(int(name.split(":")[-2])) for (name,) in live]


def test_an_interrupted_run_takes_its_workers_along(here: Team) -> None:
    run = here.start("run", "study.toml", "--executor", "slurm", "--workers", "2", "--no-report")
    until(lambda: count(here, "live") == 2, "two workers")
    run.terminate()
    assert end(run).code == 130
    assert count(here, "live") == 0
    assert set(phases(here).values()) == {"ended"}
    assert ask(here, "workers", "list", "digits")["workers"] == []


def test_what_slurm_refuses_is_said_and_not_recorded_as_running(here: Team) -> None:
    (here.folder / "cluster.toml").write_text('[slurm]\npartition = "nowhere"\n')
    done = here.tuner("workers", "start", "digits", "--executor", "slurm")
    assert done.code == 2
    assert "Slurm refuses the workers" in done.err
    assert "invalid partition specified: nowhere" in done.err
    assert ask(here, "workers", "list", "digits")["workers"] == []
