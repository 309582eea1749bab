"""A worker that holds a trial and measures nothing is named, in the ledger and in the summary."""

from __future__ import annotations

import pytest
from helpers import completed, rows, spec
from sqlalchemy import update
from test_bulk import ADAMW, SPACE, WORKLOAD, take

from tuner.ledger import Ledger, StudyRecord, database
from tuner.ledger.database import tracking_client
from tuner.ledger.publications import Publications
from tuner.ledger.tables import SILENT_SECONDS, attempts, trials
from tuner.tracking.recorder import Recorder


def begin(ledger: Ledger) -> StudyRecord:
    """Let one trial have ended, and two be held."""
    made = spec(space=SPACE, budget={"trials": 3})
    study, _ = ledger.submit(made, limit=3, workload=WORKLOAD)
    held = [take(ledger, study, **ADAMW) for _ in range(3)]
    ledger.finish(held[0].lease, completed(0.5), chunk=rows(0, 10))
    return study


LONG, SHORT = SILENT_SECONDS + 30, SILENT_SECONDS - 30


@pytest.mark.parametrize(
    ("started", "measured", "silent"),
    [(SHORT, SHORT, []), (LONG, SHORT, [1]), (LONG, LONG, [1, 2]), (SHORT, LONG, [])],
)
def test_who_holds_a_trial_without_measuring_is_silent(either, started, measured, silent):
    study = begin(either)
    now = either.now()
    with either.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(attempts).values(started_at=now - started))
        last = {"last_time": now - measured}
        tx.execute(update(trials).where(trials.c.number == 2).values(**last))
    found = either.silent(study.id)
    assert [one.trial for one in found] == silent
    assert all(LONG <= one.seconds < LONG + 60 for one in found)


@pytest.mark.slow
def test_the_summary_names_who_is_silent_though_nothing_else_changes(ledger, places):
    database.upgrade_tracking(places)
    study, client = begin(ledger), tracking_client(places)
    recorder = Recorder(ledger.engine, places)

    def summary() -> str:
        recorder.publish()
        parent, _ = Publications(ledger.engine, "mlflow").study(study.id)
        return str(client.get_run(parent).data.tags["mlflow.note.content"])

    assert "measured nothing" not in summary()
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(attempts).values(started_at=attempts.c.started_at - LONG))
    said = summary()
    assert "Trial 1 has measured nothing for" in said
    assert "Trial 2 has measured nothing for" in said
    recorder.close()
