"""What Optuna and MLflow have follows from the ledger alone: it can be lost and written again."""

from __future__ import annotations

import math
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import helpers
import numpy as np
import pytest
from postgres import free_port
from processes import (
    STUDY,
    assert_whole,
    change,
    copy,
    end,
    left,
    mlflow_left,
    optuna_left,
    prepare,
    reader,
    rows,
    start,
    stopped,
    train_here,
    tuner,
    until,
    write_study,
)
from team import mlflow_server

from tuner.ledger import Entry, database
from tuner.operations import doctor
from tuner.tracking.recorder import Recorder, record

pytestmark = pytest.mark.slow

TABLES = (
    "experiments",
    "runs",
    "params",
    "tags",
    "metrics",
    "latest_metrics",
    "inputs",
    "datasets",
)
TIMES = "SELECT tags.value, m.key, m.step, m.value, m.timestamp FROM metrics m JOIN tags ON tags.run_uuid = m.run_uuid AND tags.key = 'tuner.trial'"  # noqa: E501


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder where a study was trained and published."""
    folder = prepare(tmp_path_factory.mktemp("trained"))
    assert tuner(folder, "run", "study.toml").code == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of that folder."""
    return copy(trained, tmp_path)


def everything(folder: Path, file: str = "mlflow.db") -> dict[str, list]:
    return {
        table: sorted(map(repr, rows(folder, f"SELECT * FROM {table}", file))) for table in TABLES
    }


@contextmanager
def a_recorder(folder: Path):
    places = database.addresses({}, folder)
    engine = database.ledger_engine(places.ledger)
    yield Recorder(engine, places)
    engine.dispose()


@pytest.mark.parametrize("step", [0, 10])
def test_an_evaluation_counts_though_the_guard_stops_at_its_row(step, tracked, places):
    study = helpers.submit(tracked)
    claimed = helpers.claim(tracked, study)
    helpers.draw(tracked, claimed)
    recorder = Recorder(tracked.engine, places)
    if step:
        tracked.commit([Entry(lease=claimed.lease, chunk=helpers.rows(0, step))])
        recorder.publish()
    last = helpers.rows(step, step + 1, losses=[math.nan])
    tracked.commit([Entry(lease=claimed.lease, chunk=last, outcome=helpers.diverged(step))])
    recorder.publish()
    recorder.close()
    assert doctor.examine(tracked.engine, places) == []
    points = mlflow_left(Path(places.lock).parent, study.name)["0"]["points"]
    assert [at for key, at, *_ in points if key == "val_loss"] == sorted({0, step})
    assert [at for key, at, *_ in points if key == "train_loss"] == list(range(step))


@pytest.mark.parametrize("published", [False, True])
def test_an_evaluation_that_was_measured_after_its_rows_were_committed_is_published(
    published, tracked, places
):
    study = helpers.submit(tracked)
    claimed = helpers.claim(tracked, study)
    helpers.draw(tracked, claimed)
    recorder = Recorder(tracked.engine, places)
    last = helpers.rows(5, 10)
    nothing = {"eval_steps": np.empty(0, dtype=np.int64), "eval_times": np.empty(0)}
    metrics = {name: np.empty(0) for name in last.metrics}
    tracked.append(claimed.lease, helpers.rows(0, 5))
    tracked.append(claimed.lease, replace(last, metrics=metrics, **nothing))
    if published:
        recorder.publish()
    late = last.after(10, evaluated=False)
    tracked.finish(claimed.lease, helpers.completed(0.5), chunk=late)
    recorder.publish()
    recorder.close()
    assert doctor.examine(tracked.engine, places) == []
    points = mlflow_left(Path(places.lock).parent, study.name)["0"]["points"]
    assert [at for key, at, *_ in points if key == "val_loss"] == [0, 10]
    assert [at for key, at, *_ in points if key == "train_loss"] == list(range(10))


@pytest.mark.thorough
def test_a_lost_mlflow_is_filled_again(folder):
    before, times = left(folder), sorted(rows(folder, TIMES, "mlflow.db"))
    for file in folder.glob("mlflow.db*"):
        file.unlink()
    with a_recorder(folder) as recorder:
        recorder.republish(reader(folder).study("small"))
    assert left(folder) == before
    assert sorted(rows(folder, TIMES, "mlflow.db")) == times
    assert_whole(folder)


def test_optunas_lost_rows_are_written_again(folder):
    before = left(folder)
    tables = [
        name for (name,) in rows(folder, "SELECT name FROM sqlite_master WHERE type = 'table'")
    ]
    for table in tables:
        if table.startswith(("trial", "stud")) and not table.startswith("tuner_"):
            change(folder, f"DELETE FROM {table}")
    with a_recorder(folder) as recorder:
        recorder.republish(reader(folder).study("small"))
    assert left(folder) == before
    assert_whole(folder)


