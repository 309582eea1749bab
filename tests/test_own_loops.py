"""Train functions: a loop of one's own is guarded, pruned, recorded and resumed like a workload."""

from __future__ import annotations

import importlib
import json
import random
import re
import sys
import threading
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sqlalchemy import select
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from tests import helpers
from tests.test_reference import (
    ADAMW,
    ASHA,
    COSINE,
    MOMENTUM,
    advance,
    assert_same,
    curve_of,
    dropout_net,
    make_spec,
    make_task,
    regression,
)
from tuner import worker
from tuner.analysis.evidence import Assessor
from tuner.config import StudySpec, reading
from tuner.core.errors import UsageError, WorkloadError
from tuner.core.outcome import COMPLETED, FAILED, PRUNED
from tuner.examples import house_prices, wine
from tuner.ledger import Ledger, database
from tuner.ledger.tables import attempts
from tuner.operations import doctor, export, report, rerun, submit
from tuner.report import tables as tables_of_report
from tuner.training import foreign_state, train_functions, workloads
from tuner.training.function_trainer import FunctionTrainer
from tuner.training.reference import ReferenceTrainer
from tuner.training.train_functions import TrainFunction
from tuner.training.trainer import Status
from tuner.training.trial import StopTrial
from tuner.training.workloads import Workload


def function(call, **arguments) -> TrainFunction:
    return TrainFunction(
        name="tests:train", call=call, arguments=arguments, data_name="", data_digest=""
    )


def train(call, spec, task, chunks=()):
    trainer = FunctionTrainer(function(call), spec)
    trainer.admit(task)
    try:
        return advance(trainer, chunks)
    finally:
        trainer.evict(task.number)


def by_hand(trial, model=dropout_net, every=1):
    """Train as anybody would; it has dropout, whose numbers come from torch's global state."""
    data = regression()
    net = model(trial.seed, torch.float64)
    optimizer = trial.optimizer(net.parameters())
    schedule = trial.schedule(optimizer)
    if saved := trial.checkpoint.load():
        net.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    for step in range(trial.first_step, trial.steps):
        if trial.evaluates(step) and not saved:
            net.eval()
            with torch.no_grad():
                loss = nn.functional.mse_loss(net(data.validation_inputs), data.validation_targets)
            net.train()
            trial.report(step, val_loss=loss)
        saved = None
        noise = random.random() + np.random.rand()
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(data.train_inputs), data.train_targets) + 0.01 * noise
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in net.parameters()])
        trial.report(step, train_loss=loss, grad_norm=norm)
        optimizer.step()
        schedule.step()
        if step % every == every - 1:
            if trial.evaluates(step + 1) and step + 1 < trial.steps:
                continue  # it is saved after that evaluation
            state = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
            trial.checkpoint.save(state)
    trial.report(trial.steps, val_loss=float(loss.detach()))


def waiting(trial):
    """Wait for something, as for a process or data, between all reports."""
    trial.report(0, val_loss=5.0)
    for step in range(trial.steps):
        trial.yield_to_trainer()
        trial.report(step, train_loss=1.0)
        trial.yield_to_trainer()
        trial.yield_to_trainer()
        trial.report(step + 1, val_loss=4.0)


def test_metrics_after_a_wait_are_in_the_event_of_their_step():
    """Else they would not be committed, as the rows of the step are."""
    events = train(waiting, make_spec(), make_task())
    found = [one.step for event in events for one in event.evaluations]
    assert found == list(range(make_spec().training.steps + 1))
    for before, event in pairwise([None, *events]):
        assert before is None or event.first_step == before.next_step
        for one in event.evaluations:
            assert event.first_step < one.step <= event.next_step or one.step == 0 < event.next_step


def plain(trial):
    """Descend (x - 2)², and report only what must be."""
    x = 0.0
    for step in range(trial.steps):
        if trial.evaluates(step):
            trial.report(step, val_loss=(x - 2) ** 2)
        trial.report(step, train_loss=(x - 2) ** 2, grad_norm=2 * abs(x - 2))
        x -= trial.rate(step) * 2 * (x - 2)
    trial.report(trial.steps, val_loss=(x - 2) ** 2)


# --- it is a trainer like the others ------------------------------------------------------------


@pytest.mark.slow
def test_it_measures_what_the_reference_trainer_does():
    def loop(trial):
        data = house_prices.line()
        net = data.model(trial.seed, torch.float64)
        optimizer = trial.optimizer(net.parameters())
        schedule = trial.schedule(optimizer)
        for step in range(trial.steps):
            loss = data.loss(net(data.train_inputs), data.train_targets)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.get_total_norm([p.grad for p in net.parameters()])
            assert optimizer.param_groups[0]["lr"] == schedule.rate
            trial.report(step, train_loss=loss, grad_norm=norm, lr=schedule.rate, val_loss=loss)
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            loss = data.loss(net(data.train_inputs), data.train_targets)
        trial.report(trial.steps, val_loss=loss)

    spec = make_spec(steps=50, batch_size="full", evaluate_every=1)
    workload = replace(house_prices.line(), metrics={})
    for lr in (0.1, 0.13, 0.15):
        task = make_task(lr=lr, schedule=COSINE if lr == 0.1 else make_task().params)
        reference = ReferenceTrainer(workload, spec)
        reference.admit(task)
        ours, theirs = curve_of(train(loop, spec, task)), curve_of(advance(reference, []))
        for name in ours[0]:
            np.testing.assert_allclose(ours[0][name], theirs[0][name], rtol=1e-10)
        assert [step for step, _ in ours[1]] == [step for step, _ in theirs[1]]
        assert ours[2][0] is theirs[2][0]
        assert ours[2][2] == theirs[2][2]


