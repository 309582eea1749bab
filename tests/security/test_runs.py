"""Ids of MLflow's runs in rows: a recorder has more rights there than whoever writes the rows."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select, update
from training_here import submitted, train_all

from tuner.ledger import Ledger
from tuner.ledger.database import Addresses
from tuner.ledger.publications import Publications
from tuner.ledger.tables import published_studies, published_trials, trials
from tuner.operations import doctor
from tuner.operations.report import report
from tuner.tracking.recorder import Recorder

VICTIM, ATTACKER = "victim", "attacker"
PARENT = "parent"


def _publish(ledger: Ledger, places: Addresses, *, in_bulk: bool) -> None:
    recorder = Recorder(ledger.engine, places, in_bulk=in_bulk)
    for projection in recorder.projections.values():
        projection.publish()
    recorder.close()


def _point_at(ledger: Ledger, what: str, run_id: str) -> None:
    """Let the attacker's rows name a run, with everything left to be published."""
    study = ledger.study(ATTACKER)
    with ledger.engine.execution_options(writes=True).begin() as tx:
        of_study = published_studies.c.study_id == study.id
        tx.execute(update(published_studies).where(of_study).values(revision=0))
        first = select(trials.c.id).where(trials.c.study_id == study.id, trials.c.number == 0)
        of_first = published_trials.c.trial_id == first.scalar_subquery()
        again = {"next_step": 0, "final": False}
        tx.execute(update(published_trials).where(of_first).values(again))
        if what == PARENT:
            mlflows = of_study & (published_studies.c.target == "mlflow")
            tx.execute(update(published_studies).where(mlflows).values(external_id=run_id))
        else:
            mlflows = of_first & (published_trials.c.target == "mlflow")
            tx.execute(update(published_trials).where(mlflows).values(external_id=run_id))


def _everything_of(folder: Path, name: str) -> list[object]:
    """Return what MLflow has of an experiment."""
    experiments = "(SELECT experiment_id FROM experiments WHERE name = :name)"
    runs = f"(SELECT run_uuid FROM runs WHERE experiment_id IN {experiments})"
    of_runs = ("runs", "tags", "params", "metrics", "latest_metrics")
    queries = [f"SELECT * FROM {one} WHERE run_uuid IN {runs} ORDER BY 1, 2, 3" for one in of_runs]
    queries.append(f"SELECT * FROM experiment_tags WHERE experiment_id IN {experiments} ORDER BY 1")
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return [connection.execute(one, {"name": name}).fetchall() for one in queries]


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("in_bulk", [True, False], ids=["in bulk", "by the client"])
@pytest.mark.parametrize("what", [PARENT, "trial"])
def test_no_row_makes_a_recorder_write_to_another_studys_run(
    tracked, places, tmp_path, what, in_bulk
):
    """Its study is left out, or goes on without the trial; a repair finds the run that is its."""
    for name in (VICTIM, ATTACKER):
        submitted(tracked, study={"name": name})
    train_all(tracked, places)
    _publish(tracked, places, in_bulk=in_bulk)
    before = _everything_of(tmp_path, VICTIM)
    study = tracked.study(VICTIM).id
    known = Publications(tracked.engine, "mlflow")
    run_id = known.study(study)[0] if what == PARENT else known.external_ids(study)[0]
    _point_at(tracked, what, str(run_id))

    _publish(tracked, places, in_bulk=in_bulk)
    if what == PARENT:
        studies = [tracked.study(ATTACKER)]
        reported = report(tracked, studies, places, to=tmp_path / "report")
        assert "another one in MLflow" in str(reported.problem)
    assert _everything_of(tmp_path, VICTIM) == before

    found = doctor.examine(tracked.engine, places)
    assert {(one.study, one.trial) for one in found if one.kind == "run_foreign"} == {
        (ATTACKER, None if what == PARENT else 0)
    }
    doctor.repair(tracked.engine, places)
    assert doctor.examine(tracked.engine, places) == []
    assert _everything_of(tmp_path, VICTIM) == before
