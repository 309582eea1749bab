"""The reference trainer keeps the contract of every trainer, and agrees with theory."""

import json
import math
import random
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import complete
from torch import nn

from tuner.config import StudySpec
from tuner.core.errors import WorkloadError
from tuner.examples import digits, house_prices
from tuner.training import schedules
from tuner.training.batches import BatchOrder
from tuner.training.optimizers import OPTIMIZERS
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import TRAIN_COLUMNS, Status, Task
from tuner.training.workloads import Workload, code_digest, digest_of, load, seeded

SGD = {"optimizer": "sgd", "sgd.momentum": 0.0, "sgd.nesterov": False, "sgd.weight_decay": 0.0}
MOMENTUM = {**SGD, "sgd.momentum": 0.9, "sgd.nesterov": True, "sgd.weight_decay": 1e-4}
ADAMW = {
    "optimizer": "adamw", "adamw.beta1": 0.9, "adamw.beta2": 0.999, "adamw.eps": 1e-8,
    "adamw.weight_decay": 0.01,
}  # fmt: skip
CONSTANT = {"schedule": "constant", "constant.warmup": 0.0}
COSINE = {"schedule": "cosine", "cosine.warmup": 0.1, "cosine.final": 0.01}


def make_spec(metric="val_loss", pruner="none", direction="minimize", **training):
    training = {"steps": 50, "batch_size": 16, "dtype": "float64", **training}
    content = {
        "study": {"name": "test", "metric": metric, "direction": direction},
        "workload": {"factory": "tests:none"},
        "training": training,
        "space": {"lr": 0.1, "schedule": "constant", "optimizer": "sgd"},
        "search": {"sampler": "random", "pruner": pruner},
        "budget": {"trials": 1},
    }
    return StudySpec.model_validate_json(json.dumps(content))


def make_task(lr=0.1, seed=3, number=7, snapshot=None, schedule=CONSTANT, optimizer=SGD):
    params = {"lr": lr, **schedule, **optimizer}
    return Task(number=number, seed=seed, params=params, snapshot=snapshot)


def dropout_net(seed, dtype):
    with seeded(seed):
        return nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1)
        ).to(dtype)


def small_net(seed, dtype):
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)


def regression(model=small_net, rows=50, **changes):
    with seeded(1):
        inputs = torch.randn(rows, 3, dtype=torch.float64)
        targets = inputs.prod(dim=1, keepdim=True) + 0.1 * torch.randn(rows, 1).double()
    own = {
        "model": model,
        "train_inputs": inputs,
        "train_targets": targets,
        "validation_inputs": inputs[:9],
        "validation_targets": targets[:9],
        "loss": nn.functional.mse_loss,
        "metrics": {"mae": nn.functional.l1_loss},
        "data_name": "test",
        "data_digest": digest_of(inputs, targets),
    }
    return Workload(**{**own, **changes})


def advance(trainer, chunks):
    """Advance until the end by the chunks given, then without bound; all events."""
    events, chunks = [], iter(chunks)
    while made := trainer.advance(next(chunks, 10**9)):
        events += made
    return events


def curve_of(events):
    """Join events to what matters: every number that was measured, in order, and the end."""
    rows = {name: np.concatenate([e.columns[name] for e in events]) for name in TRAIN_COLUMNS}
    evaluations = [(e.step, dict(e.metrics)) for event in events for e in event.evaluations]
    return rows, evaluations, (events[-1].status, events[-1].reason, events[-1].stopped_step)


def assert_same(left, right):
    for name in TRAIN_COLUMNS:
        np.testing.assert_array_equal(left[0][name], right[0][name], strict=True)
    assert repr(left[1:]) == repr(right[1:])  # which takes nan for nan


def train(workload, spec, task, chunks=()):
    trainer = ReferenceTrainer(workload, spec)
    trainer.admit(task)
    return advance(trainer, chunks)


