"""Trials of several shapes: equals train together, as if each group were a study of its own."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
from cohorts import assert_close, resumed, train_all
from test_reference import assert_same, curve_of
from training_here import PREFIXES, submitted, train

from tuner.config import StudySpec
from tuner.operations.rerun import rerun
from tuner.training import trainer_choice
from tuner.training.branches import BranchPlan, fast_forward
from tuner.training.cohort import groups
from tuner.training.cohort.groups import GroupedTrainer
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.out_of_memory import TooManyTogetherError
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import Status, Task

TABLES = {
    "workload": {"factory": "tests.workloads:of_any_kind", "arguments": {"kind": "network"}},
    "training": {"epochs": 8, "evaluate_every": 4, "dtype": "float64"},
    "space": {
        "lr": {"low": 0.01, "high": 0.1},
        "schedule": ["constant", "cosine"],
        "optimizer": [{"name": "sgd", "momentum": 0.9}, "adamw"],
        "batch_size": [4, 8],
        "clip_norm": {"low": 0.05, "high": 2.0},
        "arguments": {"width": [3, 5], "drop": [0.0, 0.5]},
    },
    "search": {"sampler": "random", "pruner": {"name": "asha", "min_steps": 4}},
    "budget": {"trials": 40},
}


def spec_of(**changes):
    tables = {name: {**table, **changes.get(name, {})} for name, table in TABLES.items()}
    return StudySpec.model_validate({"study": {"name": "groups"}, **tables})


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


def by_key(spec, some):
    found = {}
    for task in some:
        found.setdefault(groups.common_of(spec, task.params), []).append(task)
    return found


def apart(workload, spec, some):
    """Train each trial in a cohort of its own."""
    events = {}
    for key, own in by_key(spec, some).items():
        trainer = CohortTrainer(workload.of(own[0].params), spec, 1, common=dict(key))
        events |= train_all(trainer, own)
    return {number: curve_of(own) for number, own in events.items()}


@pytest.mark.slow
def test_curves_are_bitwise_those_of_cohorts_of_one(workload):
    """In groups that come and go, in steps of any number, with and without interruptions."""
    some = tasks(SPEC, 14)
    assert 4 < len(by_key(SPEC, some)) < 9
    expected = apart(workload, SPEC, some)
    chunks = random.Random(5)

    def moved(trainer, running):
        for number in [one for one in running if chunks.random() < 0.2]:
            trainer.admit(resumed(trainer, running[number]))

    def steps():
        while True:
            yield chunks.randint(1, 30)

    trainer = GroupedTrainer(workload, SPEC, 6)
    found = train_all(trainer, some, steps(), moved)
    for number, curve in expected.items():
        assert_same(curve_of(found[number]), curve)
    assert trainer.advance(1) == []
    assert trainer._groups == [], "empty groups are released"


@pytest.mark.slow
def test_curves_are_those_of_the_reference_trainer(workload):
    some = tasks(SPEC, 8)
    found = train_all(GroupedTrainer(workload, SPEC, 8), some)
    expected = train_all(ReferenceTrainer(workload, SPEC), some)
    clipped = train_all(
        ReferenceTrainer(workload, SPEC),
        [replace(one, params={**one.params, "clip_norm": 1e9}) for one in some],
    )
    for number, events in expected.items():
        assert_close(curve_of(found[number]), curve_of(events))
    assert any(curve_of(expected[n])[1] != curve_of(clipped[n])[1] for n in expected)


@pytest.mark.slow
def test_what_cannot_be_stacked_is_trained_by_the_reference_trainer(workload):
    spec = spec_of(space={"accumulate": [1, 2]})
    some = tasks(spec, 6)
    accumulating = [one for one in some if one.params["accumulate"] == 2]
    assert 0 < len(accumulating) < len(some)
    found = train_all(GroupedTrainer(workload, spec, 6), some)
    expected = train_all(ReferenceTrainer(workload, spec), accumulating)
    for number, events in expected.items():
        assert_same(curve_of(found[number]), curve_of(events))


@pytest.mark.longer
def test_out_of_memory_in_a_group_leaves_the_others_alone(workload, monkeypatch):
    """On a machine where two trials of width 5 do not fit."""
    some = [
        Task(number=number, seed=number, params={**one.params, "width": width})
        for number, (one, width) in enumerate(zip(tasks(SPEC, 6, batch_size=8, drop=0.0),
                                                  [3, 5, 5, 3, 5, 3], strict=True))
    ]  # fmt: skip
    advance = CohortTrainer.advance

    def short(self, max_steps):
        if self._common["width"] == 5 and len(self._members()) > 1:
            raise MemoryError
        return advance(self, max_steps)

    expected = apart(workload, SPEC, some)
    monkeypatch.setattr(CohortTrainer, "advance", short)
    trainer = GroupedTrainer(workload, SPEC, 6)
    for task in some:
        trainer.admit(task)
    first = {event.number: event for event in trainer.advance(5)}
    assert {n for n, event in first.items() if event.status is Status.FAILED} == {1, 2, 4}
    for number in (1, 2, 4):
        assert isinstance(first[number].error, TooManyTogetherError)
        assert "width 5 ran out of memory; from now on at most 1" in first[number].reason
        assert first[number].next_step == 0
        trainer.evict(number)
        trainer.admit(some[number])  # as the next attempt
    events = {number: [] if number in (1, 2, 4) else [first[number]] for number in first}
    while made := trainer.advance(1000):
        for event in made:
            events[event.number].append(event)
    for number, curve in expected.items():
        assert_same(curve_of(events[number]), curve)


def test_without_memory_for_one_the_reference_trainer_takes_over(workload, monkeypatch):
    def short(self, max_steps):
        raise MemoryError

    monkeypatch.setattr(CohortTrainer, "advance", short)
    (task,) = tasks(SPEC, 1)
    trainer = GroupedTrainer(workload, SPEC, 4)
    trainer.admit(task)
    (event,) = trainer.advance(5)
    assert "from now on by the reference trainer" in event.reason
    trainer.evict(0)
    found = train_all(trainer, [task])
    expected = train_all(ReferenceTrainer(workload, SPEC), [task])
    assert_same(curve_of(found[0]), curve_of(expected[0]))


def test_an_error_of_a_group_fails_its_members_alone(workload):
    def broken(params):
        def loss(outputs, targets):
            if outputs.dtype == torch.float64 and torch.is_grad_enabled() and ready:
                raise RuntimeError("the server said no")
            return own.loss(outputs, targets)

        own = workload.of(params)
        return replace(own, loss=loss) if params["width"] == 5 else own

    ready: list[int] = []
    some = tasks(SPEC, 6, batch_size=8)
    trainer = GroupedTrainer(replace(workload, build=broken, built={}), SPEC, 6)
    for task in some:
        trainer.admit(task)
    ready.append(1)
    for event in trainer.advance(2):
        failed = some[event.number].params["width"] == 5
        assert (event.status is Status.FAILED) == failed
        assert (event.error is not None) == failed


@pytest.mark.longer
def test_branches_are_those_of_a_cohort_of_the_group(workload):
    some = tasks(SPEC, 6)
    plan = BranchPlan(steps=3, schedule=fast_forward)
    trainer = GroupedTrainer(workload, SPEC, 6)
    for task in some:
        trainer.admit(task)
    at = [event.number for event in trainer.advance(1000) if event.status is Status.AT_RUNG]
    assert len({groups.common_of(SPEC, some[number].params) for number in at}) > 2
    found = trainer.branch(at[::-1], plan, lambda: True)
    assert [branch.number for branch in found] == at[::-1]
    for branch in found:
        task = some[branch.number]
        own = CohortTrainer(
            workload.of(task.params), SPEC, 1, common=dict(groups.common_of(SPEC, task.params))
        )
        own.admit(task)
        own.advance(1000)
        (expected,) = own.branch([task.number], plan, lambda: True)
        assert dict(branch.metrics) == dict(expected.metrics)
        assert branch.losses.tolist() == expected.losses.tolist()
    assert trainer.branch(at, plan, lambda: False) is None


def test_slots_are_shared(workload):
    some = tasks(SPEC, 3)
    trainer = GroupedTrainer(workload, SPEC, 2)
    for task in some[:2]:
        trainer.admit(task)
    with pytest.raises(ValueError, match="expected a free slot for trial 2, got 2 taken ones"):
        trainer.admit(some[2])
    with pytest.raises(ValueError, match="trial 0 has a slot already"):
        trainer.admit(some[0])
    trainer.evict(0)
    trainer.admit(some[2])
    with pytest.raises(ValueError, match="trial 0 has no slot"):
        trainer.snapshot(0)


# --- choosing -------------------------------------------------------------------------------------


@pytest.mark.longer
@pytest.mark.parametrize(("together", "trainer"), [(0.001, "cohort"), (1000.0, "reference")])
def test_what_pays_is_measured_on_a_mix_of_the_space(workload, together, trainer, monkeypatch):
    keys = []

    def seconds(trained, some, steps, clock):
        keys.extend(groups.common_of(SPEC, task.params) for task in some)
        return len(some) * steps * (together if isinstance(trained, GroupedTrainer) else 1.0)

    monkeypatch.setattr(trainer_choice, "_seconds", seconds)
    choice = trainer_choice.choose(workload, SPEC, slots=5, seconds=10.0)
    assert choice.trainer == trainer
    assert len(set(keys)) > 2
    made = trainer_choice.trainer_for(workload, SPEC, choice)
    assert isinstance(made, GroupedTrainer if trainer == "cohort" else ReferenceTrainer)


@pytest.mark.slow
def test_slots_are_halved_until_the_memory_suffices_for_all_groups(workload, monkeypatch):
    """On a machine that has memory for two members of a group."""
    advance = CohortTrainer.advance

    def short(self, max_steps):
        if len(self._members()) > 2:
            raise MemoryError
        return advance(self, max_steps)

    monkeypatch.setattr(CohortTrainer, "advance", short)
    choice = trainer_choice.choose(workload, SPEC, slots=16, clock=itertools.count().__next__)
    assert choice.trainer == "cohort"
    assert 2 <= choice.slots <= 8


def test_planning_counts_once_for_all_trials_that_differ_in_numbers_alone(workload, monkeypatch):
    """A hundred probabilities of dropout are one group, so planning takes a hundredth of itself."""
    spec = spec_of(
        space={"batch_size": 4, "arguments": {"width": 3, "drop": {"low": 0.0, "high": 0.5}}},
        budget={"trials": 100},
    )
    loaded = trainer_choice.load(spec, PREFIXES)
    took = iter([1.0, 100.0])  # a step alone, and a first one in groups, with planning

    def seconds(trained, some, steps, clock):
        grouped = isinstance(trained, GroupedTrainer)
        if grouped:
            assert len({trained.key_of(task.params) for task in some}) == 1
        return next(took, len(some) * steps * (0.5 if grouped else 1.0))

    monkeypatch.setattr(trainer_choice, "_seconds", seconds)
    choice = trainer_choice.choose(loaded, spec, slots=4, seconds=10.0)
    assert choice.trainer == "cohort", choice.reason


def test_a_space_of_which_nothing_can_be_stacked_has_the_reason(workload):
    spec = spec_of(training={"accumulate": 2})
    choice = trainer_choice.choose(workload, spec)
    assert (choice.trainer, choice.slots) == ("reference", 1)
    assert "accumulate = 2" in choice.reason


@pytest.mark.slow
def test_a_study_of_several_shapes(ledger, places, monkeypatch):
    """Trained by a worker, through rungs, on a machine where some groups are too large at first."""
    advance = CohortTrainer.advance

    def short(self, max_steps):
        if len(self._members()) > 2:
            raise MemoryError
        return advance(self, max_steps)

    monkeypatch.setattr(CohortTrainer, "advance", short)
    tables = TABLES | {
        "training": {**TABLES["training"], "steps": None, "trainer": "cohort", "slots": 10},
        "budget": {"trials": 16},
    }
    study = train(ledger, places, submitted(ledger, **tables))
    assert study.settled["trainer"] == "cohort"
    counts = ledger.counts(study.id)
    assert counts["completed"] + counts["pruned"] == 16
    assert {one.ending for one in ledger.attempts(study.id)} == {"interrupted", "finished"}
    for number in (0, 9):
        assert rerun(ledger, study, number, PREFIXES).equal
