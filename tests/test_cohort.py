"""Trials that train together are what each is alone: the reference trainer is the oracle."""

import itertools
import random

import numpy as np
import pytest
import torch
from cohorts import (
    IMAGES,
    OPTIMISERS,
    alone,
    assert_close,
    branched,
    chain,
    drawn,
    images,
    resumed,
    tasks,
    together,
    train_all,
)  # fmt: skip
from helpers import complete
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reference import (
    ASHA,
    assert_same,
    curve_of,
    dropout_net,
    make_spec,
    parabola,
    regression,
    small_net,
)  # fmt: skip
from torch import nn

from tuner.examples import digits, house_prices
from tuner.training.cohort import eligibility
from tuner.training.cohort.layers import chain_of
from tuner.training.cohort.optimizers import ROW_OPTIMIZERS
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.optimizers import OPTIMIZERS
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import Status, Task

MODELS = {"chain": chain, "branched": branched}


# --- the reference trainer is the oracle ----------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("clip_norm", [None, 0.3])
def test_every_schedule_and_optimizer(model, clip_norm):
    """After 80 steps at stable rates; with dropout, whose masks are the reference's."""
    workload = regression(MODELS[model])
    spec = make_spec(steps=80, clip_norm=clip_norm)
    found, expected = (train(workload, spec, tasks()) for train in (together, alone))
    for number in expected:
        assert_close(found[number], expected[number])


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_optimizer(model):
    workload, spec = regression(MODELS[model]), make_spec(steps=40, clip_norm=1.0)
    some = [
        Task(number=n, seed=n, params=complete(lr, {"name": "cosine", "warmup": 0.2}, own))
        for n, (lr, own) in enumerate(OPTIMISERS)
    ]
    found, expected = (train(workload, spec, some) for train in (together, alone))
    for number in expected:
        assert_close(found[number], expected[number])


def test_every_optimizer_but_muon_has_its_update():
    assert list(ROW_OPTIMIZERS) == [name for name in OPTIMIZERS if name != "muon"]


LOSSES = {
    "cross entropy": nn.functional.cross_entropy,
    "another": lambda outputs, targets: nn.functional.cross_entropy(
        outputs, targets, label_smoothing=0.1
    ),
}


@pytest.mark.longer
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [37, "full"])
def test_classes_in_batches_of_any_size(loss, size):
    inputs = torch.randn(80, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    targets = inputs.sum(dim=(1, 2)).gt(0).long()

    def model(seed, dtype):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)

    workload = regression(
        model, train_inputs=inputs, train_targets=targets, validation_inputs=inputs[:9],
        validation_targets=targets[:9], loss=LOSSES[loss], metrics={"accuracy": digits.accuracy},
    )  # fmt: skip
    spec = make_spec(steps=30, batch_size=size, metric="accuracy", direction="maximize")
    some = [Task(number=n, seed=n, params=complete(0.1 * n, "step", "sgd")) for n in (1, 2, 3)]
    found, expected = (train(workload, spec, some) for train in (together, alone))
    for number in expected:
        assert_close(found[number], expected[number])


@pytest.mark.longer
@pytest.mark.parametrize("name", sorted(IMAGES))
@pytest.mark.parametrize("size", [16, "full"])
def test_images(name, size):
    """Convolutions and pooling of any kernel, stride, padding and dilation, without `vmap`."""
    workload, spec = images(name), make_spec(steps=12, batch_size=size, evaluate_every=6)
    assert eligibility.plan(workload, spec).stack.name == "layers"
    some = [Task(number=n, seed=n, params=complete(0.02 * n, "step", "adam")) for n in (1, 2, 3)]
    found, expected = (train(workload, spec, some) for train in (together, alone))
    for number in expected:
        assert_close(found[number], expected[number])


def test_large_images_are_not_unfolded():
    """Their columns would take more memory than all else."""
    layers = [nn.Conv2d(3, 4, 5, padding=2), nn.Flatten(), nn.Linear(4 * 64 * 64, 1)]
    model = nn.Sequential(*layers).double()
    assert chain_of(model, torch.zeros(2, 3, 64, 64).double()) is not None
    assert chain_of(model, torch.zeros(16, 3, 64, 64).double()) is None


@pytest.mark.longer
def test_near_instability_it_drifts_no_further_than_the_reference():
    """Two runs of the reference trainer that begin 1e-12 apart set the measure."""

    def moved(seed, dtype):
        model = small_net(seed, dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 1e-12)
        return model

    spec = make_spec(steps=200)
    some = [
        Task(number=n, seed=5, params=complete(lr, "constant", {"name": "sgd", "momentum": 0.9}))
        for n, lr in enumerate([0.05, 0.15, 0.3, 0.5])
    ]
    found, expected = (train(regression(), spec, some) for train in (together, alone))
    apart = alone(regression(moved), spec, some)

    def drift(left, right):
        one, other = left[0]["train_loss"], right[0]["train_loss"]
        assert len(one) == len(other)
        return np.maximum.accumulate(np.abs(one - other) / np.abs(one))

    for number in expected:
        ours, theirs = (drift(expected[number], other[number]) for other in (found, apart))
        assert (ours <= np.maximum(1e-9, 10 * theirs)).all()