def test_publishing_twice_changes_nothing(folder):
    before = everything(folder)
    optuna = left(folder).optuna
    with a_recorder(folder) as recorder:
        assert not recorder.behind()
        assert not recorder.publish()
        recorder.republish(reader(folder).study("small"))
    assert everything(folder) == before
    assert left(folder).optuna == optuna


def test_a_recorder_that_has_published_all_sees_what_comes_after(folder):
    with a_recorder(folder) as recorder:
        assert not recorder.publish()
        change(folder, "UPDATE tuner_published_studies SET revision = 1")
        assert recorder.publish()
        assert not recorder.behind()


def test_two_recorders_at_once_double_nothing(folder):
    before = left(folder)
    for file in folder.glob("mlflow.db*"):
        file.unlink()
    for table in ("tuner_published_trials", "tuner_published_studies"):
        change(folder, f"DELETE FROM {table}")
    both = [start(folder, "recorder", "--once") for _ in range(2)]
    ended = [end(one) for one in both]
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    assert left(folder) == before
    assert_whole(folder)


def nothing_is_published(folder: Path) -> None:
    """In MLflow, and the ledger knows that."""
    for file in folder.glob("mlflow.db*"):
        file.unlink()
    change(folder, "DELETE FROM tuner_published_trials WHERE target = 'mlflow'")
    change(folder, "UPDATE tuner_published_studies SET external_id = NULL WHERE target = 'mlflow'")


def test_a_recorder_takes_over_from_one_that_was_killed(folder):
    """At once, not when the claim expires."""
    nothing_is_published(folder)
    armed = {
        "TUNER_FAILPOINTS": "recorder.batch_logged=kill@3",
        "TUNER_FAILPOINTS_LOG": str(folder / "log"),
    }
    assert tuner(folder, "recorder", "--once", env=armed).code == -9
    claims = rows(folder, "SELECT target FROM tuner_published_studies WHERE expires_at > 0")
    assert claims == [("mlflow",)]
    assert tuner(folder, "recorder", "--once").code == 0
    assert_whole(folder)


def test_a_recorder_that_slept_past_its_claim_leaves_no_second_runs(folder):
    """It had told the ledger of runs that it was about to make; another made them meanwhile."""
    nothing_is_published(folder)
    asleep = start(folder, "recorder", "--once", env={"TUNER_FAILPOINTS": "recorder.begun=stop"})
    until(lambda: stopped(folder), "its sleep")
    (program,) = stopped(folder)
    change(folder, "UPDATE tuner_published_studies SET expires_at = 1 WHERE target = 'mlflow'")
    assert tuner(folder, "recorder", "--once").code == 0
    assert_whole(folder)
    program.resume()
    assert end(asleep).code == 0
    deleted = "SELECT count(*) FROM runs WHERE lifecycle_stage = 'deleted'"
    assert rows(folder, deleted, "mlflow.db") == [(8,)], "it had made them"
    assert_whole(folder)


def test_a_recorder_waits_for_one_that_works(folder):
    """One that is told to end does not leave while what another has claimed is not published."""
    change(folder, "UPDATE tuner_published_studies SET revision = 1")
    live = Recorder(
        database.ledger_engine(database.addresses({}, folder).ledger),
        database.addresses({}, folder),
    )
    assert live._publications["mlflow"].claim(1)
    waiting = start(folder, "recorder", "--once")
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=6)
    live._publications["mlflow"].release(1)
    assert end(waiting).code == 0
    assert_whole(folder)


def test_a_recorder_runs_until_it_is_stop_on_signals(folder):
    change(folder, "UPDATE tuner_published_studies SET revision = 1")
    process = start(folder, "recorder")
    revision = "SELECT revision FROM tuner_published_studies WHERE target = 'mlflow'"
    until(lambda: rows(folder, revision) != [(1,)], "the recorder to publish")
    process.terminate()
    assert end(process).code == 0


# --- MLflow as a server


