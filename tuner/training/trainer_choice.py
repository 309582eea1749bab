"""What a study trains, and the trainer for it: which one, and with how many slots."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tuner.config import Entry, ParameterValue, Range, StudySpec, options
from tuner.core.failures import sentence
from tuner.training import train_functions, out_of_memory, objective, workloads
from tuner.training.cohort import eligibility
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.device import use_threads
from tuner.training.train_functions import TrainFunction
from tuner.training.function_trainer import FunctionTrainer
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import Task, Trainer
from tuner.training.workloads import Workload

Trained: TypeAlias = Workload | TrainFunction

TRIALS_PER_SLOT = 8
"""Slots are at most this part of the budget: trials side by side do not learn from each other."""

MAX_SLOTS = 64
"""Slots beyond these make no trial cheaper."""

MIN_STEP_SECONDS = 0.005
"""A step that computes for less than this with one thread gains little or nothing by more."""

MIN_THREAD_SPEEDUP = 1.2
"""How much quicker a step must be with twice the threads: below, the difference may be chance."""

MIN_COHORT_SPEEDUP = 1.1
"""How much quicker a cohort must be to be chosen: below, the difference may be chance."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A trainer for a study."""

    trainer: str  # "reference", "cohort" or "own"
    slots: int  # trials at a time
    reason: str  # a sentence without capital and full stop


def load(spec: StudySpec, prefixes: Sequence[str]) -> Trained:
    """Import what a study trains. Raises `WorkloadError`."""
    if spec.workload.train is not None:
        return train_functions.load(spec.workload.train, spec.workload.arguments, prefixes)
    return workloads.load(spec.workload.function, spec.workload.arguments, prefixes)


def trainer_for(trained: Trained, spec: StudySpec, choice: Choice | None = None) -> Trainer:
    """Make the trainer; without a choice, the plain one.

    Raises `WorkloadError` when the study's metric is not measured, or its trials cannot be trained
    together and were to be.
    """
    if isinstance(trained, TrainFunction):
        return FunctionTrainer(trained, spec)
    if choice is not None and choice.trainer == "cohort":
        return CohortTrainer(trained, spec, choice.slots)
    return ReferenceTrainer(trained, spec)


def settled(kept: Mapping[str, Any]) -> Choice:
    """Give the choice that a study has settled on, from what the ledger keeps of it."""
    slots, reason = kept.get("slots", 1), kept.get("reason", "")
    return Choice(trainer=kept["trainer"], slots=slots, reason=reason)


