"""A report beside a server: readers and those without its address get the page all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import change, prepare
from team import WITH_ACCOUNTS, accounts, mlflow_server
from test_browsing_login import ADMIN, READER, ask
from test_report import fill

from tuner.ledger import Ledger, database
from tuner.operations import doctor, report
from tuner.tracking.recorder import Recorder

pytestmark = pytest.mark.slow


@pytest.mark.thorough
def test_a_report_needs_no_right_to_write_and_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    own = database.addresses({}, tmp_path)
    ledger = Ledger(database.ledger_engine(own.ledger))
    study = fill(ledger)
    with mlflow_server(
        tmp_path, own.tracking, *WITH_ACCOUNTS, **accounts(tmp_path, *ADMIN)
    ) as address:
        name, word = READER
        made = {"username": name, "password": word}
        assert ask(address, "POST", "api/2.0/mlflow/users/create", made, ADMIN) == 200
        served = database.addresses({"MLFLOW_TRACKING_URI": address}, tmp_path)

        def log_in(login: tuple[str, str]) -> None:
            for variable, value in zip(("USERNAME", "PASSWORD"), login, strict=True):
                monkeypatch.setenv(f"MLFLOW_TRACKING_{variable}", value)

        log_in(ADMIN)
        recorder = Recorder(ledger.engine, served)
        recorder.publish()
        recorder.close()
        assert report.report(ledger, [study], served, to=tmp_path / "admin").in_mlflow
        log_in(READER)
        done = report.report(ledger, [study], served, to=tmp_path / "reader")
        assert (done.in_mlflow, done.written.page.exists()) == (False, True)
        assert "does not let this login do that" in (done.problem or "")
        assert f'href="{address}/#/experiments/' in done.written.page.read_text()
    done = report.report(ledger, [study], own, to=tmp_path / "nowhere")
    assert (done.in_mlflow, done.written.page.exists()) == (False, True)
    assert "kept by an MLflow server; set MLFLOW_TRACKING_URI" in (done.problem or "")
    change(tmp_path, "UPDATE runs SET status = 'RUNNING'", "mlflow.db")
    repaired = doctor.repair(ledger.engine, own)
    assert repaired
    assert all(problem.repaired for problem in repaired)
    assert doctor.examine(ledger.engine, own) == []
    note = "SELECT value FROM tags WHERE key = 'mlflow.note.content' AND value LIKE '%report.html%'"
    assert change(tmp_path, f"UPDATE tags SET value = value WHERE value IN ({note})", "mlflow.db")
    ledger.engine.dispose()


def test_runs_that_are_in_another_mlflow(tmp_path: Path) -> None:
    prepare(tmp_path)
    places = database.addresses({}, tmp_path)
    ledger = Ledger(database.ledger_engine(places.ledger))
    study = fill(ledger)
    recorder = Recorder(ledger.engine, places)
    recorder.publish()
    recorder.close()
    other = database.addresses({"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/other.db"}, tmp_path)
    done = report.report(ledger, [study], other, to=tmp_path / "out")
    assert done.written.page.exists()
    assert "does not have the study's runs; set MLFLOW_TRACKING_URI" in (done.problem or "")
    ledger.engine.dispose()