@pytest.mark.slow
def test_chunks_do_not_matter():
    spec, task = make_spec(pruner=ASHA), make_task(optimizer=MOMENTUM, schedule=COSINE)
    whole = curve_of(train(by_hand, spec, task))
    assert whole[2][0] is Status.FINISHED
    chooser = random.Random(1)
    for chunks in ([1] * 60, [7] * 9, [chooser.randint(1, 9) for _ in range(60)]):
        assert_same(curve_of(train(by_hand, spec, task, chunks)), whole)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 4, 1000])
def test_interrupted_and_resumed_it_measures_the_same_again(every):
    """Rows come again from the last save on, the same to the bit, and none is left out."""

    def loop(trial):
        by_hand(trial, every=every)

    spec, task = make_spec(pruner=ASHA), make_task(lr=0.01, optimizer=ADAMW, schedule=COSINE)
    (rows, evaluations, _) = curve_of(train(loop, spec, task))
    for seed in range(3):
        chooser, current, seen, measured = random.Random(seed), task, {}, {}
        for life in range(30):
            trainer = FunctionTrainer(function(loop), spec)
            trainer.admit(current)
            made = [e for _ in range(life + 1) for e in trainer.advance(chooser.randint(1, 12))]
            for event in made:
                for offset in range(len(event.times)):
                    row = tuple(float(event.columns[name][offset]) for name in rows)
                    assert seen.setdefault(event.first_step + offset, row) == row
                for one in event.evaluations:
                    assert measured.setdefault(one.step, dict(one.metrics)) == dict(one.metrics)
            current = replace(task, snapshot=trainer.snapshot(task.number))
            trainer.evict(task.number)
            if made and made[-1].status is Status.FINISHED:
                break
        assert made[-1].status is Status.FINISHED
        assert [seen[step] for step in range(50)] == list(zip(*rows.values(), strict=True))
        assert sorted(measured.items()) == evaluations


def test_the_random_states_of_the_process_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    train(by_hand, make_spec(pruner=ASHA), make_task(), [3, 3])
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_it_stops_at_rungs():
    spec = make_spec(steps=50, pruner=ASHA, evaluate_every=5)
    events = train(plain, spec, make_task())
    assert [(e.status, e.next_step) for e in events] == [
        (Status.AT_RUNG, 6), (Status.AT_RUNG, 18), (Status.FINISHED, 50)
    ]  # fmt: skip
    evaluated = [[e.step for e in event.evaluations] for event in events]
    assert evaluated == [[0, 5, 6], [10, 15, 18], [20, 25, 30, 35, 40, 45, 50]]
    assert [event.value for event in events] == [
        e.evaluations[-1].metrics["val_loss"] for e in events
    ]