def automatic_slots(spec: StudySpec) -> int:
    """Give the most slots that do not cost search quality: an eighth of the budget, or one."""
    return max(1, min(MAX_SLOTS, spec.budget.trials // TRIALS_PER_SLOT))


def settle(trained: Trained, spec: StudySpec) -> Choice:
    """Choose as the study file says: by name where that is possible, or by a measurement.

    Raises `WorkloadError` when the study's metric is not measured.
    """
    training = spec.training
    slots = None if training.slots == "auto" else training.slots
    if training.trainer == "auto" or isinstance(trained, TrainFunction):
        return choose(trained, spec, slots=slots)
    if training.trainer == "reference":
        return Choice(trainer="reference", slots=1, reason="the study asks for it")
    obstacle = eligibility.reason_not_stackable(trained, spec)
    if obstacle:
        return Choice(trainer="reference", slots=1, reason=obstacle)
    wanted = automatic_slots(spec) if slots is None else slots
    return Choice(trainer="cohort", slots=wanted, reason="the study asks for it")


def choose(
    trained: Trained,
    spec: StudySpec,
    *,
    slots: int | None = None,  # None: `automatic_slots`
    seconds: float = 2.0,  # about how long to measure
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Say which trainer a study is to have, by training a little with both.

    The answer depends on the machine, so it is asked for once in a study's life and kept. Where
    the workload's code raises, it is the plain trainer, so that each trial fails with its own
    reason. Raises `WorkloadError` when the study's metric is not measured.
    """
    if isinstance(trained, TrainFunction):
        return Choice(trainer="own", slots=1, reason="a train function has a loop of its own")
    objective.check_metric(spec, trained)
    wanted = automatic_slots(spec) if slots is None else slots
    if wanted < 2:
        few = f"{spec.budget.trials} trials are too few to train more than one at a time"
        reason = few if slots is None else "there is one slot"
        return Choice(trainer="reference", slots=1, reason=reason)
    obstacle = eligibility.reason_not_stackable(trained, spec)
    if obstacle:
        return Choice(trainer="reference", slots=1, reason=obstacle)
    reason = "memory is too short for two trials at a time"
    while wanted >= 2:
        try:
            alone, together = _measured(trained, spec, wanted, seconds, clock)
            break
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if not out_of_memory.is_out_of_memory(error):
                wanted, reason = 0, f"the trainers could not be compared: {_clause(error)}"
        out_of_memory.release_memory()
        wanted //= 2
    else:
        return Choice(trainer="reference", slots=1, reason=reason)
    numbers = (
        f"a step of a trial takes {1e6 * together:.3g} µs in a cohort of {wanted} and "
        f"{1e6 * alone:.3g} µs by itself"
    )
    if together * MIN_COHORT_SPEEDUP <= alone:
        return Choice(trainer="cohort", slots=wanted, reason=numbers)
    return Choice(trainer="reference", slots=1, reason=numbers)


@dataclass(frozen=True, kw_only=True)
class Threads:
    """How many CPU threads a study's operators use."""

    count: int
    reason: str  # a sentence without capital and full stop


def choose_threads(
    trained: Trained,
    spec: StudySpec,
    choice: Choice,
    *,
    most: int | None = None,  # None: as many as this process may use processors
    seconds: float = 2.0,  # about how long to measure, for each number of threads
    clock: Callable[[], float] = time.perf_counter,
    busy_clock: Callable[[], float] = time.process_time,
) -> Threads:
    """Return the number of threads that the study asks for, or measure which is quickest.

    Threads are doubled while that makes a step `MIN_THREAD_SPEEDUP`. The answer depends on the machine, and
    results on the answer, so it is asked for once in a study's life and kept. A step that raises is
    no reason to stop here: its trial says so.
    """
    asked = spec.training.threads
    if asked != "auto":
        return Threads(count=asked, reason="the study asks for it")
    if isinstance(trained, TrainFunction):
        return Threads(count=1, reason="a train function is not measured")
    if choice.trainer != "reference" or spec.training.device != "cpu":
        return Threads(count=1, reason="more would not help a cohort or a GPU")
    most = _processors() if most is None else most
    try:
        return _quickest(trained, spec, most, seconds, clock, busy_clock)
    except Exception as error:
        return Threads(count=1, reason=f"a step raised {type(error).__name__}")


def _quickest(
    workload: Workload,
    spec: StudySpec,
    most: int,
    seconds: float,
    clock: Callable[[], float],
    busy_clock: Callable[[], float],
) -> Threads:
    trainer = ReferenceTrainer(workload, spec)
    tasks = _tasks(spec, 1)

    def a_step(threads: int, steps: int, clock: Callable[[], float]) -> float:
        use_threads(threads)
        return _seconds(trainer, tasks, steps, clock) / steps

    a_step(1, 1, clock)  # what only first calls take
    busy = a_step(1, min(2, spec.training.steps), busy_clock)
    if most < 2 or busy < MIN_STEP_SECONDS:
        return Threads(count=1, reason=f"a step computes for {1e3 * busy:.2g} ms with one thread")
    rounds, few = 3, 20
    steps = max(1, min(int(seconds / rounds / busy), few, spec.training.steps))

    def median(threads: int) -> float:
        return statistics.median(a_step(threads, steps, clock) for _ in range(rounds))

    measured = {1: median(1)}
    count = 1
    while count < most:
        more = min(2 * count, most)
        measured[more] = median(more)
        if measured[more] * MIN_THREAD_SPEEDUP > measured[count]:
            break
        count = more
    numbers = ", ".join(f"{1e3 * took:.3g} ms with {n}" for n, took in measured.items())
    return Threads(count=count, reason=f"a step takes {numbers}")


def _processors() -> int:
    """Count the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _clause(error: BaseException) -> str:
    said = sentence(error).removesuffix(".")
    return f"{said[:1].lower()}{said[1:]}"


def _measured(
    workload: Workload, spec: StudySpec, slots: int, seconds: float, clock: Callable[[], float]
) -> tuple[float, float]:
    """Give the seconds of a trial's step, alone and in a cohort, as medians of turns."""
    plain, cohort = ReferenceTrainer(workload, spec), CohortTrainer(workload, spec, slots)
    tasks = _tasks(spec, slots)
    first = _seconds(plain, tasks[:1], 1, clock)  # of one step, and of what only first calls take
    rounds, most = 3, 20
    steps = int(seconds / rounds / 2 / max(first * slots, 1e-9))
    steps = max(1, min(steps, most, spec.training.steps))
    _seconds(cohort, tasks, 1, clock)
    alone, together = [], []
    for _ in range(rounds):
        alone.append(_seconds(plain, tasks[:1], steps, clock) / steps)
        together.append(_seconds(cohort, tasks, steps, clock) / steps / slots)
    return statistics.median(alone), statistics.median(together)


def _seconds(
    trainer: Trainer, tasks: Sequence[Task], steps: int, clock: Callable[[], float]
) -> float:
    """Train trials for some steps from their beginning, as a search would, and forget them."""
    began = clock()
    for task in tasks:
        trainer.admit(task)
    left = steps
    while left and (events := trainer.advance(left)):
        left -= max(1, *(len(event.times) for event in events))
    for task in tasks:
        trainer.evict(task.number)
    return clock() - began


def _tasks(spec: StudySpec, count: int) -> list[Task]:
    """Give trials at the lowest rates of the space, which train long, with choices in turn."""
    tasks = []
    for number in range(count):
        schedule = spec.space.schedule[number % len(spec.space.schedule)].name
        optimizer = spec.space.optimizer[number % len(spec.space.optimizer)].name
        own = spec.space.entries(schedule, optimizer)
        params: dict[str, ParameterValue] = {key: _lowest(entry) for key, entry in own.items()}
        params |= {"lr": _lowest(spec.space.lr), "schedule": schedule, "optimizer": optimizer}
        tasks.append(Task(number=number, seed=number, params=params))
    return tasks


def _lowest(entry: Entry) -> ParameterValue:
    if isinstance(entry, Range):
        return entry.low
    return options(entry)[0]
