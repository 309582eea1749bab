"""Which trainer a study gets, with how many slots, and why."""

import itertools
import re

import pytest
import torch
from test_reference import make_spec, regression
from torch import nn

from tuner.config import StudySpec
from tuner.examples import digits
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.device import use_threads
from tuner.training.reference import ReferenceTrainer
from tuner.training.train_functions import TrainFunction
from tuner.training.trainer_choice import (
    Choice,
    Threads,
    automatic_slots,
    choose,
    choose_threads,
    trainer_for,
)


def spec_of(trials, space=None, **training):
    content = make_spec(**training).model_dump(mode="json")
    plain = {"lr": 0.01, "schedule": "constant", "optimizer": "sgd"}
    content |= {"budget": {"trials": trials, "decide": 0}, "space": plain | (space or {})}
    return StudySpec.model_validate(content)


@pytest.mark.parametrize(
    ("trials", "slots"), [(1, 1), (15, 1), (16, 2), (60, 7), (512, 64), (100_000, 64)]
)
def test_slots_are_at_most_an_eighth_of_the_budget(trials, slots):
    assert automatic_slots(spec_of(trials)) == slots


def clock(alone, together):
    """Let each turn of the plain trainer and each of the cohort take so many seconds."""
    ticks = itertools.accumulate(itertools.cycle([0.0, alone, 0.0, together]))
    return lambda: next(ticks)


@pytest.mark.slow
def test_many_small_trials_train_together():
    space = {
        "lr": {"low": 1e-4, "high": 1.0},
        "schedule": ["constant", {"name": "cosine", "warmup": [0.0, 0.1]}],
        "optimizer": ["sgd", {"name": "adamw", "weight_decay": {"low": 1e-4, "high": 0.1}}],
    }
    workload, spec = digits.mlp(), spec_of(128, space, batch_size=64, dtype="float32")
    choice = choose(workload, spec, clock=clock(alone=1.0, together=0.001))
    assert (choice.trainer, choice.slots) == ("cohort", 16)
    assert choice.reason.startswith("a step of a trial takes ")
    trainer = trainer_for(workload, spec, choice)
    assert isinstance(trainer, CohortTrainer)
    assert trainer.capacity == 16


def test_what_is_slower_together_trains_alone():
    choice = choose(regression(), spec_of(16), clock=clock(alone=1.0, together=1000.0))
    assert (choice.trainer, choice.slots) == ("reference", 1)
    said = r"a step of a trial takes 5e\+08 µs in a cohort of 2 and 1e\+06 µs by itself"
    assert re.fullmatch(said, choice.reason)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(("places", "slots"), [(64, 64), (20, 16), (8, 8), (1, 1)])
def test_slots_are_halved_until_memory_suffices(places, slots, monkeypatch):
    """On a machine that has memory for so many slots and no more."""
    advance = CohortTrainer.advance

    def short(self, max_steps):
        if self.capacity > places:
            raise MemoryError
        return advance(self, max_steps)

    monkeypatch.setattr(CohortTrainer, "advance", short)
    spec = spec_of(512, batch_size=64, dtype="float32")
    choice = choose(digits.mlp(), spec, clock=itertools.count().__next__)
    assert choice.slots == slots
    assert choice.trainer == ("cohort" if slots > 1 else "reference")