def test_the_guard_stops_it_and_stop_trial_cleans_up():
    cleaned = []

    def loop(trial):
        try:
            plain(trial)
        except Exception:
            cleaned.append("an exception")
            raise
        finally:
            cleaned.append("up")

    events = train(loop, make_spec(), make_task(lr=1.1))
    _, _, (status, reason, stopped) = curve_of(events)
    assert (status, stopped) == (Status.DIVERGED, 15)
    assert reason.startswith("the loss exploded")
    assert cleaned == ["up"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_evaluation_that_is_not_finite_diverged(value):
    def loop(trial):
        trial.report(0, train_loss=1.0)
        trial.report(1, val_loss=value)

    _, _, ended = curve_of(train(loop, make_spec(), make_task()))
    assert ended == (Status.DIVERGED, f"val_loss was {value} at step 1", 1)


def test_an_evicted_function_ends_and_its_thread_too():
    before = threading.active_count()
    trainer = FunctionTrainer(function(plain), make_spec())
    trainer.admit(make_task())
    trainer.advance(3)
    assert threading.active_count() == before + 1
    trainer.evict(7)
    assert threading.active_count() == before
    trainer.admit(make_task(number=8))
    trainer.evict(8)  # before it was started


def test_a_function_that_will_not_end_is_left_to_itself(caplog):
    release = threading.Event()

    def loop(trial):
        try:
            plain(trial)
        finally:
            release.wait()

    trainer = FunctionTrainer(function(loop), make_spec(), grace=0.01)
    trainer.admit(make_task())
    trainer.advance(3)
    trainer.evict(7)
    assert "did not end within 0.01 seconds of StopTrial" in caplog.text
    release.set()


@pytest.mark.parametrize(("last", "status"), [(False, Status.FAILED), (True, Status.FINISHED)])
@pytest.mark.parametrize("leave", [lambda: None, StopTrial])
def test_a_function_that_returns_early(last, status, leave):
    def loop(trial):
        for step in range(5):
            trial.report(step, train_loss=1.0)
        if last:
            trial.report(5, val_loss=0.5)
        if problem := leave():
            raise problem

    event = train(loop, make_spec(), make_task())[-1]
    assert event.status is status
    expected = "its function returned after 5 of 50 steps"
    expected += "" if last else " without reporting val_loss at its last reported step"
    assert event.reason == expected
    assert event.value == (0.5 if last else None)


# --- reports at some steps only -----------------------------------------------------------------


def sparse(trial, every=7, high=()):
    """Descend (x - 2)², and report each `every` steps, with a high loss at some reports."""
    x, saved = 0.0, trial.checkpoint.load()
    if saved:
        x = saved["x"]
    for step in range(trial.first_step, trial.steps):
        if step % every == 0:
            loss = 1e6 if step in high else (x - 2) ** 2
            trial.report(step, val_loss=(x - 2) ** 2, train_loss=loss)
        x -= trial.rate(step) * 2 * (x - 2)
        if step % every == 0:
            trial.checkpoint.save({"x": x})
    trial.report(trial.steps, val_loss=(x - 2) ** 2)


def test_steps_that_are_not_reported_have_rows_without_values():
    spec, task = make_spec(), make_task(lr=0.01)
    rows, evaluations, (status, *_) = curve_of(train(sparse, spec, task))
    assert status is Status.FINISHED
    reported = [step for step in range(50) if step % 7 == 0]
    assert np.flatnonzero(~np.isnan(rows["lr"])).tolist() == reported
    assert np.isnan(rows["train_loss"]).sum() == 50 - len(reported)
    assert [step for step, _ in evaluations] == [*reported, 50]
    whole = curve_of(train(sparse, spec, task))
    for chunks in ([1] * 60, [3] * 20):
        assert_same(curve_of(train(sparse, spec, task, chunks)), whole)


def test_the_first_evaluation_after_a_rung_settles_it():
    spec = make_spec(steps=50, pruner=ASHA, evaluate_every=5)
    events = train(sparse, spec, make_task(lr=0.01))
    stops = [event for event in events if event.status is Status.AT_RUNG]
    assert spec.rungs() == (6, 18)
    assert [(one.rung, one.next_step) for one in stops] == [(6, 7), (18, 21)]
    assert [one.value for one in stops] == [
        one.evaluations[-1].metrics["val_loss"] for one in stops
    ]


def test_several_rungs_passed_at_once_are_settled_once_and_none_at_the_end():
    spec = make_spec(steps=50, pruner=ASHA, evaluate_every=5)
    events = train(lambda trial: sparse(trial, 20), spec, make_task(lr=0.01))
    assert [e.rung for e in events if e.status is Status.AT_RUNG] == [18]
    events = train(lambda trial: trial.report(50, val_loss=1.0), spec, make_task())
    assert [(event.status, event.next_step) for event in events] == [(Status.FINISHED, 50)]


def test_a_single_high_loss_among_few_reports_is_a_single_one():
    """Held over the steps without a report, it would look like a loss that stays high."""
    spec = make_spec(steps=400)
    for high, status in (((100,), Status.FINISHED), (range(60, 400), Status.DIVERGED)):
        event = train(lambda trial, h=high: sparse(trial, 20, h), spec, make_task(lr=1e-4))[-1]
        assert event.status is status


@pytest.mark.longer
def test_sparse_reports_resume_exactly():
    spec, task = make_spec(pruner=ASHA), make_task(lr=0.01)
    rows, evaluations, _ = curve_of(train(sparse, spec, task))
    for steps in range(1, 50, 4):
        trainer = FunctionTrainer(function(sparse), spec)
        trainer.admit(task)
        seen = 0
        while seen < steps:
            seen = trainer.advance(steps - seen)[0].next_step
        snapshot = trainer.snapshot(task.number)
        trainer.evict(task.number)
        again, later, _ = curve_of(train(sparse, spec, replace(task, snapshot=snapshot)))
        left = len(again["train_loss"])
        np.testing.assert_array_equal(again["train_loss"], rows["train_loss"][-left:])
        assert later == evaluations[-len(later) :]


def test_a_function_may_return_where_it_reported_loss_and_metric():
    event = train(lambda trial: trial.report(5, train_loss=1.0, val_loss=0.5), make_spec(),
                  make_task())[-1]  # fmt: skip
    assert (event.status, event.value) == (Status.FINISHED, 0.5)


def test_time_and_patience_hold_for_it_too():
    ticks = iter(range(10**6))
    trainer = FunctionTrainer(function(plain), make_spec(seconds=30.0), clock=lambda: next(ticks))
    trainer.admit(make_task())
    (event,) = trainer.advance(1000)
    assert event.status is Status.FINISHED
    assert re.search(r"its 30 seconds were up at step \d+ of 50 and it was last", event.reason)
    trainer.evict(7)
    (event,) = train(plain, make_spec(patience=2), make_task(lr=1.0))  # which cycles for ever
    assert event.reason.startswith("stopped early at step 10 of 50, as val_loss had not improved")


def test_what_comes_before_the_first_report_takes_none_of_the_time():
    now = [0.0]

    def loop(trial):
        now[0] += 1000.0  # imports, data, a model
        trial.checkpoint.load()
        for step in range(trial.first_step, trial.steps):
            trial.report(step, train_loss=1.0)
            now[0] += 1.0
            trial.checkpoint.save({})

    spec, task = make_spec(seconds=30.0), make_task()
    for steps in ((10, 31), (20, 31)):  # interrupted, it starts again; then the time is up
        trainer = FunctionTrainer(function(loop), spec, clock=lambda: now[0])
        trainer.admit(task)
        events = [trainer.advance(steps[0])[0]]
        task = replace(task, snapshot=trainer.snapshot(7))
        if events[0].status is Status.TRAINING and steps[0] == 20:
            events += trainer.advance(1000)
        trainer.evict(7)
    assert events[-1].status is Status.FAILED
    assert events[-1].next_step == 31
    assert events[-1].reason == (
        "its 30 seconds were up at step 31 of 50, before val_loss was reported after step 0; raise "
        "seconds in [training], or lower evaluate_every"
    )


REPORTS = [
    ({"train_loss": 10**400}, "train_loss to be a number that a float holds, got 1000"),
    ({"train_loss": 10**5000}, "train_loss to be a number that a float holds, got a"),
    ({"train_loss": "1.5"}, "train_loss to be one number, got '1.5', of type str"),
    ({"train_loss": True}, "train_loss to be one number, got True, of type bool"),
    ({"train_loss": [1.0, 2.0]}, r"train_loss to be one number, got \[1.0, 2.0\]"),
    ({"val_loss": -(10**400)}, "val_loss to be a number that a float holds, got -1000"),
    ({"val_loss": np.bool_(True)}, "val_loss to be one number, got np.True_"),
    ({"val_loss": 1 + 2j}, r"val_loss to be one number, got \(1\+2j\), of type complex"),
    ({"train_loss": 1, "lr": float("nan")}, "lr to be a finite .* of 0 or more, got nan"),
    ({"train_loss": 1, "lr": float("inf")}, "lr to be a finite .* of 0 or more, got inf"),
    ({"train_loss": 1, "lr": -1}, "lr to be a finite .* of 0 or more, got -1"),
    ({"train_loss": 1, "lr": 10**400}, "lr to be a number that a float holds, got 1000"),
    ({"train_loss": 1, "grad_norm": -5}, "grad_norm to be a number of 0 or more, got -5"),
    ({"train_loss": 1, "grad_norm": "big"}, "grad_norm to be one number, got 'big'"),
    ({"step": 0.0, "train_loss": 1}, "step to be a whole number, got 0.0"),
    ({"step": "0", "train_loss": 1}, "step to be a whole number, got '0'"),
    ({"step": True, "train_loss": 1}, "step to be a whole number, got True"),
    ({"step": np.bool_(False), "train_loss": 1}, "step to be a whole number, got np.False_"),
    ({"step": float("nan"), "train_loss": 1}, "step to be a whole number, got nan"),
    ({"step": None, "train_loss": 1}, "step to be a whole number, got None"),
    ({"step": 10**400, "train_loss": 1}, "one of steps 0 to 50 next, got step 1000"),
    ({"step": -1, "train_loss": 1}, "one of steps 0 to 50 next, got step -1"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "said"), REPORTS)
def test_a_report_names_the_trial_the_argument_and_what_is_wrong_with_it(given, said):
    with pytest.raises(ValueError, match=f"^trial 7: report.*: expected {said}"):
        train(lambda trial: trial.report(**{"step": 0, **given}), make_spec(), make_task())


def test_a_report_takes_numbers_of_any_library():
    def loop(trial):
        trial.report(np.int64(0), train_loss=np.float32(1.5), lr=0, grad_norm=torch.tensor(2))
        trial.report(torch.tensor(1), train_loss=Fraction(3, 2), val_loss=Decimal("0.25"), lr=1)

    events = train(loop, make_spec(), make_task())
    rows, evaluations, _ = curve_of(events)
    assert rows["train_loss"].tolist() == [1.5, 1.5]
    assert rows["lr"].tolist() == [0.0, 1.0]
    assert evaluations == [(1, {"val_loss": 0.25})]


MISUSES = {
    "a step back": (
        lambda trial: (trial.report(5, train_loss=1), trial.report(3, train_loss=1)),
        "expected one of steps 6 to 50 next, got step 3; steps increase",
    ),
    "metrics too late": (
        lambda trial: (trial.report(0, train_loss=1), trial.report(0, val_loss=1)),
        "expected one of steps 1 to 50 next, got step 0",
    ),
    "metrics past the end": (
        lambda trial: trial.report(51, val_loss=1), "one of steps 0 to 50 next, got step 51"
    ),
    "nothing": (lambda trial: trial.report(0), "expected train_loss or metrics, got neither"),
    "many numbers": (
        lambda trial: trial.report(0, train_loss=torch.ones(2)), "one number, .* of type Tensor"
    ),
    "another metric": (
        lambda trial: trial.report(0, accuracy=1), "expected the study's metric val_loss among"
    ),
    "twice": (
        lambda trial: (trial.report(0, val_loss=1), trial.report(0, val_loss=1)), "got them twice"
    ),
    "other metrics": (
        lambda trial: (
            trial.report(0, val_loss=1, a=1, train_loss=1), trial.report(1, val_loss=1)
        ),
        "expected the same metrics as before, val_loss, a, got val_loss",
    ),
    "a name": (lambda trial: trial.report(0, **{"hits@1": 1}), "named by letters, .* 'hits@1'"),
    "a state": (
        lambda trial: trial.checkpoint.save({"model": [nn.Linear(1, 1)]}),
        r"state\['model'\]\[0\]: expected tensors, .* got Linear; save its contents",
    ),
    "loading late": (
        lambda trial: (trial.report(0, train_loss=1), trial.checkpoint.load()),
        "expected a call before the first report",
    ),
    "past the end": (
        lambda trial: [trial.report(s, train_loss=1, val_loss=1) for s in range(51)],
        "expected train_loss at steps 0 to 49, got step 50",
    ),
    "leaving": (lambda trial: sys.exit(3), "tests:train raised SystemExit"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "said"), MISUSES.values(), ids=MISUSES)
def test_misuse_fails_the_trial_with_what_was_expected(call, said):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=said):
        train(call, make_spec(pruner=ASHA), make_task())