# --- verdicts, rungs, patience --------------------------------------------------------------------


def rates(*values, schedule="constant", optimizer="sgd", seed=3):
    return [
        Task(number=n, seed=seed, params=complete(lr, schedule, optimizer))
        for n, lr in enumerate(values)
    ]


@pytest.mark.longer
@pytest.mark.parametrize(
    ("spec", "workload", "some"),
    [
        (make_spec(steps=50, batch_size="full"), house_prices.line(),
         rates(1e-4, 0.01, 0.13, 0.15, 1.0, 1e200)),
        (make_spec(), parabola(), rates(0.5, 1.0, 1.1, 3.0, 1e300)),
        (make_spec(pruner=ASHA, evaluate_every=5), regression(), rates(0.01, 20.0, 0.1, 1e9)),
        (make_spec(patience=2, evaluate_every=3), regression(),
         rates(0.5, 1e-9, 0.05, 0.9, optimizer="adam")),
    ],
    ids=["house prices", "parabola", "rungs", "patience"],
)  # fmt: skip
def test_events_are_the_references(spec, workload, some):
    found = train_all(CohortTrainer(workload, spec, 3), some)
    expected = train_all(ReferenceTrainer(workload, spec), some)
    for number, events in expected.items():
        last, ours = events[-1], found[number][-1]
        assert (ours.status, ours.stopped_step) == (last.status, last.stopped_step)
        assert ours.next_step == last.next_step
        assert ours.reason == last.reason
        assert ours.value == pytest.approx(last.value, rel=1e-9)
        rungs = [
            (e.next_step, pytest.approx(e.value)) for e in events if e.status is Status.AT_RUNG
        ]
        stops = [e for e in found[number] if e.status is Status.AT_RUNG]
        assert [(e.next_step, e.value) for e in stops] == rungs
        assert_close(curve_of(found[number]), curve_of(events))


def test_all_move_alike_until_one_needs_a_decision():
    trainer = CohortTrainer(regression(), make_spec(pruner=ASHA, evaluate_every=5), 4)
    for task in rates(0.1, 0.01, 20.0):
        trainer.admit(task)
    moved = [(e.number, e.next_step, e.status) for e in trainer.advance(4)]
    assert moved == [(n, 4, Status.TRAINING) for n in range(3)]
    trainer.admit(Task(number=9, seed=1, params=complete(0.1, "linear", "lion")))
    events = {event.number: event for event in trainer.advance(100)}
    assert {n: e.next_step for n, e in events.items()} == {0: 6, 1: 6, 2: 6, 9: 2}
    assert [events[n].status for n in (0, 9)] == [Status.AT_RUNG, Status.TRAINING]
    times = events[0].times
    assert (np.diff(times) >= 0).all()
    assert [len(events[9].times), len(events[9].evaluations)] == [2, 1]


def test_a_slot_is_free_at_once_when_its_trial_ends():
    """One whose first evaluation is not finite never moves; the others do not go far without it."""
    workload = regression(metrics={"score": lambda o, t: (o[0, 0] - 0.1).log() * 0 + o.mean()})
    spec = make_spec(metric="score", evaluate_every=10)
    trainer = CohortTrainer(workload, spec, 8)
    for number in range(8):
        trainer.admit(Task(number=number, seed=number, params=rates(0.001)[0].params))
    events = trainer.advance(50)
    stopped = [event for event in events if event.status is Status.DIVERGED]
    assert 0 < len([event for event in stopped if event.next_step == 0]) < 8
    assert {e.next_step for e in events if e.status is Status.TRAINING} <= {10}


def test_slots():
    trainer = CohortTrainer(regression(), make_spec(), 2)
    assert trainer.capacity == 2
    assert trainer.advance(5) == []
    first, second, third = rates(0.1, 0.2, 0.3)
    trainer.admit(first)
    with pytest.raises(ValueError, match="trial 0 has a slot already"):
        trainer.admit(first)
    trainer.admit(second)
    with pytest.raises(ValueError, match="expected a free slot for trial 2, got 2 taken ones"):
        trainer.admit(third)
    for call in (trainer.evict, trainer.snapshot):
        with pytest.raises(ValueError, match="trial 2 has no slot"):
            call(2)
    trainer.evict(0)
    trainer.admit(third)
    assert [event.number for event in trainer.advance(1)] == [2, 1]


# --- bit by bit -----------------------------------------------------------------------------------

NETS = {
    "chain": chain, "branched": branched, "dropout": dropout_net, "tanh": small_net,
    "images": drawn,
}  # fmt: skip
DIVERGING = [(1e200, {"name": "sgd"}), (50.0, {"name": "sgd", "momentum": 0.9})]


