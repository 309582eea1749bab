"""A study belongs to who submitted it: others are asked, or say so, before they change it."""

from __future__ import annotations

import io
import sys

import click
import psycopg
import pytest
from click.testing import CliRunner
from helpers import spec, submit
from postgres import Cluster
from training_here import PREFIXES, line_spec

import tuner
from tuner.cli import base
from tuner.cli.app import cli
from tuner.core.environment import Person
from tuner.core.errors import UnavailableError, UsageError
from tuner.ledger import Ledger, database, projects
from tuner.ledger.events import Act
from tuner.ledger.projects import Project
from tuner.operations import ownership
from tuner.operations import submit as submission
from tuner.operations.context import acting

ANN = Act(by=Person(os_user="ann", host="laptop"))
CHANGES = [
    "pause vision/anns", "resume vision/anns", "stop vision/anns", "delete vision/anns --force",
    "enqueue vision/anns lr=0.1", "retry vision/anns --failed", "rollback vision/anns",
    "timetable add vision/anns --cron @daily",
]  # fmt: skip


@pytest.fixture
def anns(ledger, monkeypatch, tmp_path):
    """A study that Ann has submitted, to a project."""
    monkeypatch.chdir(tmp_path)
    for name in ("TUNER_DATABASE_URL", "MLFLOW_TRACKING_URI", "TUNER_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    made = line_spec(study={"name": "vision/anns"})
    described = submission.prepare(made, PREFIXES).description
    return ledger.submit(made, limit=4, workload=described, act=ANN)[0]


def call(*arguments):
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.mark.parametrize("command", CHANGES)
def test_a_script_that_changes_a_study_of_somebody_else_is_refused(anns, ledger, command):
    with pytest.raises(UsageError, match="'vision/anns' was submitted by ann@laptop; say yes"):
        call(*command.split())
    assert ledger.study("vision/anns") == anns


def test_it_may_say_yes_or_the_project_may_be_shared(anns, ledger):
    call("pause", "vision/anns", "--yes", "--reason", "she asked me to")
    assert ledger.study("vision/anns").state == "paused"
    projects.put(ledger, Project(name="vision", shared=True), acting())
    call("resume", "vision/anns")
    assert ledger.study("vision/anns").state == "open"
    call("note", "vision/anns", "Everybody may write a note.")


def test_a_study_of_mine_or_of_nobody_is_changed_at_once(anns, ledger):
    submit(ledger, study={"name": "old"})  # an earlier version of tuner recorded nobody
    submission.submit(ledger, spec(study={"name": "mine"}), {"code": "c0de", "data": "da7a"})
    for name in ("old", "mine"):
        call("pause", name)
        assert ledger.study(name).state == "paused"


def test_submitting_it_again_is_no_change_but_another_budget_is(anns, ledger):
    described = anns.workload
    made = line_spec(study={"name": "vision/anns"})
    submission.submit(ledger, made, described)
    larger = line_spec(study={"name": "vision/anns"}, budget={"trials": 5})
    with pytest.raises(UsageError, match="was submitted by ann@laptop"):
        submission.submit(ledger, larger, described)
    submission.submit(ledger, larger, described, ownership.agree)
    assert ledger.study("vision/anns").spec.budget.trials == 5


def test_python_says_yes_too(anns):
    study = tuner.load("vision/anns")
    with pytest.raises(UsageError, match="in Python yes=True"):
        study.pause()
    assert study.pause(yes=True)["state"] == "paused"
    study.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_person_at_a_terminal_is_asked(anns, ledger, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    base.open_own("vision/anns", yes=False).engine.dispose()
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    with pytest.raises(click.Abort):
        base.open_own("vision/anns", yes=False)


@pytest.mark.slow
def test_on_postgresql_the_login_counts_too_and_only_the_owner_sets_quotas(
    cluster: Cluster, migrated: str, tmp_path
):
    name = cluster.database(migrated).rpartition("/")[2]
    ledgers = {}
    for login in ("ann", "bob"):
        cluster.execute(f"DROP ROLE IF EXISTS {login}")
        cluster.execute(f"CREATE ROLE {login} LOGIN IN ROLE tuner_worker")
        places = database.addresses({"TUNER_DATABASE_URL": cluster.url(name, login)}, tmp_path)
        ledgers[login] = Ledger(database.open_ledger(places, create=False))
    submission.submit(ledgers["ann"], spec(), {"code": "c0de", "data": "da7a"})
    ownership.check(ledgers["ann"], "small", ownership.refuse)
    with pytest.raises(UsageError, match=r"submitted by \S+ \(database login ann\)"):
        ownership.check(ledgers["bob"], "small", ownership.refuse)
    with pytest.raises(UnavailableError, match="permission denied"):
        projects.put(ledgers["bob"], Project(name="default", shared=True), acting())
    with psycopg.connect(cluster.url(name)) as owner:
        owner.execute("INSERT INTO tuner.tuner_projects VALUES ('default', 0, NULL, true, 1)")
    ownership.check(ledgers["bob"], "small", ownership.refuse)
    assert ledgers["bob"].claim(ledgers["bob"].study("small").id, "w", {}) is None
    for one in ledgers.values():
        one.engine.dispose()