def test_a_trial_is_used_by_one_thread():
    caught = []

    def loop(trial):
        def other():
            try:
                trial.report(0, train_loss=1.0)
            except RuntimeError as error:
                caught.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    train(loop, make_spec(), make_task())
    assert caught[0].startswith("expected the trial to be used by the thread")


def test_a_state_comes_back_as_it_was():
    state = {
        "array": np.arange(3.0), "tensor": torch.ones(2), "nested": [(1, None), {"a": np.int64(3)}],
        "text": "x", 5: True, "counts": np.array([1, 2], np.uint32),
    }  # fmt: skip
    found = []

    def loop(trial):
        if loaded := trial.checkpoint.load():
            found.append(loaded)
            assert trial.first_step == 1
            return
        trial.report(0, train_loss=1.0)
        trial.checkpoint.save(state)
        state["tensor"].zero_()  # what is saved is a copy
        trial.report(1, train_loss=1.0)

    trainer = FunctionTrainer(function(loop), make_spec())
    trainer.admit(make_task())
    trainer.advance(1)
    snapshot = trainer.snapshot(7)
    trainer.evict(7)
    train(loop, make_spec(), replace(make_task(), snapshot=snapshot))
    (loaded,) = found
    np.testing.assert_array_equal(loaded["array"], state["array"])
    assert loaded["counts"].dtype == np.uint32
    assert torch.equal(loaded["tensor"], torch.ones(2))
    assert loaded["nested"] == [(1, None), {"a": 3}]
    assert (loaded["text"], loaded[5]) == ("x", True)