# --- theory -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lr", "loss"),
    [(1e-4, 231_551), (0.01, 280.35), (0.1, 86.18), (0.12, 66.19), (0.13, 222_671)],
)
def test_house_prices(lr, loss):
    spec = make_spec(steps=50, batch_size="full", evaluate_every=1)
    rows, evaluations, (status, _, _) = curve_of(train(house_prices.line(), spec, make_task(lr=lr)))
    assert status is Status.FINISHED
    assert evaluations[-1][0] == 50
    assert evaluations[-1][1]["val_loss"] == pytest.approx(loss, rel=1e-4)
    assert evaluations[-1][1]["val_loss"] == pytest.approx(house_prices_loss(lr, 50), rel=1e-9)
    assert [metrics["val_loss"] for _, metrics in evaluations[:-1]] == rows["train_loss"].tolist()


def house_prices_loss(lr, step):
    values, vectors = np.linalg.eigh(np.array([[13.5, 5.0], [5.0, 2.0]]))
    distance = (vectors.T @ [-200.0, 0.0]) * (1 - lr * values) ** step
    return float((0.5 * values * distance**2).sum())


def test_house_prices_diverge_above_the_limit():
    spec = make_spec(steps=50, batch_size="full")
    events = train(house_prices.line(), spec, make_task(lr=0.15))
    rows, _, (status, reason, stopped_step) = curve_of(events)
    assert status is Status.DIVERGED
    assert stopped_step == 15 == events[-1].next_step - 1
    expected = [house_prices_loss(0.15, step) for step in range(16)]
    np.testing.assert_allclose(rows["train_loss"], expected, rtol=1e-9)
    assert reason.startswith("the loss exploded: ")


class Point(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, inputs):
        return self.x - inputs


def parabola():
    two = torch.full((1, 1), 2.0, dtype=torch.float64)
    return regression(
        lambda seed, dtype: Point(dtype), train_inputs=two, train_targets=two,
        validation_inputs=two, validation_targets=two,
        loss=lambda outputs, targets: outputs.square().sum(), metrics={},
    )  # fmt: skip


@pytest.mark.parametrize("lr", [0.1, 0.5, 0.9, 1.0])
def test_parabola_shrinks_by_its_factor(lr):
    rows, evaluations, (status, _, _) = curve_of(train(parabola(), make_spec(), make_task(lr=lr)))
    steps = np.arange(50)
    assert status is Status.FINISHED
    np.testing.assert_allclose(rows["train_loss"], 4 * (1 - 2 * lr) ** (2 * steps), rtol=1e-8)
    np.testing.assert_allclose(rows["grad_norm"], 2 * np.sqrt(rows["train_loss"]), rtol=1e-12)
    assert evaluations[0] == (0, {"val_loss": 4.0})


def test_parabola_diverges_at_1_1():
    _, _, (status, reason, step) = curve_of(train(parabola(), make_spec(), make_task(lr=1.1)))
    assert (status, step) == (Status.DIVERGED, 15)
    assert "exploded" in reason


def test_it_is_the_loop_that_anybody_would_write():
    """Equal to the bit to a loop with torch's own scheduler, in single precision."""
    steps, workload = 40, regression()
    spec = make_spec(steps=steps, batch_size="full", dtype="float32")
    task = make_task(lr=0.05, schedule={**COSINE, "cosine.warmup": 0.0}, optimizer=ADAMW)
    rows, _, _ = curve_of(train(workload, spec, task))

    with seeded(task.seed):
        model = small_net(0, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.05 * 0.01)
    inputs, targets = workload.train_inputs.float(), workload.train_targets.float()
    losses, rates = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        losses.append(loss.item())
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rows["lr"], rates, rtol=1e-12)
    np.testing.assert_allclose(rows["train_loss"], losses, rtol=1e-6)


PLATEAU = {"name": "plateau", "factor": 0.5, "patience": 0, "threshold": 0.5, "warmup": 0.05}


