"""Projects, their quotas, and finding studies by project, owner, state, tag and date."""

from __future__ import annotations

import json
import os
import pwd

import pytest
from click.testing import CliRunner
from helpers import claim, completed, draw, rows, spec, submit, unchecked
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import literal, select

from tuner.cli.app import cli
from tuner.config import reading
from tuner.config.study import StudyTable
from tuner.core.errors import StudyFileError, UsageError
from tuner.core.text import DEFAULT_PROJECT, project_of
from tuner.ledger import projects, tables
from tuner.ledger.projects import Project, Quota
from tuner.operations import context, notes
from tuner.operations import projects as projects_of
from tuner.operations import studies as listing
from tuner.operations import submit as submission
from tuner.operations.context import acting
from tuner.operations.studies import Wanted

ME = pwd.getpwuid(os.getuid()).pw_name
FILE = """
[study]
name = "small"
{}
[workload]
factory = "studies.digits:digits"
[training]
steps = 10
[budget]
trials = 1
"""


# --- names


@pytest.mark.parametrize(
    ("line", "environment", "name"),
    [
        ("", "default", "small"),
        ("", "vision", "vision/small"),
        ('project = "nlp"', "vision", "nlp/small"),
        ('project = "default"', "vision", "small"),
    ],
)
def test_a_study_is_in_the_project_of_its_file_or_else_of_the_environment(line, environment, name):
    found = reading.parse(FILE.format(line), "study.toml", project=environment)
    assert found.study.name == name
    read = type(found).model_validate_json(found.model_dump_json())
    assert (read, read.digest()) == (found, found.digest())
    named = reading.parse(FILE.format(""), "study.toml", ["study.name=a/b"], project="vision")
    assert named.study.name == "a/b", "a name with a slash has its project"


def test_a_project_has_letters_digits_and_little_else():
    with pytest.raises(StudyFileError, match=r"\[study\] project"):
        reading.parse(FILE.format('project = "a/b"'), "study.toml")
    with pytest.raises(ValueError, match="with its project"):
        StudyTable(name="n" * 249, project="vision")


def test_commands_name_studies_of_the_project_of_the_environment(monkeypatch):
    monkeypatch.setenv("TUNER_PROJECT", "vision")
    names = {name: context.whole_name(name) for name in ("small", "nlp/small", "default/small")}
    assert [*names.values()] == ["vision/small", "nlp/small", "small"]
    monkeypatch.setenv("TUNER_PROJECT", "a b")
    with pytest.raises(UsageError, match="the name of a project: expected"):
        context.whole_name("small")


@pytest.mark.longer
@given(name=st.text(alphabet="a/'é%", max_size=6))
def test_the_database_finds_the_same_project_in_a_name(new_ledger, name):
    with new_ledger().engine.begin() as tx:
        assert tx.scalar(select(tables.project_of(literal(name)))) == project_of(name)


# --- quotas


def limit(ledger, name, **quota):
    projects.put(ledger, Project(name=name, quota=Quota(**quota)), acting())


def test_no_more_workers_than_its_quota_train_a_project(either):
    first, second = (submit(either, study={"name": f"vision/{one}"}) for one in "ab")
    other = submit(either, study={"name": "other"})
    limit(either, "vision", workers=2)
    held = claim(either, first, "w1")
    claim(either, second, "w2")
    claim(either, first, "w2")
    assert either.claim(second.id, "w3", {}) is None
    claim(either, other, "w3")
    assert either.claim(first.id, "w1", {}) is not None, "it has a place already"
    for lease in (held.lease,):
        either.release(lease, "interrupted", "for this test")
    assert either.claim(second.id, "w3", {}) is None, "the other trial of w1 goes on"
    limit(either, "vision", workers=3)
    assert either.claim(second.id, "w3", {}) is not None
    (found,) = [one for one in projects_of.listed(either) if one["project"] == "vision"]
    assert (found["taken"]["workers"], found["studies"]) == (3, 2)
    assert found["quota_reached"] == "project 'vision' has its quota of 3 workers at a time"


def test_no_trial_starts_once_the_steps_of_a_week_are_trained(either):
    study, other = submit(either, study={"name": "vision/a"}), submit(either)
    limit(either, "vision", steps_week=30.0)
    for _ in range(2):
        held = claim(either, study)
        draw(either, held)
        either.finish(held.lease, completed(1.0), chunk=rows(0, 15))
    assert either.claim(study.id, "w", {}) is None
    assert either.claim(other.id, "w", {}) is not None
    assert projects_of.change(either, "vision", no_limits=True)["quota_reached"] is None
    assert either.claim(study.id, "w", {}) is not None