# --- the schedule at work on optimizers ---------------------------------------------------------


PLATEAU = {
    "schedule": "plateau", "plateau.factor": 0.5, "plateau.patience": 0, "plateau.threshold": 0.5,
    "plateau.floor": 0.0, "plateau.warmup": 0.05,
}  # fmt: skip


def two_groups(lr, optimizer=torch.optim.SGD, **settings):
    """Make an optimizer of two groups, the first of a tenth of the rate."""
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [{"params": [first], "lr": lr * 0.1}, {"params": [second], "lr": lr}]
    return optimizer(groups, **settings)


def rates_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def test_each_parameter_group_keeps_its_own_rate():
    seen, factors = [], []

    def loop(trial):
        optimizer = two_groups(trial.lr)
        schedule = trial.schedule(optimizer)
        assert isinstance(schedule, LRScheduler)
        for step in range(trial.steps):
            seen.append(rates_of(optimizer))
            factors.append(trial.rate(step) / trial.lr)
            assert schedule.get_last_lr() == seen[-1]
            trial.report(step, train_loss=1.0)
            optimizer.step()
            schedule.step()
        trial.report(trial.steps, val_loss=1.0)

    train(loop, make_spec(), make_task(lr=0.3, schedule=COSINE))
    assert len(set(factors)) == 50
    np.testing.assert_allclose(seen, np.outer(factors, [0.03, 0.3]), rtol=1e-12)


def test_a_rate_in_a_tensor_is_set_in_place():
    def loop(trial):
        optimizer = two_groups(torch.tensor(trial.lr, dtype=torch.float64), torch.optim.AdamW)
        tensors = [group["lr"] for group in optimizer.param_groups]
        schedule = trial.schedule(optimizer)
        trial.report(0, train_loss=1.0)
        optimizer.step()
        schedule.step()
        assert all(new["lr"] is t for new, t in zip(optimizer.param_groups, tensors, strict=True))
        np.testing.assert_allclose(rates_of(optimizer), [trial.rate(1) * 0.1, trial.rate(1)])
        trial.report(1, val_loss=1.0)

    train(loop, make_spec(), make_task(lr=0.3, schedule=COSINE))


def test_a_group_that_is_added_later_begins_with_its_own_rate():
    def loop(trial):
        optimizer = two_groups(trial.lr)
        schedule = trial.schedule(optimizer)
        trial.report(0, train_loss=1.0)
        optimizer.step()
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 7.0})
        schedule.step()
        share = trial.rate(1) / trial.lr
        np.testing.assert_allclose(rates_of(optimizer), np.array([0.03, 0.3, 7.0]) * share)
        trial.report(1, val_loss=1.0)

    train(loop, make_spec(), make_task(lr=0.3, schedule=COSINE))


@pytest.mark.parametrize("schedule", [COSINE, PLATEAU], ids=["planned", "with a state"])
@pytest.mark.parametrize("total", [None, 100])
def test_a_schedule_goes_on_from_its_state(schedule, total):
    """In a fresh optimizer too, and through what a checkpoint holds of it."""
    expected = []

    def loop(trial):
        optimizer = two_groups(trial.lr)
        made = trial.schedule(optimizer, total)
        for step in range(20):
            trial.report(step, train_loss=1.0, val_loss=1.0)
            optimizer.step()
            made.step()
        state = foreign_state.decode(foreign_state.encode(made.state_dict()))
        fresh = two_groups(trial.lr)
        again = trial.schedule(fresh, total)
        assert again.rate != made.rate
        again.load_state_dict(state)
        assert (rates_of(fresh), again.rate) == (rates_of(optimizer), made.rate)
        expected.append(rates_of(fresh))
        trial.report(20, val_loss=1.0)

    train(loop, make_spec(), make_task(lr=0.3, schedule=schedule))
    assert expected


def test_a_schedule_over_updates_of_ones_own():
    rates = []

    def loop(trial):
        optimizer = two_groups(trial.lr)
        schedule = trial.schedule(optimizer, total_steps=2 * trial.steps)
        for step in range(trial.steps):
            trial.report(step, train_loss=1.0, lr=schedule.rate)
            for _ in range(2):
                rates.append(rates_of(optimizer)[1])
                optimizer.step()
                schedule.step()
        assert schedule.rate == rates[-1]  # past the end, the last one
        trial.report(trial.steps, val_loss=1.0)

    task = make_task(schedule=COSINE)
    (event,) = train(loop, make_spec(steps=20), task)
    np.testing.assert_array_equal(event.columns["lr"], rates[::2])
    assert len(set(rates)) == 40


def test_plateau_follows_what_the_loop_reports():
    """At each step the rate is the reference trainer's, in the optimizer as in the curve."""

    def loop(trial):
        data = house_prices.line()
        net = data.model(trial.seed, torch.float64)
        optimizer = trial.optimizer(net.parameters())
        schedule = trial.schedule(optimizer)
        for step in range(trial.steps):
            loss = data.loss(net(data.train_inputs), data.train_targets)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.get_total_norm([p.grad for p in net.parameters()])
            trial.report(step, train_loss=loss, grad_norm=norm, val_loss=loss)
            assert rates_of(optimizer) == [trial.rate(step)] == [schedule.rate]
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            loss = data.loss(net(data.train_inputs), data.train_targets)
        trial.report(trial.steps, val_loss=loss)

    spec = make_spec(steps=50, batch_size="full", evaluate_every=1)
    task = make_task(lr=0.1, schedule=PLATEAU)
    reference = ReferenceTrainer(replace(house_prices.line(), metrics={}), spec)
    reference.admit(task)
    ours, theirs = curve_of(train(loop, spec, task)), curve_of(advance(reference, []))
    assert len(set(ours[0]["lr"].tolist())) > 5  # it has fallen
    np.testing.assert_array_equal(ours[0]["lr"], theirs[0]["lr"])
    np.testing.assert_allclose(ours[0]["train_loss"], theirs[0]["train_loss"], rtol=1e-10)


