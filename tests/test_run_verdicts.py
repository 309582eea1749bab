"""Verdicts as the recorder tells them: each run says what its rate was like, as of now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import completed, draw, rows, spec, submit
from processes import prepare
from test_bulk import ENVIRONMENT, WORKLOAD

from tuner.analysis.evidence import Assessor
from tuner.ledger import Ledger, StudyRecord, database
from tuner.ledger.database import Addresses
from tuner.operations import doctor
from tuner.tracking.mlflow.run_verdicts import RunVerdicts
from tuner.tracking.recorder import Recorder

pytestmark = pytest.mark.slow


def train(ledger: Ledger, study: StudyRecord, lr: float, falls_to: float) -> None:
    """A trial whose val_loss falls evenly from 2."""
    claimed = ledger.claim(study.id, "worker", ENVIRONMENT)
    assert claimed is not None
    draw(ledger, claimed, lr=lr)
    chunk = rows(0, 100)
    chunk.metrics["val_loss"][:] = [2 - (2 - falls_to) * n / 10 for n in range(11)]
    ledger.finish(claimed.lease, completed(falls_to), chunk=chunk)


def tags(places: Addresses) -> dict[str, dict[str, Any]]:
    client = database.tracking_client(places)
    (experiment,) = [one for one in client.search_experiments() if one.name == "small"]
    runs = client.search_runs([experiment.experiment_id])
    return {run.data.tags["tuner.trial"]: run.data.tags for run in runs}


@pytest.mark.parametrize("in_bulk", [True, False])
def test_runs_say_their_verdict_and_hear_of_a_better_trial(tmp_path: Path, in_bulk: bool) -> None:
    prepare(tmp_path)
    places = database.addresses({}, tmp_path)
    ledger = Ledger(database.ledger_engine(places.ledger))
    recorder = Recorder(ledger.engine, places, in_bulk=in_bulk)
    study, _ = ledger.submit(spec(), limit=10, workload=WORKLOAD)
    train(ledger, study, 0.1, falls_to=1.5)
    train(ledger, study, 0.01, falls_to=1.9)
    recorder.publish()
    told = tags(places)
    assert [told[n]["tuner.verdict"] for n in ("0", "1")] == ["good", "too low"]
    assert "val_loss 1.5 after 100 steps, the best of 2" in told["0"]["tuner.verdict_reason"]
    assert "tuner.verdict" not in told["study"]

    train(ledger, study, 0.5, falls_to=0.1)
    recorder.publish()
    told = tags(places)
    assert [told[n]["tuner.verdict"] for n in ("0", "1", "2")] == ["too low", "too low", "good"]
    expected = Assessor(ledger, study).verdicts(ledger.trials(study.id))
    for number, verdict in expected.items():
        of_run = told[str(number)]
        assert of_run["tuner.verdict_reason"] == verdict.reason
        assert of_run["tuner.verdict_labels"] == ", ".join(verdict.labels)
    assert doctor.examine(ledger.engine, places) == []

    database.tracking_client(places).delete_run(
        run_of(places, "1")
    )  # by a person, and that is fine
    train(ledger, study, 0.6, falls_to=0.05)
    recorder.publish()
    assert tags(places)["3"]["tuner.verdict"] == "good"
    assert not recorder.behind()
    recorder.close()
    ledger.engine.dispose()


def run_of(places: Addresses, key: str) -> str:
    client = database.tracking_client(places)
    found = client.search_runs(["1"], filter_string=f"tags.`tuner.trial` = '{key}'")
    return str(found[0].info.run_id)


def test_nothing_is_written_where_nothing_changed(ledger: Ledger) -> None:
    class Counting:
        """A writer that only counts: what reaches MLflow is the other test's."""

        def __init__(self) -> None:
            self.tagged: list[str] = []

        def find(self, study: StudyRecord, experiment: str, keys: Any) -> dict[str, str]:
            return {key: key for key in keys}

        def tag(self, runs: Any, held: Any) -> None:
            self.tagged += runs

    study = submit(ledger)
    told, writer = RunVerdicts(ledger, study), Counting()
    for falls_to, at_rest, expected in [
        (1.5, False, ["0"]),  # the first look is at once
        (1.4, False, []),  # the next one is not due yet
        (1.4, True, ["0", "1", "2"]),  # the first one's sentence has changed
        (None, True, []),
    ]:
        if falls_to is not None:
            train(ledger, study, 0.1, falls_to=falls_to)
        writer.tagged.clear()
        told.update_tags(writer, "1", at_rest=at_rest, renew_claim=lambda: None)  # type: ignore[arg-type]
        assert writer.tagged == expected