@pytest.mark.thorough
def test_a_server_that_was_away_gets_the_same_runs_as_a_file(trained, tmp_path):
    folder, port = prepare(tmp_path), free_port()
    (folder / "mlflow.db").unlink()
    url = {"MLFLOW_TRACKING_URI": f"http://user:secret@127.0.0.1:{port}"}

    away = tuner(folder, "run", "study.toml", "--json", env=url)
    assert away.code == 4
    assert sum(away.json["trials"].values()) == 8
    assert away.json["best"]["run_id"] is None
    assert away.json["tracking_uri"] == f"http://user:***@127.0.0.1:{port}"
    assert "Run `tuner recorder --once` to publish the rest" in away.err
    assert f"MLflow at http://user:***@127.0.0.1:{port} cannot be used" in away.err
    assert "secret" not in away.err + away.out
    assert "Traceback" not in away.err
    assert optuna_left(folder) == optuna_left(trained), "Optuna does not wait for MLflow"

    once = url | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    for command in ("recorder --once", "doctor"):
        refused = tuner(folder, *command.split(), env=once)
        assert refused.code == 4
        assert "cannot be used" in refused.err
        assert "secret" not in refused.err + refused.out
        assert "Traceback" not in refused.err

    write_study(folder, name='"other"', trials="2")
    assert tuner(folder, "submit", "study.toml").code == 0
    worker = start(folder, "worker", env=once)
    assert any("retrying" in line for line in worker.stderr), "its recorder tried and failed"
    elsewhere = tmp_path / "server"
    elsewhere.mkdir()
    try:
        ended = "SELECT count(*) FROM tuner_trials WHERE state != 'running'"
        until(lambda: rows(folder, ended) == [(10,)], "both studies to be trained")
        with mlflow_server(elsewhere, f"sqlite:///{elsewhere}/server.db", port=port):
            finished = "SELECT count(*) FROM runs WHERE status != 'RUNNING'"
            until(lambda: rows(elsewhere, finished, "server.db") == [(12,)], "all runs")
            worker.terminate()
            done = end(worker)
            assert done.code == 0, done.err
            doctor = tuner(folder, "doctor", "--json", env=url)
            assert (doctor.code, doctor.json["problems"]) == (0, [])
    finally:
        worker.kill()
    assert "retrying" not in done.err, "said once, not at each try"
    assert mlflow_left(elsewhere, file="server.db") == mlflow_left(trained)
    assert not (folder / "mlflow.db").exists()


# --- what is hard to publish


@pytest.mark.parametrize("how", ["nan", "inf", "-inf"])
def test_a_long_curve_and_one_that_is_not_finite(how, tmp_path):
    """More points than MLflow takes at once; nothing that is not finite reaches it."""
    factory = f'"tests.workloads:breaking"\narguments = {{ how = "{how}" }}'
    study = STUDY.replace("lr = { low = 1e-3, high = 10.0 }", "lr = [1e-5, 0.011]")
    study = study.replace('{ name = "tpe", startup_trials = 3, start = "random" }', '"grid"')
    plain = {"schedule": '"constant"', "optimizer": '"sgd"', "pruner": '"none"'}
    folder = prepare(tmp_path, study, factory=factory, steps="1100", **plain)
    train_here(folder)
    assert_whole(folder)
    found = left(folder)
    assert [found.ledger[n]["state"] for n in (0, 1)] == ["completed", "diverged"]
    points = {number: found.mlflow[number]["points"] for number in ("0", "1")}
    losses = [point for point in points["0"] if point[0] == "train_loss"]
    assert [step for _, step, *_ in losses] == list(range(1100))
    assert found.ledger[1]["stopped_step"] == 91, "the first step above 1/0.011"
    losses = [point for point in points["1"] if point[0] == "train_loss"]
    assert [step for _, step, *_ in losses] == list(range(91))
    assert found.mlflow["1"]["tags"]["tuner.outcome"] == "diverged"
    for _, _, value, is_nan in (*points["0"], *points["1"]):
        assert not is_nan
        assert abs(value) < 1e100


NAMES = {
    "quotes": """it's a "study" \\' OR 1=1 --  [bold]x[/bold]""",
    "slashes": "../größe/🚀\\c%20?d=1&e#f",
    "long": "学" * 200,
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_study_may_have_any_name(name, tmp_path):
    folder = prepare(tmp_path, name=f"'''{name}'''", trials="2")
    train_here(folder)
    assert_whole(folder, name=name)
    with a_recorder(folder) as recorder:
        recorder.republish(reader(folder).study(name))
    assert_whole(folder, name=name)
    shown = tuner(folder, "status", name)
    assert shown.code == 0, shown.err
    assert name in shown.out


def test_an_experiment_that_somebody_deleted_is_named(folder):
    client = database.tracking_client(database.addresses({}, folder))
    client.delete_experiment(client.get_experiment_by_name("small").experiment_id)
    change(folder, "UPDATE tuner_published_studies SET revision = 1")
    done = tuner(folder, "recorder", "--once")
    assert done.code == 4
    assert "'small' is deleted in MLflow; restore it" in done.err
    assert "Traceback" not in done.err


def test_the_recorder_ends_only_when_nothing_is_left(folder):
    """What comes in while it is closing is published too."""
    places = database.addresses({}, folder)
    engine = database.ledger_engine(places.ledger)
    change(folder, "UPDATE tuner_published_studies SET revision = 1")
    closing = threading.Event()
    closing.set()
    record(engine, places, names=["small"], closing=closing)
    engine.dispose()
    assert_whole(folder)
