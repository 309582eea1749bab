"""A seed repeats a study to the last digit, in another folder and at another time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import left, prepare, reference, train_here

from tuner.config import reading
from tuner.ledger import Ledger, database
from tuner.operations import submit
from tuner.worker import work

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def trained(ledger: Ledger, folder: Path, file: str, *overrides: str) -> list[dict[str, Any]]:
    """Train a study of ours and give all of it that must repeat."""
    study_spec = reading.load(ROOT / "studies" / file, overrides)
    described = submit.prepare(study_spec, ["studies."]).description
    study, _ = submit.submit(ledger, study_spec, described)
    work(
        ledger,
        database.addresses({}, folder),
        names=[study.name],
        prefixes=["studies."],
        stop=threading.Event(),
        until_idle=True,
    )
    found = []
    for trial in ledger.trials(study.id):
        curve = ledger.curve(trial.id)
        columns = {name: values.tobytes() for name, values in curve.columns.items()}
        metrics = {name: values.tobytes() for name, values in curve.metrics.items()}
        found.append(
            {
                "params": trial.params,
                "outcome": (trial.state, trial.reason, trial.value, trial.stopped_step),
                "reports": trial.reports,
                "curve": (columns, metrics, curve.eval_steps.tolist()),
            }
        )
    return found


@pytest.mark.parametrize("file", ["digits.toml", "house_prices_search.toml"])
def test_the_same_seed_gives_the_same_study_bit_by_bit(
    new_ledger: Callable[[], Ledger], tmp_path: Path, file: str
) -> None:
    few = ("budget.trials=8",)
    first = trained(new_ledger(), tmp_path / "one", file, *few)
    assert len(first) == 8
    assert trained(new_ledger(), tmp_path / "two", file, *few) == first


def test_another_seed_gives_another_study(new_ledger: Callable[[], Ledger], tmp_path: Path) -> None:
    first, other = (
        trained(new_ledger(), tmp_path, "digits.toml", "budget.trials=2", f"study.seed={seed}")
        for seed in (0, 1)
    )
    assert first[0]["params"] == other[0]["params"], "the usual values come first"
    assert first[1]["params"] != other[1]["params"]
    losses = [np.frombuffer(trial["curve"][0]["train_loss"])[0] for trial in (first[0], other[0])]
    assert losses[0] != losses[1]


def test_another_process_that_looks_at_other_moments_gives_the_same_study(tmp_path: Path) -> None:
    """In the ledger, in Optuna and in MLflow; committed and saved seldom instead of always."""
    train_here(prepare(tmp_path, checkpoint_seconds="1000"))
    here, there = left(tmp_path), reference()
    assert here.ledger == there.ledger
    assert here.optuna == there.optuna
    for key, run in here.mlflow.items():
        assert run["points"] == there.mlflow[key]["points"]
        assert run["params"] == there.mlflow[key]["params"]