def test_plateau_lowers_the_rate_when_the_metric_stands_still():
    task = replace(make_task(), params=complete(0.1, PLATEAU, "sgd"))
    rows, evaluations, _ = curve_of(train(regression(), make_spec(), task))
    best, multiplier, expected = math.inf, 1.0, []
    for step in range(50):
        value = dict(evaluations).get(step)
        if value is not None and step >= 2:  # a warm-up of 2 steps
            progress = value["val_loss"] < 0.5 * best or best == math.inf
            best = value["val_loss"] if progress else best
            multiplier *= 1.0 if progress else 0.5
        expected.append(0.1 * min(1.0, (step + 1) / 3) * multiplier)
    assert len(set(expected[3:])) > 4
    np.testing.assert_allclose(rows["lr"], expected, rtol=1e-12)


# --- the contract -------------------------------------------------------------------------------

TRIALS = {
    "sgd": (small_net, make_task(optimizer=SGD)),
    "momentum": (small_net, make_task(optimizer=MOMENTUM, schedule=COSINE)),
    "adamw": (small_net, make_task(lr=0.01, optimizer=ADAMW)),
    "dropout": (dropout_net, make_task(optimizer=MOMENTUM)),
    "dropout, adamw": (dropout_net, make_task(lr=0.01, optimizer=ADAMW, schedule=COSINE)),
    "plateau": (small_net, replace(make_task(), params=complete(0.1, PLATEAU, "sgd"))),
    **{
        name: (small_net, replace(make_task(), params=complete(0.01, "cosine_restarts", choice)))
        for name, choice in {
            **{name: name for name in OPTIMIZERS if name not in {"sgd", "adamw"}},
            "nadamw": {"name": "nadam", "decoupled_weight_decay": True, "weight_decay": 0.1},
            "centered": {"name": "rmsprop", "centered": True, "momentum": 0.9},
            "lion, decayed": {"name": "lion", "weight_decay": 0.1},
        }.items()
    },
    "diverging": (small_net, make_task(lr=20.0, optimizer=MOMENTUM)),
}


@pytest.fixture(params=TRIALS, ids=str)
def trial(request):
    model, task = TRIALS[request.param]
    return regression(model), task


ASHA = {"name": "asha", "min_steps": 6, "reduction_factor": 3}


@pytest.mark.longer
def test_chunks_do_not_matter(trial):
    workload, task = trial
    spec = make_spec(pruner=ASHA)
    whole = curve_of(train(workload, spec, task))
    chooser = random.Random(1)
    for chunks in ([1] * 60, [7] * 9, [chooser.randint(1, 9) for _ in range(60)]):
        assert_same(curve_of(train(workload, spec, task, chunks)), whole)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"])
def test_interrupted_and_resumed_is_uninterrupted(trial, dtype):
    workload, task = trial
    spec = make_spec(pruner=ASHA, dtype=dtype)
    whole = curve_of(train(workload, spec, task))
    for seed in range(2):
        chooser = random.Random(seed)
        trainer, current, events = ReferenceTrainer(workload, spec), task, []
        while True:
            trainer.admit(current)
            events += (made := trainer.advance(chooser.randint(1, 20)))
            if not made:
                break
            torch.rand(chooser.randint(1, 9))  # what else the process does does not matter
            current = replace(task, snapshot=trainer.snapshot(task.number))
            trainer.evict(task.number)
            trainer = ReferenceTrainer(workload, spec)
        assert_same(curve_of(events), whole)


def test_resumed_before_its_first_step():
    workload, spec, task = regression(dropout_net), make_spec(), make_task()
    trainer = ReferenceTrainer(workload, spec)
    trainer.admit(task)
    resumed = replace(task, snapshot=trainer.snapshot(task.number))
    whole = curve_of(train(workload, spec, task))
    assert_same(curve_of(train(workload, spec, resumed)), whole)


