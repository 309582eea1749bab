"""One study, many workers, one database: whatever dies, nothing is lost and nothing is doubled."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from processes import STUDY, end, processes_in, until, write_study
from team import Team, answers, mlflow_server, team

from tuner.ledger import database as storage

pytestmark = pytest.mark.slow

SLOW = STUDY.replace(
    'factory = "tests.workloads:noisy"',
    'factory = "tests.workloads:noisy"\narguments = { step_seconds = 0.005 }',
).replace("checkpoint_seconds = 0.001", "checkpoint_seconds = 0.1")
"""Trials that take long enough to be interrupted in the middle."""


@pytest.fixture
def database(cluster) -> str:
    """A fresh database with all tables on a server that may be crashed."""
    return cluster.database(cluster.migrated)


@pytest.fixture
def here(tmp_path: Path, cluster, database):
    """A team whose leases are short, so that what is lost is noticed soon."""
    with team(tmp_path, cluster, database, TUNER_LEASE_SECONDS="2") as made:
        yield made


def finish(here: Team) -> None:
    """Let one more worker do what is left, and publish it."""
    done = here.tuner("worker", "--until-idle")
    assert done.code == 0, done.err


def submit(here: Team, study: str = SLOW, **changes: str) -> None:
    write_study(here.folder, study, **changes)
    done = here.tuner("submit", "study.toml")
    assert done.code == 0, done.err


def steps(here: Team) -> int:
    return int(here.rows("SELECT coalesce(sum(steps), 0) FROM tuner.tuner_trials")[0][0])


@pytest.mark.thorough
def test_a_study_is_tuned_on_postgresql_by_one_command(here):
    write_study(here.folder)
    done = here.tuner("run", "study.toml", "--workers", "3", "--json")
    assert done.code == 0, done.err
    assert sum(done.json["trials"].values()) == 8
    here.assert_whole("small", 8)
    assert here.tuner("doctor").out == "Everything matches.\n"


@pytest.mark.thorough
def test_a_worker_stopped_for_longer_than_its_lease_finds_its_token_refused(here):
    submit(here, trials="1", steps="400", lr="0.01  # of which none diverges")
    sleeper = here.start("worker", "--no-recorder", "--until-idle")
    until(lambda: steps(here) > 5, "some steps")
    (stopped,) = processes_in(here.folder)
    stopped.suspend()
    live = "SELECT worker FROM tuner.tuner_attempts WHERE live"
    asleep = here.rows(live)
    other = here.start("worker", "--no-recorder", "--until-idle")
    until(lambda: here.rows(live) not in ([], asleep), "the other worker to take the trial")
    stopped.resume()
    woken, done = end(sleeper), end(other)
    assert (woken.code, done.code) == (0, 0), woken.err + done.err
    assert "token is refused" in woken.err
    finish(here)
    here.assert_whole("small", 1)
    endings = "SELECT ending FROM tuner.tuner_attempts ORDER BY number"
    assert here.rows(endings) == [("stale",), ("finished",)]


@pytest.mark.thorough
def test_curves_are_those_of_an_undisturbed_worker(here, tmp_path):
    """Interrupted again and again, taken up by other processes: value by value the same."""
    submit(here, trials="4", sampler='"random"', pruner='"none"')
    for _ in range(4):
        before = steps(here)
        worker = here.start("worker", "--no-recorder")
        until(lambda before=before: steps(here) >= before + 15, "some steps")
        worker.send_signal(signal.SIGTERM)
        done = end(worker)
        assert done.code == 0, done.err
    finish(here)
    disturbed = here.curves("small")
    assert here.rows("SELECT count(*) FROM tuner.tuner_attempts WHERE ending = 'interrupted'")[0][0]
    submit(here, SLOW.replace('"small"', '"calm"'), trials="4", sampler='"random"', pruner='"none"')
    finish(here)
    assert here.curves("calm") == disturbed


@pytest.mark.thorough
def test_every_run_deleted_by_hand_is_restored(here, tmp_path):
    with mlflow_server(tmp_path, here.places.tracking) as here.mlflow:
        write_study(here.folder)
        assert here.tuner("run", "study.toml").code == 0
        client = storage.tracking_client(here.places)
        experiment = client.get_experiment_by_name("small").experiment_id
        for run in client.search_runs([experiment]):
            client.delete_run(run.info.run_id)
        found = here.tuner("doctor")
        assert found.code == 1
        assert "run_missing: small, trial 7" in found.out
        repaired = here.tuner("doctor", "--repair")
        assert repaired.code == 0, repaired.out
        here.assert_whole("small", 8)


@pytest.mark.thorough
def test_sixteen_workers_keep_to_the_budget(here):
    submit(here, STUDY, trials="24", sampler='"random"')
    workers = [here.start("worker", "--no-recorder", "--until-idle") for _ in range(16)]
    for worker in workers:
        done = end(worker)
        assert done.code == 0, done.err
    finish(here)
    here.assert_whole("small", 24)


def test_connections_may_be_cut(here):
    submit(here, trials="6")
    workers = [here.start("worker", "--until-idle") for _ in range(2)]
    for _ in range(6):
        before = steps(here)
        here.cluster.cut(here.database)
        until(lambda before=before: steps(here) > before or idle(here), "more steps")
    for worker in workers:
        done = end(worker)
        assert done.code == 0, done.err
    finish(here)
    here.assert_whole("small", 6)


def idle(here: Team) -> bool:
    return here.rows("SELECT count(*) FROM tuner.tuner_trials WHERE state <> 'running'") == [(6,)]


@pytest.mark.thorough
def test_the_database_may_crash_and_come_back(here):
    submit(here, trials="6", steps="300", lr="0.01", pruner='"none"')
    workers = [here.start("worker", "--until-idle") for _ in range(2)]
    until(lambda: steps(here) > 20, "some steps")
    here.cluster.stop("immediate")
    here.cluster.start()
    for worker in workers:
        done = end(worker)
        assert done.code == 0, done.err
    finish(here)
    here.assert_whole("small", 6)
    endings = here.rows("SELECT DISTINCT ending FROM tuner.tuner_attempts")
    assert endings == [("finished",)], "nobody lost a lease, so no step was trained twice"


@pytest.mark.thorough
def test_training_goes_on_while_the_database_is_away(here):
    """Rows go into a file without a name, and into the ledger once it is back."""
    submit(here, trials="1", steps="1200", lr="0.01", pruner='"none"', checkpoint_seconds="100")
    worker = here.start("worker", "--until-idle", "--no-recorder")
    until(lambda: steps(here) > 0, "some steps")
    here.cluster.stop("immediate")
    (program,) = processes_in(here.folder)
    descriptors = Path(f"/proc/{program.pid}/fd")
    until(
        lambda: any(
            "/spill/" in str(one.readlink()) for one in descriptors.iterdir() if one.exists()
        ),
        "the spill file",
    )
    here.cluster.start()
    done = end(worker)
    assert done.code == 0, done.err
    assert "rows are kept in a file" in done.err
    finish(here)
    here.assert_whole("small", 1)
    assert here.rows("SELECT ending FROM tuner.tuner_attempts") == [("finished",)]


@pytest.mark.thorough
def test_ten_first_starts_at_once_on_an_empty_database(tmp_path, cluster):
    with team(tmp_path, cluster, cluster.database()) as here:
        write_study(here.folder, trials="3")
        upgrades = [here.start("db", "upgrade") for _ in range(10)]
        for process in upgrades:
            done = end(process)
            assert done.code == 0, done.err
        runs = [here.start("run", "study.toml", "--json") for _ in range(3)]
        for process in runs:
            done = end(process)
            assert done.code == 0, done.err
        here.assert_whole("small", 3)


DIGITS = """
[study]
name = "digits"
seed = 1

