"""Who did what: every verb of a person is recorded, with the user, the time and the reason."""

from __future__ import annotations

import json
import os
import pwd

import psycopg
import pytest
from click.testing import CliRunner
from helpers import claim, completed, draw, submit
from postgres import Cluster
from processes import prepare
from training_here import PREFIXES, line_spec, publish, submitted, train

from tuner.cli.app import cli
from tuner.core.environment import Person
from tuner.core.errors import NotFoundError
from tuner.core.outcome import FAILED, Outcome
from tuner.ledger import Ledger, database, events, managing
from tuner.ledger.database import tracking_client
from tuner.ledger.events import Act
from tuner.operations import history, manage, notes, retry, status
from tuner.operations import submit as submission

ME = pwd.getpwuid(os.getuid()).pw_name
ANN = Act(by=Person(os_user="ann", host="laptop"), reason="She said so.")


@pytest.fixture
def call(ledger, places, monkeypatch, tmp_path):
    """Run a command in the folder of a trained study; return its output."""
    monkeypatch.chdir(tmp_path)
    for name in ("TUNER_DATABASE_URL", "MLFLOW_TRACKING_URI", "TUNER_CHECKPOINTS", "TUNER_ALLOW"):
        monkeypatch.delenv(name, raising=False)
    train(ledger, places, submitted(ledger))

    def run(*arguments):
        done = CliRunner().invoke(cli, arguments, standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return done.stdout

    return run


@pytest.mark.slow
def test_every_verb_of_a_person_is_recorded_with_who_and_why(call, ledger, places):
    study = submitted(ledger, budget={"trials": 9})
    verbs = [
        ("pause line --reason tests", "paused"),
        ("resume line --reason done", "resumed"),
        ("enqueue line lr=0.1 --raise-budget --reason guess", "enqueued"),
        ("timetable add line --cron 0~6~*~*~*", "timetable"),
        ("timetable remove line", "timetable"),
        ("stop line --reason enough", "stopped"),
        ("delete line --yes --reason space", "deleted"),
    ]
    for command, _ in verbs:
        call(*(word.replace("~", " ") for word in command.split()))
    told = json.loads(call("history", "line", "--json"))
    assert told["study"] == "line"
    found = [(one["action"], one["reason"]) for one in told["events"]]
    assert found == [
        ("submitted", None), ("changed", None), ("paused", "tests"), ("resumed", "done"),
        ("enqueued", "guess"), ("timetable", None), ("timetable", None), ("stopped", "enough"),
        ("deleted", "space"),
    ]  # fmt: skip
    assert {one["os_user"] for one in told["events"]} == {ME}
    times = [one["at"] for one in told["events"]]
    assert times == sorted(times)
    assert study.created_at <= times[0] + 1
    changed = told["events"][1]["details"]["budget"]
    assert changed["trials"][1] == 9
    assert f"paused by {ME}@" in call("history", "line"), "also of a study that is deleted"
    with pytest.raises(NotFoundError, match="none of that name was deleted"):
        call("history", "nothing")


def test_a_change_of_retraining_has_each_key_and_no_address(ledger):
    study = submitted(ledger)
    changed = line_spec(
        retrain={
            "gate": {"minimum_improvement": 0.1, "margins": {"night": 0.5}},
            # as an earlier version stored it
            "notify": {"webhook": "https://hooks.slack.com/services/T0/B0/hidden"},
        },
        budget={"trials": 9},
    )
    ledger.submit(changed, limit=9, workload=study.workload, act=ANN)
    found = events.history(ledger, "line")[-1]
    assert found.details["budget"] == {"trials": [4, 9]}
    assert found.details["retrain"]["gate.minimum_improvement"] == [0.0, 0.1]
    assert found.details["retrain"]["gate.margins.night"] == [None, 0.5]
    shown = history.in_words(history.as_json(found))
    assert "gate.minimum_improvement 0.0 -> 0.1" in shown
    assert "notify.webhook" in shown
    assert "hidden" not in shown


def test_a_call_that_changes_nothing_is_no_event(ledger):
    study = submit(ledger)
    for _ in range(2):
        managing.pause(ledger, study, ANN)
        managing.stop(ledger, study, "Stopped.", ANN)
    found = events.history(ledger, study.name)
    assert [(one.action, one.who, one.reason) for one in found] == [
        ("paused", "ann@laptop", "She said so."),
        ("stopped", "ann@laptop", "She said so."),
    ]


@pytest.mark.longer
def test_status_and_studies_name_the_submitter_and_what_was_done_last(call, ledger):
    submitted(ledger)
    call("pause", "line", "--reason", "lunch")
    shown = status.status(ledger, ledger.study("line"))
    assert (shown["submitted"]["os_user"], shown["last_action"]["action"]) == (ME, "paused")
    assert f"by {ME}" in call("studies")
    printed = call("status", "line")
    assert f"submitted by {ME}@" in printed
    assert "lunch" in printed


def test_a_retry_and_a_failure_are_recorded(ledger):
    study = submit(ledger, budget={"trials": 3})
    held = claim(ledger, study)
    draw(ledger, held)
    ledger.finish(held.lease, Outcome(kind=FAILED, reason="It broke."))
    retry.retry(ledger, study.name, failed=True, reason="a better disk")
    (one,) = history.history(ledger, study.name)
    assert (one["action"], one["reason"], one["details"]["trials"]) == (
        "retried", "a better disk", [1],
    )  # fmt: skip


@pytest.mark.slow
def test_mlflow_names_the_submitter_and_shows_state_answer_tags_and_notes(tmp_path, monkeypatch):
    folder = prepare(tmp_path / "here")
    monkeypatch.chdir(folder)
    places = database.addresses({}, folder)
    ledger = Ledger(database.open_ledger(places, create=False))
    spec = line_spec(study={"name": "vision/line"}, budget={"trials": 1})
    submission.submit(ledger, spec, submission.prepare(spec, PREFIXES).description)
    held = claim(ledger, ledger.study("vision/line"))
    draw(ledger, held)
    ledger.finish(held.lease, completed(0.5))
    publish(ledger, places)
    client = tracking_client(places)
    (experiment,) = [one for one in client.search_experiments() if one.name == "vision/line"]
    runs = client.search_runs([experiment.experiment_id])
    assert [run.data.tags["mlflow.user"] for run in runs] == [ME, ME]
    notes.tag(ledger, "vision/line", ["baseline"])
    notes.note(ledger, "vision/line", "as in the paper")
    publish(ledger, places)
    listed = client.get_experiment(experiment.experiment_id).tags
    expected = {"owner": ME, "state": "ended", "project": "vision", "tags": "baseline"}
    assert {key: listed[f"tuner.{key}"] for key in expected} == expected
    first = listed["mlflow.note.content"].partition("\n")[0]
    assert first.startswith(f"ended, by {ME}, baseline. Best: val\\_loss 0.5".replace("\\", ""))
    assert "Study vision/line." in listed["mlflow.note.content"], "MLflow's header has the end"
    assert listed["tuner.answer"].startswith("Best: val_loss 0.5 in trial 0")
    (parent,) = [run for run in runs if run.data.tags["tuner.trial"] == "study"]
    note = client.get_run(parent.info.run_id).data.tags["mlflow.note.content"]
    assert f"{ME}: as in the paper" in note


@pytest.mark.slow
def test_postgresql_says_who_and_no_login_forges_it(cluster: Cluster, migrated: str, tmp_path):
    cluster.execute("DROP ROLE IF EXISTS ann")
    cluster.execute("CREATE ROLE ann LOGIN IN ROLE tuner_worker")
    name = cluster.database(migrated).rpartition("/")[2]
    url = cluster.url(name, "ann")
    places = database.addresses({"TUNER_DATABASE_URL": url}, tmp_path)
    ledger = Ledger(database.open_ledger(places, create=False))
    study = submit(ledger)
    manage.pause(ledger, study.name, "lunch")
    (found,) = events.history(ledger, study.name)
    assert (found.db_role, found.os_user, found.reason) == ("ann", ME, "lunch")
    assert found.person == f"{ME} as ann", "people may share a user of the operating system"
    forged = (
        "INSERT INTO tuner.tuner_events (study, action, details, os_user, host{}) "
        "VALUES ('small', 'stopped', '{{}}', 'bob', 'there'{})"
    )
    for statement in (
        forged.format(", db_role", ", 'bob'"),
        forged.format(", happened_at", ", 1"),
        "UPDATE tuner.tuner_events SET reason = 'x'",
        "DELETE FROM tuner.tuner_events",
    ):
        with (
            psycopg.connect(url) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement)
    ledger.engine.dispose()
