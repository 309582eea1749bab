"""The recorder as a service: no target waits for the other, and quiet studies cost little."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import warm
from helpers import completed, rows, spec, unchecked
from processes import environment, optuna_left, prepare, until
from sqlalchemy import Engine, event
from test_bulk import ADAMW, SPACE, WORKLOAD, take

from tuner.core.errors import NotFoundError, UnavailableError
from tuner.core.processes import RecorderProcess
from tuner.ledger import Ledger, StudyRecord, decoding
from tuner.ledger.database import Addresses, tracking_client
from tuner.ledger.publications import Publications
from tuner.ledger.tables import published_studies
from tuner.operations import doctor
from tuner.tracking.mlflow import publisher as tracking_runs
from tuner.tracking.mlflow import study_run
from tuner.tracking.optuna.publisher import TrialPublisher
from tuner.tracking.recorder import Outages, Recorder, record

pytestmark = pytest.mark.slow


def begin(ledger: Ledger) -> StudyRecord:
    made = spec(space=SPACE, budget={"trials": 60})
    return ledger.submit(made, limit=60, workload=WORKLOAD)[0]


def train(ledger: Ledger, study: StudyRecord, trials: int) -> None:
    for index in range(trials):
        one = take(ledger, study, **ADAMW)
        ledger.finish(one.lease, completed(1.0 + index), chunk=rows(0, 10))


@pytest.fixture
def ledger(tracked: Ledger) -> Ledger:
    """Everything here is published."""
    return tracked


@contextmanager
def recording(engine: Engine, places: Addresses) -> Iterator[threading.Thread]:
    """Let a recorder run beside; the block's end tells it to finish, and waits for it."""
    closing, raised = threading.Event(), []

    def run() -> None:
        try:
            record(engine, places, names=(), closing=closing)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        closing.set()
        thread.join()
    if raised:
        raise raised[0]


def all_in_optuna(places: Addresses, trials: int) -> Callable[[], bool]:
    def look() -> bool:
        try:
            found = optuna_left(Path(places.lock).parent)
        except KeyError:  # not even the study yet
            return False
        return [state for state, *_ in found.values()] == ["COMPLETE"] * trials

    return look


