"""What a cohort's members have to do with each other: seats, errors and a loader's batches."""

import itertools

import numpy as np
import pytest
import torch
from cohorts import alone, assert_close, branched, chain, together, train_all
from helpers import complete
from test_cohort import rates
from test_reference import ASHA, assert_same, curve_of, make_spec, regression
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tuner.core.errors import WorkloadError
from tuner.training.cohort import eligibility, optimizers
from tuner.training.cohort.eligibility import Plan
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import Status, Task

WIDE = {"batch_size": 16, "dtype": "float32"}  # of which blocks of any size can be filled


def wide(model=chain, **changes):
    data = regression(rows=96)
    judged = {
        "validation_inputs": data.train_inputs[:32],
        "validation_targets": data.train_targets[:32],
    }
    return regression(model, rows=96, **judged | changes)


# --- seats ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "small", "large"),
    [(0, [], []), (1, [4], [4]), (5, [8], [8]), (9, [16], [8, 4]), (12, [16], [8, 4]),
     (17, [32], [16, 4]), (21, [32], [16, 8]), (33, [32, 4], [32, 4]), (64, [32, 32], [32, 32])],
)  # fmt: skip
def test_blocks_hold_all_members_and_cost_little(members, small, large):
    """The calls of a small model cost more than free places, those of a large one less."""
    for parameters, sizes in ((500, small), (20_000, large)):
        plan = Plan(stack=None, sizes=(4, 8, 16, 32), parameters=parameters)
        assert plan.sizes_for(members) == sizes
    assert sum(large) < members + 4


def test_a_block_is_hardly_larger_than_its_members():
    plan = eligibility.plan(wide(), make_spec(steps=2, **WIDE))
    assert set(range(2, 33, 2)) <= set(plan.sizes)
    assert [plan.sizes_for(members) for members in (9, 18, 21)] == [[10], [18], [22]]


@pytest.mark.slow
@pytest.mark.parametrize("model", [chain, branched])
def test_the_last_members_sit_closer_together(model):
    """Members leave at every rung and others come later; each goes the way it goes alone."""
    workload, spec = wide(model), make_spec(steps=24, pruner=ASHA, evaluate_every=6, **WIDE)
    trainer = CohortTrainer(workload, spec, 20)
    blocks = trainer._allocator.blocks
    some = rates(*np.linspace(0.01, 0.2, 20), optimizer="adam")
    expected = {task.number: train_all(CohortTrainer(workload, spec, 1), [task]) for task in some}
    events = {task.number: [] for task in some}

    def train():
        for event in trainer.advance(6):
            events[event.number].append(event)

    def places():
        return sum(len(block.rows) for block in trainer._allocator.blocks)

    for task in some[:17]:
        trainer.admit(task)
    train()
    before = places()
    for task in some[2:16]:  # two stay in the first block, and one in the last
        trainer.evict(task.number)
    train()
    assert places() <= before / 4
    for task in some[17:]:
        trainer.admit(task)
    for _ in range(4):
        train()
    for number in (0, 1, 16, 17, 18, 19):
        assert events[number][-1].status is Status.FINISHED
        assert_same(curve_of(events[number]), curve_of(expected[number][number]))
    assert len(blocks) > 0


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.longer
def test_a_metric_that_raises_fails_its_member_alone():
    def picky(outputs, targets):
        if outputs.abs().max() > 1e3:
            raise RuntimeError("such outputs cannot be scored")
        return outputs.mean()

    workload = wide(metrics={"score": picky})
    spec = make_spec(steps=12, evaluate_every=3, **WIDE)
    some = rates(0.01, 30.0, 0.02)
    events = train_all(CohortTrainer(workload, spec, 3), some)
    failed = events[1][-1]
    assert failed.status is Status.FAILED
    assert failed.reason == "RuntimeError: such outputs cannot be scored"
    assert isinstance(failed.error, RuntimeError)
    for number in (0, 2):
        lonely = train_all(CohortTrainer(workload, spec, 1), [some[number]])[number]
        assert events[number][-1].status is Status.FINISHED
        assert_same(curve_of(events[number]), curve_of(lonely))


@pytest.mark.longer
def test_a_loss_that_raises_fails_its_block_after_what_was_measured():
    steps = itertools.count()

    def loss(outputs, targets):
        if torch.is_grad_enabled() and next(steps) == first + 5:
            raise RuntimeError("the server said no")
        return nn.functional.mse_loss(outputs, targets)

    first = 1 << 40
    trainer = CohortTrainer(wide(branched, loss=loss), make_spec(steps=12, **WIDE), 3)
    for task in rates(0.01, 0.02, 0.03):
        trainer.admit(task)
    first = next(steps) + 1
    events = trainer.advance(12)
    assert {event.status for event in events} == {Status.FAILED}
    assert {len(event.times) for event in events} == {5}
    assert trainer.advance(12) == []


def test_short_memory_is_about_all_of_them():
    def loss(outputs, targets):
        if torch.is_grad_enabled() and next(steps) == first:
            raise MemoryError
        return nn.functional.mse_loss(outputs, targets)

    steps, first = itertools.count(), 1 << 40
    trainer = CohortTrainer(wide(branched, loss=loss), make_spec(steps=12, **WIDE), 2)
    trainer.admit(rates(0.01)[0])
    first = next(steps) + 1
    with pytest.raises(MemoryError):
        trainer.advance(12)


@pytest.mark.longer
def test_halvings_are_passed_over():
    """A trial that ran out of memory elsewhere trains on, on whole batches."""
    spec = make_spec(steps=5, **WIDE)
    plain = rates(0.1)[0]
    halved = Task(number=0, seed=plain.seed, params=plain.params, halvings=3)
    ours, theirs = (together(wide(), spec, [task])[0] for task in (halved, plain))
    assert_same(ours, theirs)


