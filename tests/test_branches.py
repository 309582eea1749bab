"""A branch is a copy: it changes nothing, and it is what a copy trained by hand would be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cohorts import branched, tasks, train_all
from helpers import complete
from hypothesis import given
from hypothesis import strategies as st
from test_reference import assert_same, curve_of, dropout_net, make_spec, regression
from torch import nn

from tuner.training.branches import BranchPlan, fast_forward, same_schedule
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import Status, Task
from tuner.training.workloads import seeded

RUNGS = {"name": "asha", "min_steps": 8, "reduction_factor": 2}  # of 24 steps: 8 and 16
PLAN = BranchPlan(steps=3, schedule=fast_forward)
TRAINERS = {"reference": ReferenceTrainer, "cohort": lambda *a: CohortTrainer(*a, 8)}


def workload(kind):
    """Everything that a copy could share with its original: buffers, masks, a loader's position."""
    if kind == "memory":
        return regression(branched)
    with seeded(5):
        data = torch.randn(6, 16, 3, dtype=torch.float64)

    def batches(epoch):
        return [(part, part.prod(dim=1, keepdim=True)) for part in data.roll(epoch, 0)]

    return regression(dropout_net, batches=batches)


def trained(trainer, plan, steps=1000):
    """Train some trials; return their curves and their branches at each rung."""
    branches = {}

    def between(trainer, running):
        at = [n for n in running if statuses[n] is Status.AT_RUNG]
        if plan is not None and at:
            for one in trainer.branch(at, plan, lambda: True):
                branches[one.number, one.step] = one

    statuses = {}
    advance = trainer.advance

    def watched(max_steps):
        events = advance(max_steps)
        statuses.update({event.number: event.status for event in events})
        return events

    trainer.advance = watched
    events = train_all(trainer, tasks()[:steps], between=between)
    return {number: curve_of(own) for number, own in events.items()}, branches


@pytest.mark.longer
@pytest.mark.parametrize("kind", ["memory", "loader"])
@pytest.mark.parametrize("name", TRAINERS)
def test_original_is_the_same_with_and_without_branches(name, kind):
    spec = make_spec(steps=24, pruner=RUNGS)
    few = 3 if name == "reference" else 8
    plain, _ = trained(TRAINERS[name](workload(kind), spec), None, few)
    with_branches, branches = trained(TRAINERS[name](workload(kind), spec), PLAN, few)
    assert {step for _, step in branches} == {8, 16}
    assert len(branches) >= few  # but where the guard stopped a trial first
    for number in plain:
        assert_same(with_branches[number], plain[number])


@pytest.mark.longer
@pytest.mark.parametrize("averaged", [False, True])
def test_cohort_agrees_with_the_reference_trainer(averaged):
    """Without dropout, whose random numbers are drawn in another order."""

    def model(seed, dtype):
        with seeded(seed):
            return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).to(
                dtype
            )

    spec = make_spec(steps=24, pruner=RUNGS)
    plan = BranchPlan(steps=3, schedule=fast_forward, averaged=averaged)
    _, expected = trained(ReferenceTrainer(regression(model), spec), plan, 4)
    _, found = trained(CohortTrainer(regression(model), spec, 8), plan, 4)
    assert expected
    assert found.keys() == expected.keys()
    for key, theirs in expected.items():
        np.testing.assert_allclose(found[key].losses, theirs.losses, rtol=1e-9)
        np.testing.assert_array_equal(found[key].rates, theirs.rates)
        for metric, value in theirs.metrics.items():
            np.testing.assert_allclose(found[key].metrics[metric], value, rtol=1e-9)


@pytest.mark.parametrize("name", TRAINERS)
def test_branch_under_the_same_schedule_is_the_trial_itself(name):
    """Up to the next evaluation, without random numbers: its data, optimizer and steps go on."""
    spec = make_spec(steps=24, evaluate_every=4, pruner=RUNGS)
    task = Task(number=0, seed=3, params=complete(0.02, "cosine", {"name": "adamw"}))
    trainer = TRAINERS[name](regression(), spec)
    trainer.admit(task)
    (event,) = trainer.advance(1000)
    assert event.next_step == 8
    plan = BranchPlan(steps=4, schedule=same_schedule)
    (branch,) = trainer.branch([0], plan, lambda: True)
    (after,) = trainer.advance(4)
    np.testing.assert_array_equal(branch.losses, after.columns["train_loss"])
    assert dict(branch.metrics) == dict(after.evaluations[-1].metrics)


@pytest.mark.parametrize("name", TRAINERS)
def test_interrupted_branch_leaves_nothing(name):
    spec = make_spec(steps=24, pruner=RUNGS)
    trainer = TRAINERS[name](regression(), spec)
    trainer.admit(Task(number=0, seed=3, params=complete(0.02, "cosine", {"name": "sgd"})))
    trainer.advance(1000)
    before = trainer.snapshot(0)
    assert trainer.branch([0], PLAN, lambda: False) is None
    assert trainer.snapshot(0) == before


@pytest.mark.parametrize("name", TRAINERS)
def test_branch_that_diverges_has_no_metrics(name):
    spec = make_spec(steps=24, pruner=RUNGS)
    trainer = TRAINERS[name](regression(), spec)
    trainer.admit(Task(number=0, seed=3, params=complete(0.02, "cosine", {"name": "sgd"})))
    trainer.advance(1000)
    explosive = BranchPlan(steps=30, schedule=lambda _, steps: [1e30] * steps)
    (branch,) = trainer.branch([0], explosive, lambda: True)
    assert all(math.isnan(value) for value in branch.metrics.values())
    assert len(branch.losses) < 30


@given(rest=st.integers(1, 400), steps=st.integers(1, 60))
def test_fast_forward_runs_through_the_rest_of_the_schedule(rest, steps):
    """Step j has the rate in the middle of its share: of rates 0, 1, 2, … that is their floor."""
    found = fast_forward(list(range(rest)), steps)
    assert found == [math.floor(rest * (2 * j + 1) / (2 * steps)) for j in range(steps)]