@pytest.mark.slow
@settings(max_examples=12)
@given(
    net=st.sampled_from(sorted(NETS)),
    dtype=st.sampled_from(["float32", "float64"]),
    size=st.sampled_from([5, 16, "full"]),
    slots=st.sampled_from([1, 2, 7, 16, 33, 70]),
    seed=st.integers(0, 10**6),
)
def test_a_member_is_the_same_in_any_company(net, dtype, size, slots, seed):
    """In any slot, beside anybody, in any chunks, when slots refill and others break."""
    chooser = random.Random(seed)
    # batches of 23 rows do not fill registers on every processor, so they are refused there
    rows = 32 if size == "full" else 23
    workload = regression(NETS[net], rows=rows)
    spec = make_spec(steps=12, batch_size=size, dtype=dtype, pruner=ASHA, clip_norm=2.0)
    choices = [*OPTIMISERS, *DIVERGING]
    lr, own = OPTIMISERS[seed % len(OPTIMISERS)]
    member = Task(number=0, seed=seed, params=complete(lr, "linear", dict(own)))
    expected = curve_of(train_all(CohortTrainer(workload, spec, 1), [member])[0])
    others = []
    for number in range(1, chooser.randint(1, 2 * slots + 2)):
        lr, own = chooser.choice(choices)
        params = complete(lr, "linear", dict(own))
        others.append(Task(number=number, seed=chooser.randint(0, 99), params=params))
    company = [member, *others]
    chooser.shuffle(company)
    chunks = (chooser.randint(1, 9) for _ in itertools.count())
    found = train_all(CohortTrainer(workload, spec, slots), company, chunks)
    assert_same(curve_of(found[0]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [64, 256])
def test_a_real_member_is_the_same_in_any_slot(dtype, hidden):
    """Matrix products of real sizes, in every slot of a cohort with blocks of both sizes."""
    workload = digits.mlp(hidden)
    spec = make_spec(steps=25, batch_size=64, dtype=dtype)
    copies = [Task(number=n, seed=1, params=complete(0.01, "cosine", "adamw")) for n in range(67)]
    curves = together(workload, spec, copies, 67)
    for number in range(1, 67):
        assert_same(curves[number], curves[0])
    for size in eligibility.plan(workload, spec).sizes:  # as the only block
        for curve in together(workload, spec, copies[:size], size).values():
            assert_same(curve, curves[0])


@pytest.mark.thorough
@pytest.mark.parametrize("net", sorted(NETS))
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"])
def test_interrupted_and_resumed_elsewhere_is_uninterrupted(net, dtype):
    workload = regression(NETS[net])
    spec = make_spec(steps=30, dtype=dtype, pruner=ASHA)
    some = [
        Task(number=n, seed=n, params=complete(lr, "cosine", dict(own)))
        for n, (lr, own) in enumerate([*OPTIMISERS, *DIVERGING])
    ]
    whole = train_all(CohortTrainer(workload, spec, 5), some)
    chooser = random.Random(2)

    def moved(trainer, running):
        """Take all out and put them into other slots."""
        taken = [resumed(trainer, task) for task in running.values()]
        chooser.shuffle(taken)
        for task in taken:
            trainer.admit(task)

    chunks = (chooser.randint(1, 12) for _ in itertools.count())
    found = train_all(CohortTrainer(workload, spec, 7), some, chunks, moved)
    for number, events in whole.items():
        assert_same(curve_of(found[number]), curve_of(events))


@pytest.mark.longer
@pytest.mark.parametrize(
    ("task", "training", "said"),
    [
        (rates(0.2)[0], {}, "params lr: expected 0.2, got 0.1"),
        (rates(0.1, seed=4)[0], {}, "seed: expected 4, got 3"),
        (rates(0.1)[0], {"dtype": "float32"}, "dtype: expected 'float32', got 'float64'"),
    ],
)
def test_a_snapshot_must_fit(task, training, said):
    trainer = CohortTrainer(regression(), make_spec(), 2)
    trainer.admit(rates(0.1)[0])
    snapshot = trainer.snapshot(0)
    taken = Task(number=0, seed=task.seed, params=task.params, snapshot=snapshot)
    other = CohortTrainer(regression(), make_spec(**training), 2)
    with pytest.raises(ValueError, match=said):
        other.admit(taken)
    with pytest.raises(ValueError, match="trainer: expected 'reference', got 'cohort'"):
        ReferenceTrainer(regression(), make_spec(**training)).admit(taken)
    other.admit(task)  # the slot is still free


def test_the_random_state_of_the_process_is_left_alone():
    before = torch.get_rng_state()
    trainer = CohortTrainer(regression(dropout_net), make_spec(), 2)
    for task in rates(0.1, 0.2):
        trainer.admit(task)
    trainer.advance(9)
    trainer.snapshot(0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("flushing", [False, True])
def test_the_processes_way_with_subnormal_numbers_is_left_alone(flushing):
    trainer = CohortTrainer(regression(), make_spec(), 2)
    trainer.admit(rates(0.1)[0])
    torch.set_flush_denormal(flushing)
    try:
        trainer.advance(3)
        assert (torch.tensor(1e-310, dtype=torch.float64).mul(0.5).item() == 0.0) is flushing
    finally:
        torch.set_flush_denormal(False)