def test_a_snapshot_of_what_diverged_has_nothing_to_go_on_with():
    spec = make_spec(steps=30, **WIDE)
    trainer = CohortTrainer(wide(), spec, 2)
    trainer.admit(rates(1e30)[0])
    while trainer.advance(30)[-1].status is not Status.DIVERGED:
        pass
    snapshot = trainer.snapshot(0)
    trainer.evict(0)
    trainer.admit(Task(number=0, seed=3, params=rates(1e30)[0].params, snapshot=snapshot))
    assert trainer.advance(30) == []
    assert not trainer._members()[0].block.rows.any()


# --- batches of a loader --------------------------------------------------------------------------


def streamed(reads, model=chain, rows=16):
    """Make a workload whose data come in batches, mixed anew in each epoch, with a ragged rest."""
    whole = wide(model)

    def batches(epoch):
        reads.append(epoch)
        generator = torch.Generator().manual_seed(epoch)
        for chosen in torch.randperm(90, generator=generator).split(rows):
            yield whole.train_inputs[chosen], whole.train_targets[chosen]

    return wide(model, batches=batches)


@pytest.mark.longer
@pytest.mark.parametrize("model", [chain, branched])
def test_members_train_on_the_batches_that_the_reference_does(model):
    """Also those that begin later, when others are further."""
    spec = make_spec(steps=14, batch_size=16, evaluate_every=5)
    some = rates(0.1, 0.02, 0.05, 0.2, 0.1)
    found = together(streamed([], model), spec, some, slots=2)
    expected = alone(streamed([], model), spec, some)
    for number in expected:
        assert_close(found[number], expected[number])


@pytest.mark.longer
def test_members_that_begin_together_read_once():
    reads = []
    together(streamed(reads), make_spec(steps=15, batch_size=16), rates(0.1, 0.2, 0.3), slots=3)
    assert reads == [0, 1, 2], "five whole batches of 90 rows in each epoch"


@pytest.mark.longer
@pytest.mark.parametrize("trainer", [CohortTrainer, ReferenceTrainer])
def test_a_loader_goes_on_where_a_snapshot_was_taken(trainer):
    workload, spec = streamed([]), make_spec(steps=14, batch_size=16)
    made = (lambda: trainer(workload, spec, 2)) if trainer is CohortTrainer else (
        lambda: trainer(workload, spec))  # fmt: skip
    task = rates(0.1)[0]
    whole = train_all(made(), [task])[0]
    one, other = made(), made()
    one.admit(task)
    events = one.advance(8)
    resumed = Task(number=0, seed=3, params=task.params, snapshot=one.snapshot(0))
    assert_same(curve_of(events + train_all(other, [resumed])[0]), curve_of(whole))


@pytest.mark.parametrize(
    ("size", "rows", "said"),
    [
        ("full", 16, 'got "full"'),
        (97, 16, "expected an example of 97 rows or more"),
        (16, 32, "expected 16 rows in each batch"),
        (32, 16, "expected 32 rows in each batch"),
    ],
)
def test_batches_of_another_size(size, rows, said):
    spec = make_spec(steps=3, batch_size=size)
    with pytest.raises(WorkloadError, match=said):
        train_all(ReferenceTrainer(streamed([], rows=rows), spec), rates(0.1))


def test_a_generator_is_not_read_twice():
    whole = wide()
    once = iter([(whole.train_inputs[:16], whole.train_targets[:16])])
    spec = make_spec(steps=3, batch_size=16)
    trainer = ReferenceTrainer(wide(batches=lambda epoch: once), spec)
    trainer.admit(rates(0.1)[0])
    assert len(trainer.advance(3)[0].times) == 1
    with pytest.raises(WorkloadError, match="got none; a generator can be read once"):
        trainer.advance(3)


# --- devices and precision ------------------------------------------------------------------------


class Devices(TorchDispatchMode):
    """Note on which devices there are tensors of more than one number."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(made) if isinstance(each, torch.Tensor)]
        self.seen |= {tensor.device.type for tensor in tensors if tensor.ndim > 0}
        return made


@pytest.mark.longer
@pytest.mark.parametrize("model", [chain, branched])
def test_a_block_is_computed_where_it_is(model):
    """There is no GPU here: torch's meta device computes shapes, and nothing is left to the CPU."""
    workload = wide(model)
    stack = eligibility.plan(workload, make_spec(batch_size=16)).stack
    inputs, targets = workload.train_inputs.to("meta"), workload.train_targets.to("meta")
    rows = torch.zeros(4, 16, dtype=torch.int64, device="meta")
    with Devices() as devices:
        block = stack.block(4, torch.float32, torch.device("meta"))
        block.train(inputs.float(), targets.float(), rows)
        block.evaluate(inputs.float(), targets.float())
        for name in optimizers.ROW_OPTIMIZERS:
            params = complete(0.1, "constant", name)
            optimizers.make(params, block.rows[0], block.gradients[0])
    assert devices.seen == {"meta"}


@pytest.mark.longer
def test_bfloat16_is_as_close_as_its_digits():
    """Forward passes have 8 bits: a step's loss is the reference's to one part in a hundred."""
    spec = make_spec(steps=10, batch_size=16, dtype="float32", precision="bfloat16")
    some = rates(0.01, 0.05)
    found, expected = (train(wide(), spec, some) for train in (together, alone))
    single = alone(wide(), make_spec(steps=10, **WIDE), some)
    for number in expected:
        ours, theirs = (curves[number][0]["train_loss"] for curves in (found, expected))
        np.testing.assert_allclose(ours, theirs, rtol=0.02)
        assert not np.allclose(ours, single[number][0]["train_loss"], rtol=1e-5)
