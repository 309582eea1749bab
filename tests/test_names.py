"""A study's name may have 250 characters of four bytes each, in every place that names go to."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import completed, rows, spec, submit
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_logged_model_name, _validate_model_name
from test_bulk import ADAMW, SPACE, WORKLOAD, take

from tuner.core.errors import NotFoundError
from tuner.core.text import NAME_LIMIT, derived, shortened
from tuner.ledger import Ledger, database
from tuner.ledger.database import tracking_client
from tuner.operations import confirm, doctor, export, manage, report
from tuner.retraining.checking import model_name
from tuner.tracking.mlflow.registry import Registry
from tuner.tracking.mlflow.retraining_run import RetrainingRuns, model_title
from tuner.tracking.recorder import Recorder

LONG = "\N{ROCKET}" * NAME_LIMIT
"""1,000 bytes: no file may be called so."""


@pytest.mark.longer
@given(st.text(max_size=60), st.text(max_size=60), st.integers(10, 50))
def test_a_name_is_cut_to_what_fits_and_stays_another_than_all_others(one, other, limit):
    cut = shortened(one, limit)
    assert len(cut) <= limit
    assert (cut == one) == (len(one) <= limit)
    assert (cut == shortened(other, limit)) == (one == other)


@given(st.text(alphabet="a./:%\"' \N{ROCKET}", min_size=1, max_size=20))
def test_a_model_is_logged_whatever_its_study_is_called(name):
    _validate_logged_model_name(model_title(name))


def test_a_study_of_a_project_has_a_model_that_the_registry_takes(ledger):
    study = submit(ledger, study={"name": "vision/a/lines"})
    assert model_name(study) == "vision.a.lines"
    _validate_model_name(model_name(study))


@pytest.mark.parametrize("what", ["confirm", "confirm 12", "retune " + "k" * 200])
def test_what_comes_of_a_study_may_be_called_by_its_name(what):
    """A run key has at most 200 characters."""
    made = spec(study={"name": derived(LONG, what)})
    assert made.study.name.endswith(f" {what}")
    assert derived("short", what) == f"short {what}"


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("in_bulk", [True, False], ids=["in bulk", "one by one"])
def test_a_long_name_goes_everywhere_and_leaves_nothing_behind(beside, in_bulk, tmp_path: Path):
    places = beside("here")
    ledger = Ledger(database.ledger_engine(places.ledger))
    for high in (1.0, 0.5):  # two versions
        made = spec(study={"name": LONG}, space={**SPACE, "lr": {"low": 1e-4, "high": high}})
        study, _ = ledger.submit(made, limit=10, workload=WORKLOAD)
        for lr in (0.1, 0.2):
            one = take(ledger, study, **ADAMW, lr=lr)
            ledger.finish(one.lease, completed(lr), chunk=rows(0, 10))
    asked = confirm.question(ledger, study, top=2)
    assert confirm.advance(ledger, study, asked, 1) == 2
    confirmation = confirm.submit(ledger, study)
    recorder = Recorder(ledger.engine, places, in_bulk=in_bulk)
    while recorder.publish():
        pass
    recorder.close()
    assert doctor.examine(ledger.engine, places) == []
    files = export.export(ledger, study, tmp_path, "csv")
    assert all(Path(one).is_file() for one in files.values())
    to = tmp_path / "report"
    assert report.report(ledger, [study], places, to=to, tracked=True).written.page.is_file()

    client = tracking_client(places)
    RetrainingRuns(client, LONG, places.artifacts).log_drift({"champion": 1.0}, 0, 0.0)
    assert client.get_experiment_by_name(derived(LONG, "retrain")) is not None
    client.create_registered_model(LONG)
    assert Registry(client, LONG).champion() is None

    for name in (confirmation.name, LONG):
        manage.delete(ledger, places, name)
        with pytest.raises(NotFoundError):
            ledger.study(name)
    left = {one.name for one in client.search_experiments()}
    assert left == {"Default", derived(LONG, "retrain")}
    ledger.engine.dispose()