class Branching(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.line = nn.Linear(3, 1, dtype=dtype)

    def forward(self, inputs):
        outputs = self.line(inputs)
        return outputs if outputs.sum() > 0 else 2 * outputs


@pytest.mark.parametrize(
    ("workload", "spec", "said"),
    [
        (regression(), spec_of(8), "8 trials are too few to train more than one at a time"),
        (regression(), spec_of(80, accumulate=2), "accumulate = 2"),
        (regression(), spec_of(80, seconds=3.0), "seconds"),
        (regression(lambda seed, dtype: Branching(dtype)), spec_of(80), "data-dependent"),
    ],
)
def test_why_trials_train_one_at_a_time(workload, spec, said):
    choice = choose(workload, spec)
    assert (choice.trainer, choice.slots) == ("reference", 1)
    assert said in choice.reason
    assert isinstance(trainer_for(workload, spec, choice), ReferenceTrainer)


def test_without_a_choice_it_is_the_plain_trainer():
    assert isinstance(trainer_for(regression(), spec_of(100)), ReferenceTrainer)


def test_one_slot_that_was_asked_for():
    choice = choose(regression(), spec_of(100), slots=1)
    assert choice == Choice(trainer="reference", slots=1, reason="there is one slot")


# --- threads


def times(*seconds):
    """Let each step that is timed take so many seconds."""
    ticks = itertools.accumulate(itertools.chain.from_iterable((0.0, one) for one in seconds))
    return lambda: next(ticks)


def rounds(*seconds):
    """What the clock of a measurement is asked: a first step, and three rounds of each number."""
    return times(0.0, *(one for one in seconds for _ in range(3)))


OWN = TrainFunction(
    name="m:f", call=lambda trial: None, arguments={}, data_name="none", data_digest=""
)
ALONE = Choice(trainer="reference", slots=1, reason="")


def threads(busy, *seconds, most=8, **training):
    """Choose with one step that computes for so long, and steps that take so long by threads."""
    spec = spec_of(1, steps=1, **training)
    before = torch.get_num_threads()
    try:
        return choose_threads(
            regression(), spec, ALONE, most=most, clock=rounds(*seconds), busy_clock=times(0, busy)
        )
    finally:
        use_threads(before)


@pytest.mark.parametrize(
    ("seconds", "most", "count"),
    [
        ((1.0, 0.5, 0.3, 0.29), 8, 4),
        ((1.0, 0.9), 8, 1),
        ((1.0, 0.5), 2, 2),
        ((1.0, 0.5, 0.4), 3, 3),
    ],
)
def test_threads_are_doubled_while_that_is_clearly_quicker(seconds, most, count):
    choice = threads(1.0, *seconds, most=most)
    assert choice.count == count
    assert choice.reason.startswith("a step takes 1e+03 ms with 1, ")


def test_small_steps_have_one_thread_and_nothing_more_is_measured():
    assert threads(0.001) == Threads(count=1, reason="a step computes for 1 ms with one thread")


def test_long_steps_are_measured_once_with_each_number_of_threads():
    clock = times(60.0, 60.0, 40.0, 39.0)
    busy = times(60.0)
    choice = choose_threads(
        regression(), spec_of(1, steps=1), ALONE, most=8, clock=clock, busy_clock=busy
    )
    assert choice.count == 2


def test_a_long_step_is_not_repeated_in_a_cohort():
    choice = choose(regression(), spec_of(64), clock=times(70.0, 60.0))
    assert choice.trainer == "reference"
    assert choice.reason == "a step takes 60 s, too long to gain from a cohort"


def test_a_number_that_was_asked_for_is_taken():
    assert threads(1.0, threads=3) == Threads(count=3, reason="the study asks for it")


@pytest.mark.parametrize(
    ("trained", "choice"),
    [
        (OWN, ALONE),
        (regression(), Choice(trainer="cohort", slots=8, reason="")),
    ],
)
def test_what_is_not_measured_has_one_thread(trained, choice):
    assert choose_threads(trained, spec_of(100), choice, most=8).count == 1


def test_a_step_that_raises_is_left_to_its_trial():
    def broken(seed, dtype):
        raise OSError("no weights")

    choice = choose_threads(regression(broken), spec_of(1), ALONE, most=8)
    assert choice == Threads(count=1, reason="a step raised OSError")


def test_measured_threads_are_no_part_of_a_digest():
    assert "threads" not in spec_of(1).model_dump_json()
    assert spec_of(1).digest() != spec_of(1, threads=2).digest()
