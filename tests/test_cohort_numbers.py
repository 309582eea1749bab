"""Trials that differ in numbers alone, such as the probability of dropout, train together."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import replace

import pytest
import torch
from cohorts import assert_close, resumed, train_all
from test_reference import assert_same, curve_of
from torch import nn
from training_here import PREFIXES, submitted, train

from tuner.config import StudySpec
from tuner.operations.rerun import rerun
from tuner.training import trainer_choice
from tuner.training.cohort import structure
from tuner.training.cohort.groups import GroupedTrainer
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import Task
from tuner.training.workloads import seeded

TABLES = {
    "workload": {"factory": "tests.workloads:numbered"},
    "training": {"steps": 24, "batch_size": 8, "evaluate_every": 6, "dtype": "float64"},
    "space": {
        "lr": {"low": 0.01, "high": 0.1},
        "schedule": "cosine",
        "optimizer": {"name": "adamw", "weight_decay": {"low": 1e-3, "high": 0.1}},
        "arguments": {
            "kind": ["chain", "gated"],
            "drop": {"low": 0.0, "high": 0.9},
            "smoothing": [0.0, 0.1, 0.3],
            "gate": {"low": 0.5, "high": 2.0, "log": True},
        },
    },
    "search": {"sampler": "random", "pruner": "none"},
    "budget": {"trials": 16},
}


def spec_of(**arguments):
    space = {**TABLES["space"], "arguments": {**TABLES["space"]["arguments"], **arguments}}
    return StudySpec.model_validate({"study": {"name": "numbers"}, **TABLES, "space": space})


SPEC = spec_of()


@pytest.fixture(scope="module")
def workload():
    return trainer_choice.load(SPEC, PREFIXES)


def tasks(spec, count, **fixed):
    numbers = random.Random(3)
    return [
        Task(number=number, seed=50 + number, params=spec.space.draw(numbers, fixed))
        for number in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chain", "gated"])
def test_members_with_numbers_of_their_own_are_what_each_is_alone(workload, kind):
    """To the bit in any slot, and to 1e-9 of the reference trainer, whose masks they draw."""
    some = tasks(SPEC, 6, kind=kind)
    some[1] = replace(some[1], params={**some[1].params, "drop": 0.0})
    some[4] = replace(some[4], params={**some[4].params, "drop": 0.0})
    chunks = random.Random(5)
    together = []

    def moved(trainer, running):
        together.append([len(group.members) for group in trainer._groups])
        for number in [one for one in running if chunks.random() < 0.2]:
            trainer.admit(resumed(trainer, running[number]))

    steps = iter(lambda: chunks.randint(1, 9), 0)
    found = train_all(GroupedTrainer(workload, SPEC, 4), some, steps, moved)
    assert together[0] == [4]
    assert all(len(members) <= 1 for members in together)
    alone = train_all(GroupedTrainer(workload, SPEC, 1), some)
    expected = train_all(ReferenceTrainer(workload, SPEC), some)
    for number in expected:
        assert_same(curve_of(found[number]), curve_of(alone[number]))
        assert_close(curve_of(found[number]), curve_of(expected[number]))


@pytest.mark.longer
def test_branches_and_the_last_members_keep_their_numbers(workload):
    """A member that moves to a smaller block takes its dropout and its loss along."""
    some = tasks(SPEC, 40, kind="chain")
    trainer = GroupedTrainer(workload, SPEC, 40)
    for task in some:
        trainer.admit(task)
    (group,) = trainer._groups
    trainer.advance(2)
    places = sum(len(block.rows) for block in group.trainer._allocator.blocks)
    for task in some[1:-1]:
        trainer.evict(task.number)
    events = {0: [], 39: []}
    while made := trainer.advance(100):
        for event in made:
            events[event.number].append(event)
    assert sum(len(block.rows) for block in group.trainer._allocator.blocks) < places
    expected = train_all(GroupedTrainer(workload, SPEC, 1), [some[0], some[39]])
    for number, own in expected.items():
        assert events[number][-1].value == own[-1].value


def without_layer(own, made):
    """As a factory that has no dropout layer at 0."""

    def model(seed, dtype):
        layers = made.model(seed, dtype)
        return layers if own["drop"] else nn.Sequential(*(layers[i] for i in (0, 1, 3)))

    return replace(made, model=model)


def other_data(own, made):
    return replace(made, train_inputs=made.train_inputs * (1 + own["drop"]))


class Branching(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.drop = drop
        self.line = nn.Linear(2, 2)

    def forward(self, inputs):
        return self.line(inputs) if self.drop > 0.2 else -self.line(inputs)


def branching(own, made):
    """As a model whose code depends on the number."""

    def model(seed, dtype):
        with seeded(seed):
            return Branching(own["drop"]).to(dtype)

    return replace(made, model=model)


def own_loss(own, made):
    """As a loss that is a function of the factory."""

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) * (1 + own["drop"])

    return replace(made, loss=loss)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "groups"),
    [(without_layer, 2), (other_data, 3), (branching, 3), (own_loss, 1)],
)
def test_an_argument_that_changes_more_makes_groups(workload, change, groups):
    spec = spec_of(kind="chain", drop=[0.0, 0.1, 0.5], smoothing=0.1, gate=1.0)
    build = workload.build
    changed = replace(
        trainer_choice.load(spec, PREFIXES), build=lambda own: change(own, build(own)), built={}
    )
    some = [
        replace(task, params={**task.params, "drop": drop})
        for task, drop in zip(tasks(spec, 4), [0.5, 0.0, 0.1, 0.5], strict=True)
    ]
    trainer = GroupedTrainer(changed, spec, 4)
    for task in some:
        trainer.admit(task)
    assert len(trainer._groups) == groups
    found = train_all(GroupedTrainer(changed, spec, 4), some)
    expected = train_all(ReferenceTrainer(changed, spec), some)
    for number in expected:
        assert_close(curve_of(found[number]), curve_of(expected[number]))


def function(value):
    return lambda: value


def recursive():
    def own():
        return own

    return own


@pytest.mark.parametrize(
    ("make", "same"),
    [
        (lambda: function(0.1), True),
        (lambda: function(random.random()), False),
        (lambda: functools.partial(math.pow, 2.0), True),
        (lambda: functools.partial(math.pow, random.random()), False),
        (lambda: {"a": [torch.arange(3), (1, "b", None)]}, True),
        (lambda: {"a": torch.rand(3, generator=torch.Generator())}, True),
        (lambda: torch.full((), random.random()), False),
        (lambda: nn.CrossEntropyLoss(weight=torch.ones(2)), True),
        (lambda: nn.CrossEntropyLoss(weight=torch.full((2,), random.random())), False),
        (lambda: nn.CrossEntropyLoss(label_smoothing=random.random()), False),
        (recursive, False),
        (object, False),
    ],
)
def test_what_cannot_be_told_apart(make, same):
    assert structure.same(make(), make()) is same


@pytest.mark.slow
def test_a_study_of_dropout_trains_as_one_group(ledger, places, monkeypatch):
    advance, groups = GroupedTrainer.advance, []

    def noted(self, max_steps):
        groups.append([len(group.members) for group in self._groups])
        return advance(self, max_steps)

    monkeypatch.setattr(GroupedTrainer, "advance", noted)
    tables = TABLES | {
        "training": {**TABLES["training"], "trainer": "cohort", "slots": 8},
        "space": {**TABLES["space"], "arguments": {"drop": {"low": 0.0, "high": 0.9}}},
    }
    study = train(ledger, places, submitted(ledger, **tables))
    assert study.settled["trainer"] == "cohort"
    assert ledger.counts(study.id)["completed"] == 16
    assert {len(members) for members in groups} == {1}
    assert groups[0] == [8]
    assert rerun(ledger, study, 3, PREFIXES).equal