[workload]
factory = "studies.digits:mlp"

[training]
steps = 120
batch_size = 64
checkpoint_seconds = 0.05

[budget]
trials = 60
decide = 0.0
"""
PLACES = ["ask.reserved", "ask.drawn", "chunk.before_commit", "chunk.committed",
          "report.before_commit", "checkpoint.before_rename", "checkpoint.renamed",
          "outcome.before_commit", "outcome.committed"]  # fmt: skip


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_four_workers_killed_twenty_times(tmp_path, cluster, database):
    """At places where it hurts and at random moments; with an MLflow server between."""
    chance = random.Random(5)
    log = tmp_path / "fired"
    with team(tmp_path, cluster, database, TUNER_LEASE_SECONDS="3") as here:
        with mlflow_server(tmp_path, here.places.tracking) as address:
            here.mlflow = address
            submit(here, DIGITS)
            recorder = here.start("recorder")
            workers = [spawn(here, log, place) for place in PLACES[:4]]
            places, killed = PLACES[4:], 0
            while killed < 20:
                place = places.pop() if places else None
                victim = chance.choice(workers)
                if len(places) % 2 == 0 or victim.poll() is not None:
                    before = steps(here)
                    until(
                        lambda before=before, victim=victim: (
                            steps(here) > before or victim.poll() is not None
                        ),
                        "some steps, or the victim's end",
                    )
                if victim.poll() is None:
                    os.kill(victim.pid, signal.SIGKILL)
                victim.communicate()
                killed += 1
                workers[workers.index(victim)] = spawn(here, log, place)
            for worker in workers:
                worker.communicate(timeout=240)
            finish(here)
            recorder.send_signal(signal.SIGTERM)
            end(recorder)
            here.assert_whole("digits", 60)
        assert log.read_text(), "failpoints fired"


def spawn(here: Team, log: Path, place: str | None):
    """Start a worker that kills itself at a place, once, wherever it is reached the second time."""
    env = {"TUNER_FAILPOINTS": f"{place}=kill@2", "TUNER_FAILPOINTS_LOG": str(log)} if place else {}
    return here.start("worker", "--no-recorder", "--until-idle", **env)


@pytest.mark.thorough
def test_the_ui_opens_on_the_shared_database_and_shows_no_password(here):
    write_study(here.folder, trials="2")
    assert here.tuner("run", "study.toml").code == 0
    here.cluster.execute("CREATE ROLE ulla LOGIN PASSWORD 'hidden' IN ROLE tuner_reader")
    here.url = here.cluster.url(here.database, "ulla", "hidden")
    served = here.start("ui", "--port", "0", "--json", cold=True)
    assert served.stdout is not None
    address = json.loads(served.stdout.readline())["url"]
    until(lambda: answers(address), "the UI")
    mlflow = MlflowClient(tracking_uri=address)
    experiment = mlflow.get_experiment_by_name("small")
    assert len(mlflow.search_runs([experiment.experiment_id])) == 3
    for process in psutil.Process(served.pid).children(recursive=True):
        assert "hidden" not in " ".join(process.cmdline())
    served.send_signal(signal.SIGTERM)
    assert end(served).code == 0
