"""Workers on a real Ray: whatever is lost, the study is that of one undisturbed machine."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pooler import pooler, through
from postgres import Cluster
from processes import ROOT, end, until, write_study
from ray_cluster import ENVIRONMENT, RayCluster, ray_cluster
from team import Team, team
from test_slurm import STUDY, ask, count, phases

from tuner.config.cluster import RayTable, WorkerTable
from tuner.core.errors import UnavailableError, UsageError
from tuner.executors import WorkerState
from tuner.executors.ray import RayExecutor
from tuner.ledger.launches import Launch

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def engine() -> Iterator[RayCluster]:
    with ray_cluster(2, {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}) as made:
        yield made


@pytest.fixture
def here(tmp_path: Path, cluster: Cluster, migrated: str, engine: RayCluster) -> Iterator[Team]:
    """A team behind a connection pooler, whose study is slow while the file `slow` is there."""
    with pooler(cluster) as port:
        url = through(cluster.database(migrated), port)
        more = {"TUNER_LEASE_SECONDS": "3", "TUNER_CHECKPOINTS": str(tmp_path / "checkpoints")}
        with team(tmp_path, cluster, url, **more, **ENVIRONMENT) as made:
            arguments = "[workload.arguments]\n"
            write_study(
                tmp_path, STUDY.replace(arguments, f'{arguments}slow = "{tmp_path}/slow"\n')
            )
            (tmp_path / "cluster.toml").write_text(
                "[worker]\ngrace_seconds = 10\n"
                f'environment = {{ TUNER_SPILL = "{tmp_path}/spill" }}\n'
                f'[ray]\naddress = "{engine.address}"\n'
            )
            (tmp_path / "slow").touch()
            yield made


def test_a_study_survives_what_is_lost(here: Team, engine: RayCluster) -> None:
    """Its workers reach the database through a pooler in transaction mode."""
    run = ("run", "study.toml", "--executor", "ray", "--workers", "3", "--no-report")
    launcher = here.start(*run)
    until(lambda: count(here, "live") == 3, "three workers", 300, every=0.3)

    # who has started them is killed, with its connection to Ray
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.communicate()
    assert set(phases(here).values()) == {"running"}

    # an actor is killed: its worker saves its trial, and Ray starts it again
    engine.actors()[0].kill()
    until(lambda: count(here, "ending = 'interrupted'") >= 1, "its trial to be saved", 120, 0.3)
    until(lambda: count(here, "live") == 3, "its successor", 300, every=0.3)

    # a node is lost in the middle of its trials, and another one comes
    listed = ask(here, "workers", "list", "digits")["workers"]
    node = listed[0]["where"].partition("(")[2].removesuffix(")")
    started = count(here, "true")
    engine.remove(node)
    engine.add()
    until(lambda: count(here, "true") > started, "what it trained to be taken up", 300, 0.3)
    until(lambda: count(here, "live") == 3, "its workers elsewhere", 300, every=0.3)

    # another launcher finds them, and shows them to the end
    (here.folder / "slow").unlink()
    done = here.tuner(*run)
    assert done.code == 0, done.err
    assert len(phases(here)) == 3, "none was started beside them"
    assert set(phases(here).values()) == {"ended"}
    here.assert_whole("digits", 60)
    study = (here.folder / "study.toml").read_text()
    write_study(here.folder, study.replace('"digits"', '"calm"'))
    assert here.tuner("run", "study.toml", "--no-report").code == 0
    assert here.curves("digits") == here.curves("calm")


def test_an_interrupted_run_takes_its_workers_along(here: Team) -> None:
    run = here.start("run", "study.toml", "--executor", "ray", "--workers", "2", "--no-report")
    until(lambda: count(here, "live") == 2, "two workers", 300, every=0.3)
    run.terminate()
    assert end(run).code == 130
    assert count(here, "live") == 0
    assert count(here, "ending = 'interrupted'") == 2, "their trials were saved"
    assert set(phases(here).values()) == {"ended"}


def launched(
    executor: RayExecutor, key: str, workers: int, resources: WorkerTable, *arguments: str
) -> Launch:
    handles = executor.launch(key, workers, resources, arguments)
    return replace(forgotten(key), workers=workers, handles=handles)


def forgotten(key: str) -> Launch:
    """Return a launch of a worker that Ray does not know."""
    return Launch(
        key=key, study_id=1, executor="ray", workers=1, os_user="ann", host="here",
        handles=(f"tuner-{key}-0",), created_at=1.0, ended_at=None,
    )  # fmt: skip


def test_code_goes_with_the_workers_over_a_client_connection(here: Team, engine: RayCluster):
    (here.folder / "shipped.py").write_text(
        "from tests import workloads\nfrom tuner.training.workloads import Workload\n\n\n"
        "def noisy() -> Workload:\n    return workloads.noisy()\n"
    )
    write_study(here.folder, factory='"shipped:noisy"', trials="4")
    (here.folder / "cluster.toml").write_text(
        f'[ray]\naddress = "{engine.client}"\nworking_dir = "."\nnamespace = "ann\'s"\n'
    )
    run = ("run", "study.toml", "--executor", "ray", "--workers", "1", "--no-report")
    done = here.tuner(*run, TUNER_ALLOW="shipped tests.")
    assert done.code == 0, done.err
    here.assert_whole("small", 4)
    launches = here.rows("SELECT DISTINCT environment::json->>'launch' FROM tuner.tuner_attempts")
    listed = ask(here, "workers", "list", "small", "--ended")["workers"]
    assert launches == [(one["launch"],) for one in listed]


def test_a_client_connection_whose_server_ends_at_its_start_is_made_again(
    engine: RayCluster,
) -> None:
    """Ray's head starts a process for each `ray://` connection; on a busy machine it may fail."""
    killed: list[int] = []
    over = threading.Event()

    def kill_the_first() -> None:
        while not killed and not over.wait(0.005):
            for one in engine.client_servers()[:1]:
                one.kill()
                killed.append(one.pid)

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    try:
        state = RayExecutor(RayTable(address=engine.client)).poll([forgotten("2" * 12)])
    finally:
        over.set()
        killer.join()
    assert len(killed) == 1
    assert [one.phase for one in state["2" * 12]] == ["failed"]


