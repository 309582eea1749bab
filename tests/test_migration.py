"""Databases of earlier schemas: every version must bring them up to its own and read them.

`tests/data/README.md` says how each file was made. They are never made anew.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest

from tuner.doctor import examine
from tuner.ledger import Ledger
from tuner.storage import Addresses, open_ledger, upgrade_ledger
from tuner.tracking.recorder import Recorder

DATA = Path(__file__).parent / "data"
FROZEN = sorted(DATA.glob("schema_*.db"))


@pytest.fixture(params=FROZEN, ids=lambda path: path.stem)
def upgraded(request: pytest.FixtureRequest, places: Addresses) -> Ledger:
    """Bring a copy of a frozen database up to this version's schema."""
    shutil.copy(request.param, places.ledger.removeprefix("sqlite:///"))
    upgrade_ledger(places)
    return Ledger(open_ledger(places, create=False))


def test_there_is_a_database_of_the_first_schema() -> None:
    assert FROZEN[0].stem == "schema_0001"


def test_a_study_is_read_as_it_was(upgraded: Ledger) -> None:
    study = upgraded.study("frozen")
    assert study.spec.study.name == "frozen"
    trials = upgraded.trials(study.id)
    assert [trial.state for trial in trials] == ["completed", "completed", "diverged", "running"]
    assert trials[0].value == pytest.approx(231551, rel=5e-6)
    assert trials[1].value == pytest.approx(86.17695, rel=5e-6)
    for trial in trials:
        curve = upgraded.curve(trial.id)
        assert curve.next_step == trial.steps
        assert set(curve.columns) >= {"train_loss", "lr", "grad_norm"}
    assert upgraded.best(study) == trials[1]


def test_its_interrupted_trial_can_be_taken_up(upgraded: Ledger) -> None:
    study = upgraded.study("frozen")
    claim = upgraded.claim(study.id, "somebody", {})
    assert claim is not None
    assert claim.trial.number == 3
    assert claim.checkpoint is not None
    assert claim.lease.number == 2


def test_optuna_still_reads_it(upgraded: Ledger, places: Addresses) -> None:
    study = optuna.load_study(study_name="frozen", storage=places.ledger)
    assert [trial.state.name for trial in study.trials][:3] == ["COMPLETE", "COMPLETE", "PRUNED"]


@pytest.mark.slow
def test_it_can_be_projected_again_into_a_new_mlflow(upgraded: Ledger, places: Addresses) -> None:
    recorder = Recorder(upgraded.engine, places)
    recorder.project_again(upgraded.study("frozen"))
    kinds = {problem.kind for problem in examine(upgraded.engine, places)}
    assert kinds <= {"checkpoint"}  # the files of its checkpoints are not frozen with it
