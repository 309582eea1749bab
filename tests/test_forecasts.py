"""What a report predicts of running trials and of longer runs: right where the truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import claim, completed, draw, rows, submit
from test_curve_law import expected_losses

from tuner.analysis import planning
from tuner.ledger import Ledger
from tuner.report import forecasts, page
from tuner.report.findings import gather
from tuner.training.schedules import multipliers

HORIZON = 400
SHAPES = ("constant", "cosine", "linear")
SPACE = {
    "lr": {"low": 0.01, "high": 2.0},
    "schedule": ["constant", {"name": "cosine"}, {"name": "linear"}],
}


def put(ledger, study, lr, schedule, steps=HORIZON):
    """A trial of SGD on a noisy quadratic, which ends if all of its steps are there."""
    claimed = claim(ledger, study)
    params = {"lr": lr, "schedule": schedule, f"{schedule}.warmup": 0.0}
    if schedule != "constant":
        params[f"{schedule}.final"] = 0.0
    draw(ledger, claimed, **params)
    rates = lr * multipliers(params, HORIZON).numpy()
    losses = expected_losses(rates)
    chunk = rows(0, steps, losses=losses[:steps].tolist())
    chunk = replace(chunk, columns={**chunk.columns, "lr": rates[:steps]})
    chunk.metrics["val_loss"][:] = losses[chunk.eval_steps]
    if steps == HORIZON:
        ledger.finish(claimed.lease, completed(float(losses[-1])), chunk=chunk)
    else:
        ledger.append(claimed.lease, chunk)
    return losses


@pytest.fixture
def study(ledger: Ledger):
    found = submit(
        ledger,
        training={"steps": HORIZON, "evaluate_every": 10},
        space=SPACE,
        budget={"trials": 30},
    )
    for n, lr in enumerate((0.05, 0.08, 0.12, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.1)):
        put(ledger, found, lr, SHAPES[n % 3])
    return found


@pytest.mark.slow
def test_a_running_trials_end_and_longer_runs(ledger, study):
    losses = put(ledger, study, 0.4, "cosine", steps=200)
    found = gather(ledger, study)
    outlook = forecasts.outlook(found)
    assert outlook is not None
    assert outlook.error < 0.05
    (running,) = outlook.running
    assert running.band.steps[-1] == HORIZON
    assert running.band.mean[-1] == pytest.approx(losses[-1], rel=0.05)
    assert running.band.low[-1] < running.band.mean[-1] < running.band.high[-1]
    (best,) = [one for one in found.trials if found.best and one.number == found.best.number]
    for one in outlook.longer:
        unit = multipliers(best.params, one.steps).numpy()
        assert one.loss == pytest.approx(expected_losses(one.rate * unit)[-1], rel=0.1)
    assert_planned(outlook, best)
    longer, decay, targets, *running = forecasts.sentences(outlook, "val_loss")
    assert decay.startswith("After a constant rate the law expects most of a decay over the last ")
    assert targets.startswith("With the best trial's schedule, it expects to need for val_loss 0.")
    assert longer.startswith(
        "Predicted for the best trial's schedule: with 2 times the steps (800)"
    )
    assert len(running) == 1
    assert running[0].startswith("Trial 10 is expected to end at val_loss 0.")
    chart = forecasts.chart(outlook, "val_loss")
    assert chart is not None
    assert chart.in_page()["data"]


def assert_planned(outlook, best):
    """A decay that nobody trained is nearly the best of its kind, and horizons suffice."""

    def truth(decay, rate):
        own = {"schedule": "wsd", **forecasts.WSD, "wsd.decay": decay}
        return expected_losses(rate * multipliers(own, HORIZON).numpy())[-1]

    one = outlook.decay
    assert one.loss == pytest.approx(truth(one.decay, one.rate), rel=0.05)
    tried = [truth(decay, one.rate) for decay in planning.DECAYS]
    assert truth(one.decay, one.rate) <= 1.02 * min(tried)
    unit = multipliers(best.params, HORIZON).numpy()
    tried = [rate for rate in best.params["lr"] * forecasts.RATES if 0.05 <= rate <= 1.1]
    same = [expected_losses(rate * unit)[-1] for rate in tried]
    assert outlook.same == pytest.approx(min(same), rel=0.05)
    assert outlook.targets
    for target, steps in outlook.targets.items():
        unit = multipliers(best.params, steps).numpy()
        reached = min(expected_losses(rate * unit)[-1] for rate in tried)
        assert reached == pytest.approx(target, rel=0.05)


def test_the_horizon_for_a_loss():
    found = planning.horizon_for(lambda steps: 10 / steps, 0.05, least=100, most=1600)
    assert 200 <= found <= 202
    assert planning.horizon_for(lambda steps: 10 / steps, 0.2, least=100, most=1600) == 100
    assert planning.horizon_for(lambda steps: 10 / steps, 0.001, least=100, most=1600) is None


@pytest.mark.slow
def test_the_page_has_predictions(ledger, study, tmp_path):
    put(ledger, study, 0.4, "cosine", steps=200)
    html = page.write_study(gather(ledger, study), tmp_path).page.read_text()
    assert "is expected to end at val_loss" in html
    assert (tmp_path / "forecasts.png").is_file()


@pytest.mark.longer
def test_nothing_is_predicted_where_it_cannot_be_known(ledger, study, monkeypatch):
    put(ledger, study, 0.4, "cosine", steps=200)
    found = gather(ledger, study)
    few = replace(found, trials=[one for one in found.trials if one.number < 5])
    assert forecasts.outlook(few) is None
    monkeypatch.setattr(forecasts, "GOOD", 0.0)
    assert forecasts.outlook(found) is None


@pytest.mark.slow
def test_a_program_with_a_schedule_of_its_own_is_left_out(ledger, study):
    put(ledger, study, 0.4, "cosine", steps=200)
    found = gather(ledger, study)
    number = found.trials[-1].number
    curve = found.curves[number]
    other = replace(curve, columns={**curve.columns, "lr": 0.4 * np.ones(200)})
    outlook = forecasts.outlook(replace(found, curves={**found.curves, number: other}))
    assert outlook is not None
    assert not outlook.running