def test_the_random_state_of_the_process_is_left_alone():
    def model(seed, dtype):
        torch.manual_seed(seed)  # which a workload should not do, and many do
        return dropout_net(seed, dtype)

    workload, spec, task = regression(model), make_spec(pruner=ASHA), make_task()
    before = torch.get_rng_state()
    trainer = ReferenceTrainer(workload, spec)
    trainer.admit(task)
    for _ in range(4):
        trainer.advance(9)
        snapshot = trainer.snapshot(task.number)
    trainer.evict(task.number)
    trainer.admit(replace(task, snapshot=snapshot))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_random_state_is_put_back_after_an_error():
    def loss(outputs, targets):
        torch.rand(3)
        raise RuntimeError("a bug")

    trainer = ReferenceTrainer(regression(loss=loss), make_spec())
    trainer.admit(make_task())
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="a bug"):
        trainer.advance(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_differ_and_repeat():
    workload, spec = regression(), make_spec()
    first, again, other = (
        curve_of(train(workload, spec, make_task(seed=seed)))[0]["train_loss"] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_it_stops_at_rungs_and_evaluates_on_the_way():
    spec = make_spec(steps=50, pruner=ASHA, evaluate_every=5)
    events = train(regression(), spec, make_task())
    assert [event.status for event in events] == [Status.AT_RUNG, Status.AT_RUNG, Status.FINISHED]
    assert [event.next_step for event in events] == [6, 18, 50]
    evaluated = [[e.step for e in event.evaluations] for event in events]
    assert evaluated == [[0, 5, 6], [10, 15, 18], [20, 25, 30, 35, 40, 45, 50]]
    times = [time for event in events for time in event.times]
    assert times == sorted(times)
    assert [e.metrics.keys() for e in events[0].evaluations] == [{"val_loss", "mae"}] * 3


@pytest.mark.parametrize("most", [1, 6, 7, 19])
def test_it_stops_at_rungs_however_many_steps_it_may_make(most):
    trainer, stops = ReferenceTrainer(regression(), make_spec(steps=50, pruner=ASHA)), []
    trainer.admit(make_task())
    while events := trainer.advance(most):
        stops += [event.next_step for event in events if event.status is Status.AT_RUNG]
    assert stops == [6, 18]


def test_a_snapshot_at_a_rung_does_not_decide_again():
    workload, spec, task = regression(), make_spec(pruner=ASHA), make_task()
    trainer = ReferenceTrainer(workload, spec)
    trainer.admit(task)
    (event,) = trainer.advance(10**6)
    assert (event.status, event.next_step) == (Status.AT_RUNG, 6)
    resumed = replace(task, snapshot=trainer.snapshot(task.number))
    (event, *_) = train(workload, spec, resumed)
    assert (event.status, event.first_step, event.next_step) == (Status.AT_RUNG, 6, 18)


def test_a_steps_rate_is_that_of_its_schedule():
    task = make_task(lr=0.3, schedule=COSINE)
    rows, _, _ = curve_of(train(regression(), make_spec(), task))
    multipliers = schedules.multipliers(task.params, 50).numpy()
    np.testing.assert_array_equal(rows["lr"], 0.3 * multipliers)


def test_one_slot():
    trainer = ReferenceTrainer(regression(), make_spec())
    assert trainer.advance(5) == []
    trainer.admit(make_task(number=1))
    with pytest.raises(ValueError, match="expected a free slot for trial 2, got trial 1"):
        trainer.admit(make_task(number=2))
    for call in (trainer.evict, trainer.snapshot):
        with pytest.raises(ValueError, match="trial 2 has no slot"):
            call(2)
    trainer.evict(1)
    trainer.admit(make_task(number=2))
    assert trainer.advance(5)[0].number == 2


@pytest.mark.parametrize(
    ("task", "training", "said"),
    [
        (make_task(lr=0.2), {}, "params lr: expected 0.2, got 0.1"),
        (make_task(optimizer=ADAMW), {}, "params optimizer: expected 'adamw', got 'sgd'"),
        (make_task(seed=4), {}, "seed: expected 4, got 3"),
        (make_task(), {"dtype": "float32"}, "dtype: expected 'float32', got 'float64'"),
        (make_task(), {"steps": 60}, "steps: expected 60, got 50"),
    ],
)
def test_a_snapshot_must_fit(task, training, said):
    trainer = ReferenceTrainer(regression(), make_spec())
    trainer.admit(make_task())
    snapshot = trainer.snapshot(7)
    other = ReferenceTrainer(regression(), make_spec(**training))
    with pytest.raises(ValueError, match=said):
        other.admit(replace(task, snapshot=snapshot))
    with pytest.raises(ValueError, match="expected a checkpoint"):
        other.admit(replace(task, snapshot=snapshot[:100]))
    other.admit(task)  # the slot is still free


# --- divergence ---------------------------------------------------------------------------------


def broken_at(step, value):
    """Give a loss that is `value` at one training step."""
    calls = iter(range(10**6))

    def loss(outputs, targets):
        mean = nn.functional.mse_loss(outputs, targets)
        return mean * value if outputs.requires_grad and next(calls) == step else mean

    return loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [0, 12])
def test_the_row_that_is_not_finite_is_the_last(value, step):
    events = train(regression(loss=broken_at(step, value)), make_spec(), make_task())
    rows, _, (status, reason, stopped) = curve_of(events)
    assert (status, stopped, len(rows["train_loss"])) == (Status.DIVERGED, step, step + 1)
    assert reason == f"the loss was {value} at step {step}"
    assert repr(rows["train_loss"][-1].item()) == repr(value)


def nan_metric(outputs, targets):
    return outputs.mean() * math.nan


def test_an_objective_that_is_not_finite_diverged():
    workload = regression(metrics={"score": nan_metric})
    events = train(workload, make_spec(metric="score"), make_task())
    assert curve_of(events)[2] == (Status.DIVERGED, "score was nan at step 0", 0)
    assert len(events[0].times) == 0
    # and another metric that is not finite is only a number
    assert train(workload, make_spec(), make_task())[-1].status is Status.FINISHED


class Ignored(nn.Module):
    """Has a parameter that changes no loss, and a gradient that is infinite."""

    def __init__(self, dtype):
        super().__init__()
        self.line = nn.Linear(3, 1).to(dtype)
        self.extra = nn.Parameter(torch.ones((), dtype=dtype))
        self.extra.register_hook(lambda gradient: torch.full_like(gradient, math.inf))

    def forward(self, inputs):
        return self.line(inputs) + (0 * self.extra if self.training else 0)


def test_a_gradient_that_is_not_finite_stops():
    workload = regression(lambda seed, dtype: Ignored(dtype))
    _, _, (status, reason, step) = curve_of(train(workload, make_spec(), make_task()))
    assert (status, step) == (Status.DIVERGED, 0)
    assert reason.startswith("the gradient's norm was inf at step 0")


def test_a_parameter_that_is_not_finite_stops_at_the_evaluation():
    def model(seed, dtype):
        net = small_net(seed, dtype)
        net.unused = nn.Parameter(torch.full((2,), math.inf))
        return net

    _, _, (status, reason, step) = curve_of(train(regression(model), make_spec(), make_task()))
    assert (status, reason, step) == (Status.DIVERGED, "a parameter was not finite at step 0", 0)


def test_a_metric_that_nobody_measures_is_refused():
    with pytest.raises(
        WorkloadError, match=r"expected one of val_loss, mae, which .* got accuracy"
    ):
        ReferenceTrainer(regression(), make_spec(metric="accuracy"))


# --- the order of the data ----------------------------------------------------------------------


def test_an_epoch_has_every_row_once_and_no_ragged_batch():
    order = BatchOrder(seed=5, rows=50, batch_size=16)
    epochs = [torch.cat([order.rows(3 * epoch + k) for k in range(3)]) for epoch in range(4)]
    for rows in epochs:
        assert len(set(rows.tolist())) == 48
    assert len({tuple(rows.tolist()) for rows in epochs}) == 4
    later = BatchOrder(seed=5, rows=50, batch_size=16)
    assert torch.equal(later.rows(7), order.rows(7))
    assert not torch.equal(BatchOrder(seed=6, rows=50, batch_size=16).rows(7), order.rows(7))


@pytest.mark.parametrize("size", [50, 64, "full"])
def test_a_batch_as_large_as_the_data_is_all_rows(size):
    assert BatchOrder(seed=5, rows=50, batch_size=size).rows(3) is None


# --- workloads ----------------------------------------------------------------------------------


@pytest.mark.longer
def test_digits():
    workload = load("studies.digits:mlp", {"hidden": 16, "layers": 1})
    assert workload.train_inputs.shape == (1437, 64)
    assert workload.validation_inputs.shape == (360, 64)
    assert workload.baseline_loss == pytest.approx(math.log(10), rel=1e-3)
    assert workload.metric_names == ("val_loss", "accuracy")
    torch.testing.assert_close(workload.train_inputs.mean(dim=0), torch.zeros(64).double())
    assert workload.data_digest == digits.mlp().data_digest
    assert workload.data_digest != digits.mlp(split_seed=1).data_digest
    spec = make_spec(metric="accuracy", direction="maximize", steps=100, batch_size=64)
    _, evaluations, (status, _, _) = curve_of(train(workload, spec, make_task(lr=0.3)))
    assert status is Status.FINISHED
    assert evaluations[0][1]["accuracy"] < 0.3
    assert evaluations[-1][1]["accuracy"] > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_follows_from_its_seed(dtype):
    workload = digits.mlp()
    one, again, other = (list(workload.model(seed, dtype).parameters()) for seed in (1, 1, 2))
    assert all(p.dtype == dtype for p in one)
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one[0], other[0])


