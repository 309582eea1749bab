"""Summaries of all studies agree with those of each, at a cost that does not depend on how many."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from click.testing import CliRunner
from helpers import claim, completed, diverged, draw, rows, submit
from sqlalchemy import Engine, event

from tuner.cli.app import cli
from tuner.core.outcome import COMPLETED
from tuner.ledger import Ledger, StudyRecord
from tuner.ledger.summaries import last_activity, summaries
from tuner.operations import retention, status, studies

OF_ONE = {"unreadable", "notes", "quota_reached", "spend"}
"""What is told of one study alone."""


def train(ledger: Ledger, study: StudyRecord, *values: float | None) -> None:
    """End one trial for each value; None: diverged."""
    for value in values:
        held = claim(ledger, study)
        draw(ledger, held)
        outcome = diverged() if value is None else completed(value)
        ledger.finish(held.lease, outcome, chunk=rows(0, 10))


def a_few(ledger: Ledger) -> list[StudyRecord]:
    """Submit studies of every kind: minimized, maximized, running, untouched."""
    lowest = submit(ledger, study={"name": "lowest"})
    train(ledger, lowest, 2.0, 1.0, None, 1.0)
    highest = submit(ledger, study={"name": "highest", "direction": "maximize"})
    train(ledger, highest, 2.0, 3.0)
    draw(ledger, claim(ledger, highest, "somebody"))
    submit(ledger, study={"name": "untouched"}, probe={"enabled": True})
    return ledger.studies()


def statements(ledger: Ledger, read: Callable[[], object]) -> int:
    """Count the statements of a call."""
    found: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        found.append(statement)

    event.listen(ledger.engine, "before_cursor_execute", note)
    try:
        read()
    finally:
        event.remove(ledger.engine, "before_cursor_execute", note)
    return len(found)


@pytest.mark.longer
def test_summaries_are_what_single_reads_find(either):
    known = a_few(either)
    found = summaries(either, known)
    for study in known:
        summary, best = found[study.id], either.best(study)
        assert summary.counts == either.counts(study.id)
        assert summary.imported == either.imported(study.id)
        assert summary.silent == either.silent(study.id)
        assert (summary.best is None) == (best is None)
        if best is not None and summary.best is not None:
            assert best.state == COMPLETED
            assert (summary.best.number, summary.best.value) == (best.number, best.value)
            assert summary.best.params == best.params
    best = {one["study"]: one["best"] for one in studies.studies(either)}
    assert {name: one and one["number"] for name, one in best.items()} == {
        "lowest": 1, "highest": 1, "untouched": None,
    }  # fmt: skip
    assert studies.studies(either) == [
        {key: value for key, value in one.items() if key not in OF_ONE}
        for one in sorted(
            (status.status(either, study) for study in known),
            key=lambda one: one["last_activity"],
            reverse=True,
        )
    ]
    workers = {one["study"]: one["workers"] for one in studies.studies(either)}
    (worker,) = workers.pop("highest")
    assert (worker["worker"], worker["trial"]) == ("somebody", 2)
    assert [*workers.values()] == [[], []]


@pytest.mark.longer
def test_status_reads_the_last_trials_once(ledger, tmp_path, monkeypatch):
    """For its verdicts, and for those that cannot be read."""
    study = submit(ledger)
    train(ledger, study, 2.0, 1.0)
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.exec_driver_sql("UPDATE tuner_trials SET params = '[]' WHERE number = 1")
    read: list[str] = []

    @event.listens_for(Engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "ORDER BY tuner_trials.revision DESC" in statement and "params" in statement:
            read.append(statement)

    monkeypatch.chdir(tmp_path)
    try:
        shown = CliRunner().invoke(cli, ["status", study.name], catch_exceptions=False).output
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert "trial 1 of study 1 cannot be read: params" in " ".join(shown.split())
    assert len(read) == 1


def test_the_last_activity_of_a_study_is_that_of_all_its_versions(ledger):
    for study in a_few(ledger):
        ends = [one.ended_at or 0.0 for one in ledger.trials(study.id)]
        assert last_activity(ledger)[study.name] == max([study.created_at, *ends])


@pytest.mark.longer
def test_the_number_of_statements_does_not_depend_on_the_number_of_studies(ledger, places):
    submit(ledger)
    reads = (
        lambda: studies.studies(ledger),
        lambda: retention.plan(ledger, places, older_than=1000),
    )
    with_one = [statements(ledger, read) for read in reads]
    a_few(ledger)
    assert [statements(ledger, read) for read in reads] == with_one