@pytest.mark.longer
def test_plateau_interrupted_and_resumed():
    def loop(trial):
        by_hand(trial)

    spec = make_spec(evaluate_every=2)
    task = make_task(lr=0.01, optimizer=ADAMW, schedule=PLATEAU)
    rows, _, _ = curve_of(train(loop, spec, task))
    assert len(set(rows["lr"].tolist())) > 5
    trainer = FunctionTrainer(function(loop), spec)
    trainer.admit(task)
    trainer.advance(33)
    snapshot = trainer.snapshot(7)
    trainer.evict(7)
    rest = train(loop, spec, replace(task, snapshot=snapshot))
    for name, column in curve_of(rest)[0].items():
        np.testing.assert_array_equal(column, rows[name][rest[0].first_step :])


def test_an_optimizer_that_was_left_at_its_default_rate_is_warned_of(caplog):
    def loop(trial):
        trial.schedule(two_groups(trial.lr))
        trial.schedule(torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=trial.lr))
        assert not caplog.records
        trial.schedule(torch.optim.AdamW([nn.Parameter(torch.zeros(1))]))
        trial.report(0, train_loss=1.0)

    train(loop, make_spec(), make_task(lr=0.3))
    (record,) = caplog.records
    assert "multiplies 0.001, the default rate of AdamW" in record.getMessage()


# --- studies ------------------------------------------------------------------------------------


def own_spec(train="studies.wine:train", **tables) -> StudySpec:
    content = {
        "study": {"name": "own"},
        "workload": {"train": train},
        "training": {"steps": 18, "evaluate_every": 6},
        "space": {"lr": [0.1, 0.001, 0.0001], "schedule": "cosine", "optimizer": "sgd"},
        "search": {"sampler": "grid", "pruner": {"name": "median", "startup_trials": 1}},
        "budget": {"trials": 3},
    }
    return StudySpec.model_validate_json(json.dumps(content | tables))


def work(ledger: Ledger, folder, name, prefixes=("studies.", "tests."), stop=None) -> None:
    stop, places = stop or threading.Event(), database.addresses({}, folder)
    worker.work(ledger, places, names=[name], prefixes=prefixes, stop=stop, until_idle=True)


def put(ledger: Ledger, spec: StudySpec, prefixes=("studies.", "tests.")):
    return submit.submit(ledger, spec, submit.prepare(spec, prefixes).description)[0]


@pytest.mark.longer
def test_a_study_of_a_train_function(ledger: Ledger, tmp_path):
    study = put(ledger, own_spec())
    assert study.workload["data"] == wine.data_digest()
    assert study.workload["data_name"].startswith("scikit-learn wine")
    work(ledger, tmp_path, study.name)
    first, second, third = ledger.trials(study.id)
    assert (first.state, first.steps) == (COMPLETED, 18)
    assert {second.state, third.state} == {PRUNED}
    curve = ledger.curve(first.id)
    assert curve.eval_steps.tolist() == [6, 12, 18]
    assert curve.metrics.keys() == {"val_loss", "accuracy"}
    assert curve.metrics["accuracy"][-1] > 0.95
    assert first.value == curve.metrics["val_loss"][-1]


@pytest.mark.slow
def test_a_study_of_sparse_reports_is_read_as_what_was_reported(ledger: Ledger, tmp_path):
    tables = {"training": {"steps": 50}, "workload": {"train": "tests.test_own_loops:sparse"}}
    study = put(ledger, own_spec(search={"sampler": "grid", "pruner": "none"}, **tables))
    work(ledger, tmp_path, study.name)
    trials = ledger.trials(study.id)
    assert [one.state for one in trials] == [COMPLETED] * 3
    assert {one.steps for one in trials} == {50}
    curve = ledger.curve(trials[0].id)
    assert np.flatnonzero(curve.reported).tolist() == list(range(0, 50, 7))
    assert tables_of_report.BROKEN not in tables_of_report.sparkline(curve)
    rows = export.curves(ledger, study, [0])
    assert rows[rows.metric == "train_loss"].step.tolist() == list(range(0, 50, 7))
    evidence = Assessor(ledger, study).evidence(trials)
    assert not any(one.exploded for one in evidence)
    study = ledger.study(study.name)
    assert not list(doctor._in_ledger(ledger, study, trials, tmp_path))
    assert rerun.rerun(ledger, study, 0, ("tests.",)).difference is None


BIG = 1.7e308
SHAPES = (
    lambda share: BIG,
    lambda share: BIG * (0.3 + 0.7 * share),
    lambda share: BIG * (1 - share),
    lambda share: BIG * (-1.0 if round(12 * share) % 2 else 1.0),
    lambda share: -BIG,
    lambda share: 1.0 - share,
)


def enormous(trial):
    """Report numbers near the largest that there are, one shape a trial."""
    for step in range(trial.steps + 1):
        loss = SHAPES[trial.number % len(SHAPES)](step / trial.steps)
        trial.report(step, val_loss=loss)
        if step < trial.steps:
            trial.report(step, train_loss=loss, grad_norm=BIG)


