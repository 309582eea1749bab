"""Whatever a study's code raises, wherever it is called, ends its trials and not the worker."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from pipeline import Pipeline
from processes import PREFIXES, prepare, reader, train_here, tuner
from retrained import STUDY as RETRAINED
from training_here import submitted

from tuner.analysis import drift
from tuner.config import reading
from tuner.core.errors import WorkloadError
from tuner.core.outcome import COMPLETED, FAILED
from tuner.ledger import STOPPED, Ledger, Retrainings, database
from tuner.ledger.database import Addresses
from tuner.operations import submit as submission
from tuner.worker import work

pytestmark = pytest.mark.slow

STUDY = """
[study]
name = "healthy"

[workload]
factory = "tests.workloads:fragile"

[training]
steps = 5
batch_size = 8
evaluate_every = 5
dtype = "float64"

[space]
lr = { low = 1e-3, high = 1e-2 }
schedule = "constant"
optimizer = "sgd"

[search]
sampler = "random"
pruner = "none"

[budget]
trials = 16  # so many that the trainer is chosen by a measurement
"""
CASES = [
    *((place, "error") for place in ("factory", "model", "loss", "metric", "batches")),
    *((place, "exit") for place in ("factory", "metric")),
    *((place, "own") for place in ("loss", "batches")),
]
NAMES = {"error": "ValueError", "exit": "SystemExit", "own": "Own"}


def submit(folder: Path, *overrides: str) -> None:
    places = database.addresses({}, folder)
    spec = reading.load(folder / "study.toml", overrides)
    ledger = Ledger(database.open_ledger(places, create=True))
    submission.submit(ledger, spec, submission.prepare(spec, PREFIXES).description)
    ledger.engine.dispose()


def fragile(where: str, how: str = "error") -> list[str]:
    return [
        f"study.name={where} {how}",
        f"workload.arguments.where={where}",
        f"workload.arguments.how={how}",
    ]


def test_other_studies_go_on_and_the_broken_ones_are_stopped_with_their_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, STUDY)
    for where, how in CASES:
        submit(tmp_path, *fragile(where, how))
    submit(tmp_path, *fragile("loss", "exit"), "study.name=probed", "probe.enabled=true")
    submit(tmp_path, *fragile("checkpoint"), "training.checkpoint_seconds=1e-6")
    submit(tmp_path)
    Path("broken").touch()
    done = tuner(tmp_path, "worker", "--until-idle", "--no-recorder")
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    ledger = reader(tmp_path)
    for name in ("healthy", "checkpoint error"):  # who cannot save a checkpoint trains all the same
        assert ledger.counts(ledger.study(name).id)[COMPLETED] == 16
    expected = {f"{where} {how}": (where, NAMES[how]) for where, how in CASES}
    for name, (where, error) in (expected | {"probed": ("loss", "SystemExit")}).items():
        study = ledger.study(name)
        assert study.state == STOPPED, name
        assert "the first 3 trials to end failed for one reason" in (study.reason or "")
        assert f"The training code raised {error}: {where} is broken (" in (study.reason or "")
        assert ledger.counts(study.id)[FAILED] == 3, name
    ledger.engine.dispose()


def train(ledger: Ledger, places: Addresses, *names: str) -> None:
    work(
        ledger,
        places,
        names=names,
        prefixes=PREFIXES,
        stop=threading.Event(),
        until_idle=True,
    )


def test_a_worker_that_was_given_several_studies_trains_those_that_it_can(
    ledger: Ledger, places: Addresses
) -> None:
    submitted(ledger, study={"name": "elsewhere"}, training={"device": "cuda:7"})
    study = submitted(ledger)
    with pytest.raises(WorkloadError, match="which this machine does not have"):
        train(ledger, places, "elsewhere", study.name)
    assert ledger.counts(study.id)[COMPLETED] == 3


def test_a_study_that_others_have_trained_is_left_to_them(
    ledger: Ledger, places: Addresses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    workload = {"factory": "tests.workloads:fragile", "arguments": {"where": "factory"}}
    study = submitted(ledger, workload=workload, budget={"trials": 1})
    train(ledger, places)
    submitted(ledger, workload=workload, budget={"trials": 4})
    Path("broken").touch()
    with pytest.raises(WorkloadError, match="raised ValueError: factory is broken"):
        train(ledger, places, study.name)
    assert (ledger.study(study.name).reserved, ledger.counts(study.id)[FAILED]) == (1, 0)


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_a_retraining_whose_code_raises_fails_once_and_the_champion_stays(
    tmp_path: Path, where: str
) -> None:
    prepare(tmp_path, RETRAINED)
    train_here(tmp_path)
    pipeline = Pipeline(tmp_path)
    pipeline.retrain("0")
    pipeline.change(f"retrain.factory=tests.retrained:breaking_in_{where}")
    found = pipeline.retrain("5")
    assert (found["outcome"], found["version"], found["champion_version"]) == ("failed", None, 1)
    assert "The training code raised SystemExit: no more data (retrained.py:" in found["reason"]
    assert pipeline.retrain("5") == found
    history = drift.steps(Retrainings(pipeline.ledger).history("moving"))
    assert [one.outcome for one in history] == ["promoted", "failed"]