def test_a_row_of_a_project_that_is_no_quota_limits_nothing(ledger):
    study = submit(ledger, study={"name": "vision/a"})
    writing = ledger.engine.execution_options(writes=True).begin()
    with writing as tx, unchecked(tx.exec_driver_sql):
        tx.exec_driver_sql("INSERT INTO tuner_projects VALUES ('vision', 'none', 'x', 0, -1)")
    assert claim(ledger, study)
    assert projects_of.show(ledger, "vision")["quota"] == {"workers": None, "steps_week": None}


# --- finding studies


@pytest.fixture
def call(ledger, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("TUNER_DATABASE_URL", "MLFLOW_TRACKING_URI", "TUNER_PROJECT"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        done = CliRunner().invoke(cli, arguments, standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return json.loads(done.stdout) if "--json" in arguments else done.stdout

    return run


@pytest.fixture
def three(ledger):
    """A study of mine with a tag, one of a project, and one that nobody submitted."""
    for name in ("mine", "vision/other"):
        made = spec(study={"name": name}, budget={"trials": 1})
        submission.submit(ledger, made, {"code": "c0de", "data": "da7a"})
    submit(ledger, study={"name": "old"})
    held = claim(ledger, ledger.study("mine"))
    draw(ledger, held)
    ledger.finish(held.lease, completed(0.125))
    notes.tag(ledger, "mine", ["baseline", "paper"])
    return ledger


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, {"mine", "old", "vision/other"}),
        ({"project": "vision"}, {"vision/other"}),
        ({"project": DEFAULT_PROJECT}, {"mine", "old"}),
        ({"owners": (ME,)}, {"mine", "vision/other"}),
        ({"owners": ("nobody",)}, set()),
        ({"states": ("ended",)}, {"mine"}),
        ({"tags": ("paper", "baseline")}, {"mine"}),
        ({"tags": ("paper", "x")}, set()),
        ({"since": 0.0}, {"mine", "old", "vision/other"}),
        ({"since": 4e9}, set()),
    ],
)
def test_studies_are_found_by_what_they_are(three, wanted, found):
    assert {one["study"] for one in listing.studies(three, Wanted(**wanted))} == found


@pytest.mark.longer
def test_the_list_has_the_last_active_one_first_with_its_best_value(three, call, monkeypatch):
    lines = call("studies").splitlines()
    assert lines[0].startswith(
        f"mine: ended, 1 completed of 1, best val_loss 0.125, by {ME}, active "
    )
    assert lines[0].endswith("[baseline, paper]")
    monkeypatch.setenv("TUNER_PROJECT", "vision")
    assert [one["study"] for one in call("studies", "--json")["studies"]] == ["vision/other"]
    assert call("status", "other", "--json")["project"] == "vision"
    assert "No study is like that." in call("studies", "--tag", "x")


@pytest.mark.slow
def test_notes_and_tags_are_added_later_and_are_not_those_of_a_deleted_study(three, call):
    call("note", "mine", "as in the paper")
    assert call("tag", "mine", "paper", "--remove", "--json")["tags"] == ["baseline"]
    shown = call("status", "mine")
    assert "Tags: baseline" in shown
    assert f"noted by {ME}@" in shown
    assert "as in the paper" in shown
    assert call("status", "mine", "--json")["last_action"] is None, "nothing was changed"
    with pytest.raises(UsageError, match="tags of up to 64 characters"):
        call("tag", "mine", "two words")
    with pytest.raises(UsageError, match="a note of 1 to"):
        call("note", "mine", " ")
    assert [one["action"] for one in call("history", "mine", "--json")["events"]] == [
        "submitted", "tagged", "noted", "tagged",
    ]  # fmt: skip
    call("delete", "mine", "--yes")
    made = spec(study={"name": "mine"})
    submission.submit(three, made, {"code": "c0de", "data": "da7a"})
    fresh = call("status", "mine", "--json")
    assert (fresh["tags"], fresh["notes"]) == ([], [])


@pytest.mark.longer
def test_the_command_sets_and_shows_a_projects_limits(three, call):
    assert call("project") == (
        "default: 2 studies, 0 workers now, 0 steps in seven days\n"
        "vision: 1 study, 0 workers now, 0 steps in seven days\n"
    )
    call(
        "project",
        "vision",
        "--weight",
        "2",
        "--workers",
        "0",
        "--steps-a-week",
        "1e6",
        "--reason",
        "holidays",
    )
    told = call("project", "vision", "--shared")
    assert told.splitlines() == [
        "vision: 1 study, 0 of 0 workers now, 0 of 1,000,000 steps in seven days, weight 2, shared",
        "No worker takes a trial: project 'vision' has its quota of 0 workers at a time.",
    ]
    assert "It waits: project 'vision' has its quota" in call("status", "vision/other")
    (first, second) = call("history", "vision/", "--json")["events"]
    assert (first["action"], first["reason"], second["details"]["shared"]) == (
        "project", "holidays", True,
    )  # fmt: skip
    with pytest.raises(UsageError, match="name the project"):
        call("project", "--workers", "1")