@pytest.mark.slow
def test_enormous_losses_are_judged_searched_and_reported_without_a_warning(
    ledger, places, tmp_path
):
    """Warnings are errors here; numpy warns of each overflow."""
    spec = own_spec(
        "tests.test_own_loops:enormous",
        training={"steps": 12, "evaluate_every": 2},
        space={"lr": {"low": 1e-3, "high": 1.0}, "schedule": "constant", "optimizer": "sgd"},
        search={"sampler": "gp", "pruner": {"name": "percentile", "startup_trials": 4}},
        budget={"trials": 14},
    )
    study = put(ledger, spec)
    work(ledger, tmp_path, study.name)
    counts = ledger.counts(study.id)
    assert (counts[FAILED], counts["running"], counts["waiting"]) == (0, 0, 0)
    assert report.report(ledger, [study], places, to=tmp_path / "page", tracked=False).written


@pytest.mark.longer
def test_wine_resumes_exactly():
    spec = own_spec(search={"sampler": "grid", "pruner": "none"})
    task = make_task(lr=0.3, schedule=COSINE)
    called = train_functions.load("studies.wine:train", {})

    def eager(trial):
        checkpoint = trial.checkpoint
        trial.checkpoint = SimpleNamespace(due=True, load=checkpoint.load, save=checkpoint.save)
        called(trial)

    whole = curve_of(train(eager, spec, task))
    trainer = FunctionTrainer(function(eager), spec)
    trainer.admit(task)
    trainer.advance(8)
    snapshot = trainer.snapshot(7)
    trainer.evict(7)
    rest = train(eager, spec, replace(task, snapshot=snapshot))
    first = rest[0].first_step
    assert first == 8
    for name, column in curve_of(rest)[0].items():
        np.testing.assert_array_equal(column, whole[0][name][first:])


def document_example(folder: Path, monkeypatch: pytest.MonkeyPatch) -> StudySpec:
    """Write down the module that the document shows, and give the study that it shows."""
    text = (Path(__file__).parents[1] / "docs" / "own_loop.md").read_text()
    code, study = (
        re.findall(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL) for kind in ("python", "toml")
    )
    (folder / "mine").mkdir()
    (folder / "mine" / "spirals.py").write_text("".join(code))  # each block builds on the first
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.delitem(sys.modules, "mine.spirals", raising=False)
    return reading.parse(study[0], "own_loop.md")


@pytest.mark.thorough
@pytest.mark.slow
def test_the_loop_of_the_document_trains(ledger: Ledger, tmp_path, monkeypatch):
    spec = document_example(tmp_path, monkeypatch)
    study = put(ledger, spec, ("mine.",))
    work(ledger, tmp_path, study.name, ("mine.",))
    counts = ledger.counts(study.id)
    assert counts[COMPLETED] >= 1
    assert counts[FAILED] == 0
    best = ledger.best(study)
    assert best is not None
    assert ledger.curve(best.id).metrics["accuracy"][-1] > 0.9


@pytest.mark.slow
def test_the_loop_of_the_document_is_judged_by_branches(ledger: Ledger, tmp_path, monkeypatch):
    spec = document_example(tmp_path, monkeypatch)
    content = spec.model_dump(mode="json", exclude_unset=True)
    content["workload"] = {"train": "mine.spirals:branching"}
    content["training"] = {"steps": 60, "evaluate_every": 6}
    content["search"] = {"judge": "fast_forward"}
    content["budget"] = {"trials": 8}
    study = put(ledger, StudySpec.model_validate_json(json.dumps(content)), ("mine.",))
    work(ledger, tmp_path, study.name, ("mine.",))
    counts = ledger.counts(study.id)
    assert (counts["pruned"] > 0, counts[FAILED]) == (True, 0)
    assert all(len(ledger.curve(one.id).branches) == 1 for one in ledger.trials(study.id))


@pytest.mark.longer
@pytest.mark.parametrize("name", ["finetune", "layerwise", "gan"])
def test_the_optimizers_of_the_document_train(name, tmp_path, monkeypatch):
    spec = document_example(tmp_path, monkeypatch)
    call = getattr(importlib.import_module("mine.spirals"), name)
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"steps": 60})})
    events = train(call, spec, make_task(lr=0.01, optimizer=ADAMW, schedule=COSINE))
    assert events[-1].status is Status.FINISHED
    assert events[-1].next_step == 60


STOP = threading.Event()


def stopping(trial):
    """Tell the worker to stop, once, in the middle."""
    x = torch.zeros(())
    if saved := trial.checkpoint.load():
        x = saved["x"]
    for step in range(trial.first_step, trial.steps):
        trial.report(step, train_loss=(x - 2) ** 2 + 0.1 * torch.rand(()))
        x -= trial.rate(step) * 2 * (x - 2)
        if trial.evaluates(step + 1):
            trial.report(step + 1, val_loss=(x - 2) ** 2)
        if step == 9 and not saved:
            STOP.set()
        if step % 4 == 3:
            trial.checkpoint.save({"x": x})


@pytest.mark.longer
def test_a_worker_that_was_stopped_goes_on_and_the_curve_is_whole(ledger: Ledger, tmp_path):
    from tests.test_own_loops import STOP  # the module as the worker imports it

    curves = []
    for name, stop in (("stopped", STOP), ("not", threading.Event())):
        spec = own_spec(
            study={"name": name},
            workload={"train": "tests.test_own_loops:stopping"},
            budget={"trials": 1},
        )
        study = put(ledger, spec)
        if name == "stopped":
            work(ledger, tmp_path, name, ("tests.",), stop)
            assert [attempt.ending for attempt in ledger.attempts(study.id)] == ["interrupted"]
        work(ledger, tmp_path, name)
        (trial,) = ledger.trials(study.id)
        assert (trial.state, trial.steps) == (COMPLETED, 18)
        curves.append(ledger.curve(trial.id))
    for name, column in curves[0].columns.items():
        np.testing.assert_array_equal(column, curves[1].columns[name])
    np.testing.assert_array_equal(curves[0].metrics["val_loss"], curves[1].metrics["val_loss"])