def test_states_and_logs_are_those_of_the_workers(
    here: Team, engine: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**ENVIRONMENT, **here.environment}.items():
        monkeypatch.setenv(name, value)
    executor = RayExecutor(RayTable(address=engine.address))

    def states(launch: Launch) -> list[WorkerState]:
        return list(executor.poll([launch])[launch.key])

    def are(launch: Launch, phase: str) -> Callable[[], bool]:
        return lambda: {one.phase for one in states(launch)} == {phase}

    # one that refuses what it is to train, and one whose interpreter is not there
    refused = launched(executor, "0" * 12, 1, WorkerTable(), "--study", "nobody knows")
    until(are(refused, "failed"), "its end", 120, every=0.3)
    assert [one.code for one in states(refused)] == [2]
    assert "there is no study 'nobody knows'" in executor.logs(refused, refused.handles[0])
    nothing = launched(executor, "1" * 12, 1, WorkerTable(python="/no/python"))
    until(are(nothing, "failed"), "its end", 120, every=0.3)
    assert "/no/python: No such file" in executor.logs(nothing, nothing.handles[0])

    # some for which there is no place, whose launcher died before it knew their handles
    beyond = RayExecutor(RayTable(address=engine.address, resources={"nowhere": 1.0}))
    waiting = launched(beyond, "2" * 12, 2, WorkerTable())
    waiting = replace(waiting, handles=())
    assert are(waiting, "waiting")()
    with pytest.raises(UsageError, match="has no log: it waits"):
        executor.logs(waiting, f"tuner-{waiting.key}-0")
    executor.cancel(waiting)
    until(lambda: states(waiting) == [], "their end", 120, every=0.3)

    # one that serves, and is stopped by another process
    half = WorkerTable(grace_seconds=5, gpus=1, workers_per_gpu=2, device="auto")
    serving = launched(executor, "3" * 12, 1, half, "--no-recorder")
    until(are(serving, "running"), "its actor", 120, every=0.3)
    (handle,) = serving.handles
    until(lambda: "worker started" in executor.logs(serving, handle), "its start", 120, every=0.3)
    (worker,) = engine.actors()[0].children()
    assert worker.environ()["CUDA_VISIBLE_DEVICES"] == "0", "Ray has given it half of a GPU"
    RayExecutor(RayTable(address=engine.address)).cancel(serving)
    until(are(serving, "ended"), "its end", 120, every=0.3)
    assert "worker ended" in executor.logs(serving, handle)

    # Ray is away, and has forgotten a worker
    gone = forgotten("5" * 12)
    assert [one.phase for one in states(gone)] == ["failed"]
    with pytest.raises(UnavailableError, match="Ray does not answer"):
        RayExecutor(RayTable(address="ray://127.0.0.1:1")).poll([gone])