def test_optuna_does_not_wait_for_an_mlflow_that_hangs(ledger, places, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    train(ledger, begin(ledger), 3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls and never answers
        hangs = replace(places, tracking=f"http://127.0.0.1:{silent.getsockname()[1]}")
        with (
            pytest.raises(UnavailableError, match="MLflow at http"),
            recording(ledger.engine, hangs),
        ):
            until(all_in_optuna(places, 3), "Optuna's rows")


def test_what_cannot_be_opened_is_opened_later_and_then_all_arrives_once(ledger, places, caplog):
    study = begin(ledger)
    train(ledger, study, 2)
    folder = Path(places.lock).parent / "later"
    folder.write_text("a file is in the way of the folder of MLflow's database")
    away = replace(places, tracking=f"sqlite:///{folder}/mlflow.db")
    with recording(ledger.engine, away) as thread:
        until(all_in_optuna(places, 2), "Optuna's rows")
        until(lambda: "retrying" in caplog.text, "the log")
        train(ledger, study, 2)
        until(all_in_optuna(places, 4), "Optuna's rows of what came later")
        assert thread.is_alive()
        folder.unlink()
        folder.mkdir()
    assert caplog.text.count("retrying") == 1
    assert doctor.examine(ledger.engine, away) == []


def test_an_outage_is_said_once_until_it_is_over(caplog):
    outages = Outages()
    with caplog.at_level(logging.WARNING):
        for text in ("the database is away", "the database is still away"):
            outages.report(text)
        other = threading.Thread(target=outages.report, args=("the database is still away",))
        other.start()
        other.join()
        assert caplog.messages == ["the database is away; retrying"]
        outages.clear()
        outages.report("the database is away again")
    assert caplog.messages[1:] == ["the database is away again; retrying"]


def test_a_pass_that_changes_nothing_is_not_repeated_for_ever(ledger, places, monkeypatch, caplog):
    """Whatever the cause: here a publisher that leaves all as it is."""
    train(ledger, begin(ledger), 3)
    monkeypatch.setattr(TrialPublisher, "publish", lambda *_, **__: None)
    with recording(ledger.engine, places):
        pass
    assert caplog.text.count("publishing it changes nothing") == 1


@pytest.mark.parametrize("external_id", ["x", "-1", "9" * 30, "9" * 5000])
def test_a_trial_with_an_impossible_id_is_left_out(
    ledger, places, caplog, monkeypatch, external_id
):
    monkeypatch.setattr(decoding, "_logged", set())
    study = begin(ledger)
    train(ledger, study, 2)
    with recording(ledger.engine, places):
        pass
    statement = f"""UPDATE tuner_published_trials SET final = FALSE, external_id = '{external_id}'
        WHERE target = 'optuna' AND trial_id = {ledger.trials(study.id)[0].id}"""
    with ledger.engine.begin() as tx, unchecked(tx.exec_driver_sql):
        tx.exec_driver_sql(statement)
    train(ledger, study, 1)
    with recording(ledger.engine, places):
        pass
    assert caplog.messages.count("the publication of trial 0 cannot be read; it is left out") == 1
    assert all_in_optuna(places, 3)()


def test_a_number_of_thousands_of_digits_in_a_tag_stops_nobody(ledger, places):
    """Whoever has an account of MLflow may write it; Python raises where it is converted."""
    study = begin(ledger)
    train(ledger, study, 2)
    with recording(ledger.engine, places):
        pass
    client, large = tracking_client(places), "9" * 4500
    found = client.search_runs([client.get_experiment_by_name(study.title).experiment_id])
    (first,) = [one for one in found if one.data.tags.get("tuner.trial") == "0"]
    client.set_tag(first.data.tags["mlflow.parentRunId"], "tuner.best_trial", large)
    client.set_tag(first.data.tags["mlflow.parentRunId"], "tuner.front", large)
    client.set_tag(first.info.run_id, "tuner.trial", large)
    train(ledger, study, 1)
    with recording(ledger.engine, places):
        pass
    problems = doctor.examine(ledger.engine, places)
    assert ("run_missing", 0) in {(one.kind, one.trial) for one in problems}
    doctor.repair(ledger.engine, places)
    left = doctor.examine(ledger.engine, places)
    assert [(one.kind, one.trial) for one in left] == [("run_extra", None)]


def test_a_quiet_ledger_costs_a_query_a_target(ledger, places):
    train(ledger, begin(ledger), 3)
    recorder = Recorder(ledger.engine, places)
    while recorder.publish():
        pass
    asked: list[str] = []

    @event.listens_for(ledger.engine, "before_cursor_execute")
    def note(*arguments: object) -> None:
        statement = str(arguments[2])
        if statement != "BEGIN":
            asked.append(statement)

    for _ in range(3):
        assert not recorder.publish()
        assert len(asked) == 2, asked
        asked.clear()
    recorder.close()


def test_a_study_in_motion_is_described_now_and_then_and_at_its_end(ledger, places, monkeypatch):
    monkeypatch.setattr(tracking_runs, "UPDATE_SECONDS", 1e9)
    study = begin(ledger)
    train(ledger, study, 1)
    running = take(ledger, study, **ADAMW)
    recorder = Recorder(ledger.engine, places)
    runs = recorder.projections["mlflow"]
    while recorder.publish():
        pass
    train(ledger, study, 1)
    assert runs.publish(waiting=False), "the trial is published at once"
    assert not runs.publish(waiting=False), "the description may wait"
    assert runs.behind()
    ledger.finish(running.lease, completed(0.5), chunk=rows(0, 10))
    assert runs.publish(waiting=False)
    assert not runs.behind(), "where nothing moves it does not wait"
    while recorder.publish():
        pass
    recorder.close()
    assert doctor.examine(ledger.engine, places) == []


@pytest.mark.parametrize(
    ("direction", "values", "numbers"),
    [
        ("minimize", [3.0, 5.0, 2.0, 2.0, 1.0], [0, 2, 4]),
        ("maximize", [3.0, 5.0, 2.0, 5.0, 6.0], [0, 1, 4]),
        ("minimize", [], []),
    ],
)
def test_the_parent_run_has_a_point_for_each_new_best_trial(ledger, direction, values, numbers):
    made = spec(space=SPACE, study={"direction": direction}, budget={"trials": 60})
    study, _ = ledger.submit(made, limit=60, workload=WORKLOAD)
    for value in values:
        one = take(ledger, study, **ADAMW)
        ledger.finish(one.lease, completed(value))
    points = study_run._improvements(ledger, study)
    assert [(one.step, one.value) for one in points] == [(n, values[n]) for n in numbers]


def test_a_study_that_was_never_there_is_named(ledger, places):
    closing = threading.Event()
    closing.set()
    with pytest.raises(NotFoundError, match="there is no study 'typo'"):
        record(ledger.engine, places, names=["typo"], closing=closing)


def test_a_study_that_was_deleted_meanwhile_cannot_be_claimed(ledger):
    assert not Publications(ledger.engine, "mlflow", "elsewhere:1:1").claim(77)


def test_a_study_that_another_recorder_forgot_is_looked_at_from_its_beginning(ledger, places):
    study = begin(ledger)
    train(ledger, study, 3)
    ours, other = Recorder(ledger.engine, places), Recorder(ledger.engine, places)
    while ours.publish():
        pass
    train(ledger, study, 1)
    while ours.publish():
        pass
    assert not ours.behind()
    with other.claimed(study):
        other.projections["mlflow"].publications.forget(study.id)
    assert ours.behind()
    while ours.publish():
        pass
    assert doctor.examine(ledger.engine, places) == []
    with ledger.engine.begin() as tx:
        left = tx.execute(published_studies.select()).all()
    assert {row.expires_at for row in left} == {0.0}, "no claim stays behind"


def test_a_recorder_that_could_not_begin_is_started_again_at_the_end(tmp_path, monkeypatch):
    """Such as in an outage that is over by then."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", warm.python())
    beside = RecorderProcess(())
    first = beside._process
    until(lambda: first.poll() is not None, "its end")
    assert first.returncode == 4, "there is no ledger yet"
    prepare(tmp_path)
    assert beside.close()