@pytest.fixture
def module_here(tmp_path, monkeypatch):
    """Write modules of the package `mine` in the current folder, which is on no path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "mine").mkdir()

    def write(name, text):
        (tmp_path / "mine" / f"{name}.py").write_text(text)
        return f"mine.{name}:make"

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


GOOD = """
import torch
from helpers import complete
from torch import nn
from tuner.training.workloads import Workload
def make(rows=4, **changes) -> Workload:
    x = torch.ones(rows, 2)
    own = dict(model=lambda seed, dtype: nn.Linear(2, 1, dtype=dtype), train_inputs=x,
        train_targets=x[:, :1], validation_inputs=x, validation_targets=x[:, :1],
        loss=nn.functional.mse_loss, data_name="ones", data_digest="0" * 16)
    return Workload(**{**own, **changes})
"""
CHANGED = GOOD + "f = make\ndef make() -> Workload: return "


def test_a_module_of_the_current_folder(module_here):
    factory = module_here("good", GOOD)
    assert load(factory, {"rows": 6}, ("mine.",)).train_inputs.shape == (6, 2)
    before = code_digest(factory, ("mine",))
    assert len(before) == 16
    module_here("good", GOOD + "# changed on disk, not in this process\n")
    assert code_digest(factory, ("mine",)) == before


@pytest.mark.parametrize(
    ("name", "text", "arguments", "said"),
    [
        ("a", GOOD, {"rows": 0}, "train_inputs: expected at least one row"),
        ("b", GOOD, {"cows": 2, "rows": 2}, "model, .* cows|unexpected keyword argument 'cows'"),
        ("c", 'def make(n) -> "Workload": return n', {"m": 2},
         r"expected arguments \(n\) .*, got m = 2"),
        ("d", 'def make() -> "Workload": return 3', {}, "expected a .*Workload, got int"),
        ("e", 'def make() -> "Workload": raise KeyError("gone")', {}, "raised KeyError: 'gone'"),
        ("f", "1 / 0", {}, "importing mine.f raised ZeroDivisionError: division by zero"),
        ("g", "import not_installed", {}, "raised ModuleNotFoundError: .*not_installed"),
        ("h", "raise SystemExit(3)", {}, "importing mine.h raised SystemExit: 3"),
        ("i", "def made(): ...", {}, "expected a function make in .*i.py, got no such name"),
        ("j", "make = 3", {}, "expected a function make in .*j.py, got a int"),
        ("k", CHANGED + "f(train_targets=torch.ones(3, 1))", {},
         "train_targets: expected a target for each of 4 inputs, got 3"),
        ("l", CHANGED + "f(validation_inputs=torch.ones(4, 3))", {},
         r"validation_inputs: expected rows of shape \(2,\), as in training, got \(3,\)"),
        ("m", CHANGED + "f(train_inputs=torch.ones(4, 2) / 0)", {},
         "train_inputs: expected finite numbers, got 8 that are nan or infinite"),
        ("n", CHANGED + "f(train_inputs=[1, 2])", {},
         "train_inputs: expected a torch tensor, got list"),
        ("o", CHANGED + "f(loss=lambda o, t: (o - t) ** 2)", {},
         r"loss: expected a tensor with one number, got \(2, 1\)"),
        ("p", CHANGED + "f(model=lambda s, d: nn.Linear(5, 1, dtype=d))",
         {}, "model: expected to work on two rows .* got RuntimeError"),
        ("q", CHANGED + "f(metrics={'lr': nn.functional.l1_loss})", {},
         "metrics: expected a name other than .*, got lr"),
        ("r", CHANGED + "f(metrics={'hits@1': nn.functional.l1_loss})",
         {}, "metrics: expected a name of letters, .* got 'hits@1'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_workload_is_said(module_here, name, text, arguments, said):
    with pytest.raises(WorkloadError) as caught:
        load(module_here(name, text), arguments, ("mine.",))
    assert re.search(said, str(caught.value))
    assert f"mine.{name}:make" in str(caught.value)


@pytest.mark.parametrize(
    "factory", ["os:system", "studiesevil.digits:mlp", "studies_digits:mlp", "tunerx:f", "mine.a:f"]
)
def test_what_is_not_allowed_is_not_imported(module_here, factory):
    module_here("a", "raise AssertionError('it was imported')")
    for call in (lambda: load(factory, {}), lambda: code_digest(factory)):
        with pytest.raises(WorkloadError, match=r"begins with '[\w.]+' or 'studies\.', got '"):
            call()


@pytest.mark.parametrize(
    ("factory", "flag"), [("pkg.models.net:make", "pkg"), ("train:make", "train")]
)
def test_the_refusal_of_a_module_names_the_flag_that_allows_it(module_here, factory, flag):
    with pytest.raises(WorkloadError, match=rf"allow it with --allow {flag}\.$"):
        load(factory, {})
    with pytest.raises(WorkloadError, match="there is no module"):
        load(factory, {}, (f"{flag}.",))


def test_a_module_of_the_current_folder_comes_before_an_installed_one(
    module_here, tmp_path, monkeypatch
):
    installed = tmp_path / "site-packages" / "mine"
    installed.mkdir(parents=True)
    for folder in (installed, tmp_path / "mine"):
        (folder / "__init__.py").touch()
    (installed / "twin.py").write_text("raise AssertionError('the installed one was imported')")
    monkeypatch.syspath_prepend(str(installed.parent))
    factory = module_here("twin", GOOD)
    assert load(factory, {"rows": 6}, ("mine.",)).train_inputs.shape == (6, 2)


def test_a_list_of_arguments_is_passed_as_it_is_and_a_failure_says_so(module_here):
    code = GOOD + "f = make\ndef make(rows) -> Workload: return f(rows=rows)"
    factory = module_here("lists", code)
    with pytest.raises(
        WorkloadError, match=r"rows in \[workload\] arguments is a list, .*\[space\]"
    ):
        load(factory, {"rows": (3, 4)}, ("mine.",))


def test_a_module_that_does_not_exist():
    with pytest.raises(WorkloadError, match=r"there is no module studies\.nothing; expected it to"):
        load("studies.nothing:mlp", {})


@pytest.mark.parametrize("chunks", [(10,), (1, 1, 10), (3,)])
def test_what_was_measured_is_given_out_before_what_the_workload_raises(chunks):
    updates = []

    def loss(outputs, targets):
        if outputs.requires_grad:
            updates.append(1)
            if len(updates) > 3:
                raise RuntimeError("no more")
        return nn.functional.mse_loss(outputs, targets)

    trainer = ReferenceTrainer(regression(loss=loss), make_spec(steps=20))
    trainer.admit(make_task())
    for most in chunks:
        (event,) = trainer.advance(most)
        assert event.status is Status.TRAINING
    assert event.next_step == 3
    with pytest.raises(RuntimeError, match="no more"):
        trainer.advance(10)
    trainer.evict(7)