def evaluating_late(trial):
    """Save, and measure the metrics of that step after a wait."""
    x = 0.0
    for step in range(trial.steps):
        trial.report(step, train_loss=(x - 2) ** 2)
        x -= trial.rate(step) * 2 * (x - 2)
        trial.checkpoint.save({"x": x})
        trial.yield_to_trainer()
        trial.yield_to_trainer()
        trial.report(step + 1, val_loss=(x - 2) ** 2)


@pytest.mark.longer
def test_metrics_after_a_checkpoint_of_their_step_are_in_the_curve(
    ledger: Ledger, tmp_path, monkeypatch
):
    """Also where its rows have been committed meanwhile, and at a rung and the end."""
    monkeypatch.setattr("tuner.worker.study.COMMIT_SECONDS", 0.0)
    workload = {"train": "tests.test_own_loops:evaluating_late"}
    study = put(ledger, own_spec(workload=workload, budget={"trials": 1}))
    work(ledger, tmp_path, study.name)
    (trial,) = ledger.trials(study.id)
    curve = ledger.curve(trial.id)
    assert curve.next_step == trial.steps == 18
    assert curve.eval_steps.tolist() == list(range(1, 19))
    assert trial.value == curve.metrics["val_loss"][-1]
    known = ledger.study(study.name)
    assert not list(doctor._in_ledger(ledger, known, [trial], tmp_path))


def misfit(trial, width):
    """Fail, and say where."""
    raise KeyError(width)


def test_an_error_in_the_function_fails_its_trial(ledger: Ledger, tmp_path):
    spec = own_spec("tests.test_own_loops:misfit", workload={
        "train": "tests.test_own_loops:misfit", "arguments": {"width": 3}
    }, budget={"trials": 1})  # fmt: skip
    study = put(ledger, spec)
    work(ledger, tmp_path, study.name)
    (trial,) = ledger.trials(study.id)
    assert trial.state == FAILED
    assert trial.reason.startswith("The training code raised KeyError: 3 (test_own_loops.py:")


def test_what_is_wrong_with_a_train_function_is_said():
    with pytest.raises(WorkloadError, match=r"missing a required argument: 'width'; expected"):
        train_functions.load("tests.test_own_loops:misfit", {}, ("tests.",))
    with pytest.raises(WorkloadError, match=r"with 'tuner\.examples\.' or 'studies\.', got"):
        train_functions.load("tests.test_own_loops:misfit", {"width": 3})
    spec = own_spec(study={"name": "own", "metric": "train_loss"})
    with pytest.raises(UsageError, match=r"\[study\] metric: expected a metric that studies\.wine"):
        submit.prepare(spec, ("studies.",))
    with pytest.raises(WorkloadError, match="a column of every row"):
        FunctionTrainer(function(plain), spec)


@pytest.mark.parametrize("load", [train_functions.load, workloads.load])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("__main__:mine", r"got __main__, which is this notebook .* as studies\.mine:mine"),
        ("sys:exit", "expected a module with a source file, got sys, which has none"),
    ],
)
def test_a_module_that_has_no_file_is_refused_in_words(load, name, said):
    """A notebook's `__main__` has none, and a worker's is another one."""
    with pytest.raises(WorkloadError, match=said):
        load(name, {}, ("sys.",))


# --- out of memory ------------------------------------------------------------------------------


def hungry(limit: int, kind: str = "device") -> Workload:
    """Make a workload that has memory for so many rows at once."""

    def loss(outputs, targets):
        if outputs.requires_grad and len(outputs) > limit:
            if kind == "device":
                raise torch.OutOfMemoryError("CUDA out of memory")
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return nn.functional.mse_loss(outputs, targets)

    return regression(loss=loss)


def roomy() -> Workload:
    return regression()


def memory_study(ledger: Ledger, **arguments):
    name = "hungry" if arguments else "roomy"
    training = {"steps": 20, "batch_size": 16, "dtype": "float64"}
    spec = helpers.spec(
        study={"name": name},
        workload={"factory": f"tests.test_own_loops:{name}", "arguments": arguments},
        training=training,
        budget={"trials": 1},
    )
    return put(ledger, spec)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize(("limit", "kind", "halved"), [(6, "device", 2), (8, "cpu", 1)])
def test_out_of_memory_is_tried_again_with_smaller_micro_batches(
    ledger: Ledger, tmp_path, limit, kind, halved
):
    study = memory_study(ledger, limit=limit, kind=kind)
    work(ledger, tmp_path, study.name)
    (trial,) = ledger.trials(study.id)
    assert trial.state == COMPLETED
    endings = [attempt.ending for attempt in ledger.attempts(study.id)]
    assert endings == ["out_of_memory"] * halved + ["finished"]
    assert ledger.attempts(study.id)[0].reason.startswith("out of memory with micro-batches of 16")
    other = memory_study(ledger)
    work(ledger, tmp_path, other.name)
    plain = ledger.curve(ledger.trials(other.id)[0].id)
    cut = ledger.curve(trial.id)
    np.testing.assert_allclose(cut.columns["train_loss"], plain.columns["train_loss"], rtol=1e-9)


@pytest.mark.slow
def test_out_of_memory_with_single_rows_fails(ledger: Ledger, tmp_path):
    study = memory_study(ledger, limit=0)
    work(ledger, tmp_path, study.name)
    (trial,) = ledger.trials(study.id)
    assert (trial.state, trial.reason) == (FAILED, "Out of memory, even with micro-batches of 1.")
    with ledger.engine.begin() as tx:
        assert len(tx.execute(select(attempts)).all()) == 5
