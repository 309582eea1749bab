"""The guard stops what diverges, under every pruner and in both directions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import spec

from tuner.core.outcome import COMPLETED, DIVERGED, PRUNED
from tuner.ledger import Ledger, TrialRecord, database
from tuner.operations import submit
from tuner.worker import work

pytestmark = pytest.mark.slow  # no processes, but two dozen studies

PREFIXES = ["workloads"]
STEPS = 60
CALM = (0.001, 0.002, 0.004)
BREAKING = (0.05, 0.2)  # these pass 1, where the loss breaks, before step 60; the others do not


def trained(
    ledger: Ledger,
    folder: Path,
    pruner: str,
    direction: str,
    how: str,
    rates: tuple[float, ...] = (*CALM, *BREAKING),
) -> list[TrialRecord]:
    """Train a grid of rates on a slope whose loss breaks beyond a distance of 1."""
    sign = 1.0 if direction == "minimize" else -1.0
    study_spec = spec(
        study={"direction": direction},
        workload={"factory": "workloads:breaking", "arguments": {"how": how, "sign": sign}},
        training={
            "steps": STEPS,
            "batch_size": "full",
            "dtype": "float64",
            "evaluate_every": 5,
        },
        space={"lr": rates},
        search={"sampler": "grid", "pruner": pruner},
    )
    described = submit.prepare(study_spec, PREFIXES).description
    study, _ = submit.submit(ledger, study_spec, described)
    work(
        ledger,
        database.addresses({}, folder),
        names=["small"],
        prefixes=PREFIXES,
        stop=threading.Event(),
        until_idle=True,
    )
    return ledger.trials(study.id)


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["nan", "inf", "-inf", "explode"])
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("pruner", ["asha", "median", "none"])
def test_exactly_the_rates_that_break_are_called_diverged(
    ledger: Ledger, tmp_path: Path, pruner: str, direction: str, how: str
) -> None:
    trials = trained(ledger, tmp_path, pruner, direction, how)
    for trial in trials:
        assert trial.params is not None
        if trial.params["lr"] in BREAKING and trial.state != PRUNED:
            assert trial.state == DIVERGED, trial
            assert trial.stopped_step is not None
            # the weight passes 1 after ceil(1/rate) updates, or a step later by rounding
            assert 0 <= trial.stopped_step - 1 / float(trial.params["lr"]) <= 2
            assert trial.reason
            assert trial.value is None
        else:
            assert trial.state in {COMPLETED, PRUNED}, trial
            assert trial.value is not None
    if pruner == "none":
        assert [trial.state for trial in trials] == [COMPLETED] * 3 + [DIVERGED] * 2


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_loss_is_to_fall_whatever_the_objective_does(
    ledger: Ledger, tmp_path: Path, direction: str
) -> None:
    trials = trained(ledger, tmp_path, "none", direction, "nan")
    finite = [ledger.curve(trial.id).columns["train_loss"] for trial in trials]
    assert all(losses[1] < losses[0] for losses in finite)
    assert {trial.state for trial in trials[:3]} == {COMPLETED}


@pytest.mark.thorough
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("pruner", ["asha", "median"])
def test_trials_that_diverge_change_nothing_for_the_others(
    new_ledger: Callable[[], Ledger], tmp_path: Path, pruner: str, direction: str
) -> None:
    """The pruner decides as if they had not been there."""
    gone = 0.9  # breaks at the second step, before the first rung
    calm = (0.001, 0.008, 0.002, 0.004, 0.006, 0.003, 0.007, 0.005)
    ends = []
    for number, rates in enumerate([calm, (gone, *calm[:3], 2 * gone, *calm[3:], 3 * gone)]):
        folder = tmp_path / str(number)
        trials = trained(new_ledger(), folder, pruner, direction, "nan", rates)
        ends.append(
            {
                trial.params["lr"]: (trial.state, trial.steps, trial.value)
                for trial in trials
                if trial.params is not None and trial.state != DIVERGED
            }
        )
    assert len(ends[0]) == 8
    assert {state for state, _, _ in ends[0].values()} == {COMPLETED, PRUNED}
    assert ends[1] == ends[0]
