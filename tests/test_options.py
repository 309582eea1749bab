"""The options of `[training]`: what each does, and that a trial with it resumes exactly."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.test_reference import (
    ADAMW,
    COSINE,
    MOMENTUM,
    SGD,
    advance,
    assert_same,
    curve_of,
    dropout_net,
    make_spec,
    make_task,
    regression,
    small_net,
    train,
)
from tuner.config import StudySpec
from tuner.training.loaders import micro_batches
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import Status
from tuner.training.workloads import seeded


def changed(spec: StudySpec, table: str, **values: object) -> StudySpec:
    return spec.model_copy(update={table: getattr(spec, table).model_copy(update=values)})


# --- all of them resume exactly -----------------------------------------------------------------

OPTIONS = {
    "clip": {"clip_norm": 0.3},
    "accumulate": {"accumulate": 3},
    "bfloat16": {"precision": "bfloat16", "dtype": "float32"},
    "float16": {"precision": "float16", "dtype": "float32"},
    "all": {"precision": "float16", "dtype": "float32", "accumulate": 2, "clip_norm": 0.5},
    "patience": {"patience": 2, "evaluate_every": 3},
}


@pytest.mark.longer
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("value", ["last", pytest.param("best", marks=pytest.mark.slow)])
def test_interrupted_and_resumed_is_uninterrupted(options, value):
    workload = regression(dropout_net)
    task = make_task(lr=0.05, optimizer=ADAMW, schedule=COSINE)
    asha = {"name": "asha", "min_steps": 6}
    spec = changed(make_spec(pruner=asha, steps=30, **options), "study", value=value)
    uninterrupted = train(workload, spec, task)
    for seed in range(2):
        chooser, current, events = random.Random(seed), task, []
        while True:
            trainer = ReferenceTrainer(workload, spec)
            trainer.admit(current)
            events += (made := trainer.advance(chooser.randint(1, 12)))
            if not made:
                break
            current = replace(task, snapshot=trainer.snapshot(task.number))
        assert_same(curve_of(events), curve_of(uninterrupted))
        assert events[-1].value == uninterrupted[-1].value


# --- each of them -------------------------------------------------------------------------------


def test_clipping_is_torchs():
    workload, task = regression(), make_task(lr=0.5)
    spec = make_spec(steps=20, batch_size="full", clip_norm=0.2)
    rows, _, _ = curve_of(train(workload, spec, task))
    with seeded(task.seed):
        model = small_net(0, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses, norms = [], []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(workload.train_inputs), workload.train_targets)
        loss.backward()
        losses.append(loss.item())
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.2).item())
        optimizer.step()
    np.testing.assert_allclose(rows["train_loss"], losses, rtol=1e-12)
    np.testing.assert_allclose(rows["grad_norm"], norms, rtol=1e-12)  # as it was before
    assert max(norms) > 0.2


@pytest.mark.longer
@pytest.mark.parametrize("parts", [2, 3, 5, 16])
@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAMW])
def test_accumulated_gradients_are_those_of_the_batch(parts, optimizer):
    task = make_task(lr=0.02, optimizer=optimizer)
    whole, _, _ = curve_of(train(regression(), make_spec(), task))
    cut, evaluations, _ = curve_of(train(regression(), make_spec(accumulate=parts), task))
    for name in whole:
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-9)
    assert evaluations


@pytest.mark.parametrize(("rows", "parts", "sizes"), [(7, 3, [3, 2, 2]), (2, 5, [1, 1])])
def test_micro_batches_are_all_rows_with_their_shares(rows, parts, sizes):
    numbers = torch.arange(rows)
    batch = {"numbers": numbers, "texts": [str(n) for n in range(rows)], "both": (numbers, 1)}
    cut = list(micro_batches(batch, parts))
    assert [len(some["numbers"]) for some, _ in cut] == sizes
    for some, _ in cut:
        assert some["texts"] == [str(n) for n in some["numbers"].tolist()]
        assert torch.equal(some["both"][0], some["numbers"])
    assert torch.equal(torch.cat([some["numbers"] for some, _ in cut]), numbers)
    assert sum(share for *_, share in cut) == pytest.approx(1.0)


def test_halvings_double_the_micro_batches():
    sizes = []

    def loss(outputs, targets):
        if outputs.requires_grad:
            sizes.append(len(outputs))
        return nn.functional.mse_loss(outputs, targets)

    task = replace(make_task(), halvings=2)
    train(regression(loss=loss), make_spec(steps=1, accumulate=2), task)
    assert sizes == [2] * 8


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_computes_in_it_and_keeps_parameters(precision):
    seen = set()

    def model(seed, dtype):
        net = small_net(seed, dtype)
        net[0].register_forward_hook(lambda module, given, made: seen.add(made.dtype))
        return net

    task = make_task(lr=0.005)
    spec = make_spec(dtype="float32", steps=20)
    mixed = train(regression(model), changed(spec, "training", precision=precision), task)
    assert seen == {getattr(torch, precision)}
    plain, _, _ = curve_of(train(regression(), spec, task))
    assert mixed[-1].status is Status.FINISHED
    losses = curve_of(mixed)[0]["train_loss"]
    assert not np.array_equal(losses, plain["train_loss"])
    np.testing.assert_allclose(losses, plain["train_loss"], rtol=0.1, atol=0.1)


def overflowing(steps):
    """Make a model whose gradient overflows at some of the steps."""
    calls = itertools.count()

    def model(seed, dtype):
        net = small_net(seed, dtype)
        net[2].weight.register_hook(
            lambda gradient: gradient * (torch.inf if next(calls) in steps else 1.0)
        )
        return net

    return regression(model)


def test_a_skipped_step_is_a_step_that_changes_nothing():
    spec = make_spec(steps=12, batch_size="full", dtype="float32", precision="float16")
    events = train(overflowing({3, 4}), spec, make_task(schedule=COSINE))
    rows, _, (status, _, _) = curve_of(events)
    assert status is Status.FINISHED
    skipped = ~np.isfinite(rows["grad_norm"])
    # the scale that a trial begins with is too high for some gradients, so there are more
    assert skipped[[3, 4]].all()
    assert not skipped[5:].any()
    np.testing.assert_array_equal(np.diff(rows["train_loss"]) == 0, skipped[:-1])
    plain, _, _ = curve_of(train(regression(), spec, make_task(schedule=COSINE)))
    np.testing.assert_array_equal(rows["lr"], plain["lr"])  # the schedule moved on


def test_too_many_skipped_steps_in_a_row_are_divergence():
    spec = make_spec(steps=40, dtype="float32", precision="float16")
    spec = changed(spec, "guard", skipped_steps=5)
    steps = {2, 3, 4, 5, *range(10, 40)}
    _, _, (status, reason, stopped) = curve_of(train(overflowing(steps), spec, make_task()))
    assert (status, stopped) == (Status.DIVERGED, 14)
    assert reason.startswith("5 steps in a row up to step 14 were skipped")


def test_without_a_loss_scale_a_gradient_that_is_not_finite_stops_at_once():
    spec = make_spec(dtype="float32", precision="bfloat16")
    assert curve_of(train(overflowing({2}), spec, make_task()))[2][2] == 2


# --- what a trial is judged by, and when it stops -----------------------------------------------


def scores(*values):
    """Make a workload whose metric `score` is the next of these values at each evaluation."""
    left = iter(values)
    return regression(metrics={"score": lambda outputs, targets: torch.tensor(next(left))})


@pytest.mark.parametrize(
    ("direction", "value", "expected"),
    [("minimize", "last", [3, 4]), ("minimize", "best", [2, 2]), ("maximize", "best", [5, 5])],
)
def test_the_objective_is_the_last_value_or_the_best(direction, value, expected):
    asha = {"name": "asha", "min_steps": 30}
    spec = make_spec("score", asha, direction, steps=40, evaluate_every=10)
    spec = changed(spec, "study", value=value)
    events = train(scores(5.0, 2.0, 4.5, 3.0, 4.0), spec, make_task())
    assert [event.status for event in events] == [Status.AT_RUNG, Status.FINISHED]
    assert [event.value for event in events] == expected


def test_patience_ends_a_trial_that_does_not_improve():
    spec = make_spec("score", steps=50, evaluate_every=5, patience=3)
    events = train(scores(5.0, 3.0, 3.5, 2.0, 2.0, 2.5, 2.1, 1.0), spec, make_task())
    assert [event.status for event in events] == [Status.FINISHED]
    assert (events[0].next_step, events[0].value) == (30, pytest.approx(2.1))
    assert events[0].reason == (
        "stopped early at step 30 of 50, as score had not improved in 3 evaluations (best 2 at "
        "step 15)"
    )


def test_patience_that_ends_at_the_horizon_stopped_nothing():
    spec = make_spec("score", steps=10, evaluate_every=5, patience=2)
    events = train(scores(1.0, 2.0, 3.0), spec, make_task())
    assert (events[-1].status, events[-1].reason) == (Status.FINISHED, "")


def test_a_trial_ends_evaluated_when_its_time_is_up_attempts_together():
    ticks = itertools.count()
    workload, spec = regression(), make_spec(steps=50, evaluate_every=50, seconds=20.0)
    first = ReferenceTrainer(workload, spec, clock=lambda: float(next(ticks)))
    first.admit(make_task())
    assert first.advance(4)[0].status is Status.TRAINING
    spent = next(ticks)
    second = ReferenceTrainer(workload, spec, clock=lambda: float(next(ticks)))
    second.admit(replace(make_task(), snapshot=first.snapshot(7)))
    events = advance(second, [])
    (event,) = events
    assert event.status is Status.FINISHED
    assert 0 < spent < 20 < next(ticks) < 30
    assert event.reason == (
        f"its 20 seconds were up at step {event.next_step} of 50; raise seconds in [training] or "
        "lower steps to train all of them"
    )
    assert event.evaluations[-1].step == event.next_step < 50
    assert event.value == event.evaluations[-1].metrics["val_loss"]
