"""Load what a study trains, and choose its trainer, number of slots and CPU threads."""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from tuner.config import ParameterValue, StudySpec, horizon_of, options, settings_of
from tuner.config.study import WorkloadTable
from tuner.core.errors import WorkloadError
from tuner.core.failures import sentence
from tuner.training import objective, out_of_memory, train_functions, workloads
from tuner.training.cohort import eligibility, groups
from tuner.training.cohort.groups import GroupedTrainer
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.device import use_threads
from tuner.training.function_trainer import FunctionTrainer
from tuner.training.programs import command, permission
from tuner.training.programs.function import isolated
from tuner.training.reference import ReferenceTrainer
from tuner.training.train_functions import TrainFunction
from tuner.training.trainer import Task, Trainer
from tuner.training.workloads import SearchedWorkload, Workload

Trained: TypeAlias = Workload | TrainFunction

TRIALS_PER_SLOT = 8
"""Minimum ratio of budget to slots: concurrent trials do not inform each other's sampling."""

MAX_SLOTS = 64
"""More slots than this do not reduce the cost of a trial."""

MIN_STEP_SECONDS = 0.005
"""A step that takes less with one thread gains little or nothing from more threads."""

MIN_THREAD_SPEEDUP = 1.2
"""Minimum speedup to double the threads; less may be noise."""

MIN_COHORT_SPEEDUP = 1.1
"""Minimum speedup to choose a cohort; less may be noise."""

SOME = 4
"""Random trials of a space; if none of them can be stacked, its trials train one at a time."""

MAX_DRAWS = 500
"""Maximum number of random trials drawn to count the different groups of a study."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The trainer of a study."""

    trainer: str  # "reference", "cohort" or "own"
    slots: int  # trials at a time
    reason: str  # a clause without full stop


def load(spec: StudySpec, prefixes: Sequence[str]) -> Trained:
    """Import the workload or train function of a study, or check its command.

    Raise `WorkloadError`.
    """
    refuse_asked(spec)
    if spec.workload.command is not None:
        return command.load(spec, prefixes)
    if spec.workload.train is not None:
        found = train_functions.load(
            spec.workload.train, spec.workload.arguments, prefixes, spec.space
        )
        return isolated(found, spec, prefixes) if spec.workload.is_isolated else found
    table = spec.workload
    return workloads.load(
        table.function, table.arguments, prefixes, spec.space, spec.retrain.data.on_bad
    )


def refuse_asked(spec: StudySpec) -> None:
    """Raise `WorkloadError` if the trials of a study are asked for, so that no worker has them."""
    if spec.workload.ask_and_tell:
        raise WorkloadError(
            f"study {spec.study.name!r} has no function to train: its trials are asked for and "
            "told in Python, by study.ask() and study.tell()"
        )


def code_digest(table: WorkloadTable, prefixes: Sequence[str]) -> str:
    """Return the digest of what a study runs; nothing is imported or run.

    Raise `WorkloadError` if it is not allowed.
    """
    if table.command is not None:
        return permission.code_digest(table.command, prefixes)
    return workloads.code_digest(table.function, prefixes)


def trainer_for(trained: Trained, spec: StudySpec, choice: Choice | None = None) -> Trainer:
    """Return the chosen trainer, by default the reference trainer.

    Raise `WorkloadError` if the study's metric is not measured, or if a cohort was chosen and the
    trials cannot be trained together.
    """
    if isinstance(trained, TrainFunction):
        return FunctionTrainer(trained, spec)
    if choice is not None and choice.trainer == "cohort":
        return _together(trained, spec, choice.slots)
    return ReferenceTrainer(trained, spec)


def _together(workload: Workload, spec: StudySpec, slots: int) -> Trainer:
    """Return a trainer of many trials at a time. Raise `WorkloadError`."""
    if eligibility.shared(spec):
        return GroupedTrainer(workload, spec, slots)
    return CohortTrainer(workload, spec, slots)


def _obstacle(workload: Workload, spec: StudySpec) -> str:
    """Return why the trials of a study cannot be trained together; empty if some can."""
    if eligibility.shared(spec):
        some = [task.params for task in _drawn_tasks(spec, SOME)]
        return groups.reason_not_stackable(workload, spec, some)
    return eligibility.reason_not_stackable(workload, spec)


def settled(kept: Mapping[str, Any]) -> Choice:
    """Return the choice of a study from its record in the ledger."""
    slots, reason = kept.get("slots", 1), kept.get("reason", "")
    return Choice(trainer=kept.get("trainer", "reference"), slots=slots, reason=reason)


def automatic_slots(spec: StudySpec) -> int:
    """Return the most slots that do not cost search quality: an eighth of the budget."""
    searched = spec.budget.trials - spec.deciding_trials
    return max(1, min(MAX_SLOTS, searched // TRIALS_PER_SLOT))


def settle(trained: Trained, spec: StudySpec) -> Choice:
    """Return the trainer that the study file names, if possible, or measure which is faster.

    Raise `WorkloadError` if the study's metric is not measured.
    """
    training = spec.training
    slots = None if training.slots == "auto" else training.slots
    if training.trainer == "auto" or isinstance(trained, TrainFunction):
        return choose(trained, spec, slots=slots)
    if training.trainer == "reference":
        return Choice(trainer="reference", slots=1, reason="the study asks for it")
    obstacle = _obstacle(trained, spec)
    if obstacle:
        return Choice(trainer="reference", slots=1, reason=obstacle)
    wanted = automatic_slots(spec) if slots is None else slots
    return Choice(trainer="cohort", slots=wanted, reason="the study asks for it")


def choose(
    trained: Trained,
    spec: StudySpec,
    *,
    slots: int | None = None,  # None: `automatic_slots`
    seconds: float = 2.0,  # approximate time to measure
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Return the faster trainer, measured by training a few steps with both.

    The result depends on the machine, so it is measured once per study and stored. If the
    workload's code raises, it is the reference trainer, so that each trial fails with its own
    reason. Raise `WorkloadError` if the study's metric is not measured.
    """
    if isinstance(trained, TrainFunction):
        return Choice(trainer="own", slots=1, reason="a train function has its own loop")
    objective.check_metric(spec, trained)
    wanted = automatic_slots(spec) if slots is None else slots
    if wanted < 2:
        few = f"{spec.budget.trials} trials are too few to train more than one at a time"
        reason = few if slots is None else "there is one slot"
        return Choice(trainer="reference", slots=1, reason=reason)
    obstacle = _obstacle(trained, spec)
    if obstacle:
        return Choice(trainer="reference", slots=1, reason=obstacle)
    reason = "there is not enough memory for two trials at a time"
    while wanted >= 2:
        try:
            measured = _measured_mix if eligibility.shared(spec) else _measured
            alone, together = measured(trained, spec, wanted, seconds, clock)
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
    if together is None:
        reason = f"a step takes {alone:.2g} s, too long to gain from a cohort"
    else:
        reason = (
            f"a step of a trial takes {1e6 * together:.3g} µs in a cohort of {wanted} and "
            f"{1e6 * alone:.3g} µs by itself"
        )
        if together * MIN_COHORT_SPEEDUP <= alone:
            return Choice(trainer="cohort", slots=wanted, reason=reason)
    return Choice(trainer="reference", slots=1, reason=reason)


@dataclass(frozen=True, kw_only=True)
class Threads:
    """Number of CPU threads of a study's operators."""

    count: int
    reason: str  # a clause without full stop


def choose_threads(
    trained: Trained,
    spec: StudySpec,
    choice: Choice,
    *,
    most: int | None = None,  # None: the processors available to this process
    seconds: float = 2.0,  # approximate time to measure each number of threads
    clock: Callable[[], float] = time.perf_counter,
    busy_clock: Callable[[], float] = time.process_time,
) -> Threads:
    """Return the number of threads that the study asks for, or measure which is fastest.

    Threads are doubled while that speeds up a step by `MIN_THREAD_SPEEDUP`. The result depends on
    the machine, and curves depend on the result, so it is measured once per study and stored. An
    exception of a step is ignored: the trials will raise it.
    """
    asked = spec.training.threads
    if asked != "auto":
        return Threads(count=asked, reason="the study asks for it")
    if isinstance(trained, TrainFunction):
        return Threads(count=1, reason="a train function is not measured")
    if choice.trainer != "reference" or spec.training.device != "cpu":
        return Threads(count=1, reason="a cohort or a GPU gains nothing from more threads")
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
    most_steps = settings_of(spec, tasks[0].params, workload.rows, workload.keeps_last).steps

    def a_step(threads: int, steps: int, clock: Callable[[], float]) -> float:
        use_threads(threads)
        return _seconds(trainer, tasks, steps, clock) / steps

    began = clock()
    busy = a_step(1, 1, busy_clock)
    is_long = clock() - began > seconds
    if not is_long:  # measure without the one-time costs of the first step
        busy = a_step(1, min(2, most_steps), busy_clock)
    if most < 2 or busy < MIN_STEP_SECONDS:
        return Threads(count=1, reason=f"a step computes for {1e3 * busy:.2g} ms with one thread")
    rounds, few = 1 if is_long else 3, 20
    steps = max(1, min(int(seconds / rounds / busy), few, most_steps))

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
    """Return the number of processors available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _clause(error: BaseException) -> str:
    message = sentence(error).removesuffix(".")
    return f"{message[:1].lower()}{message[1:]}"


def _measured(
    workload: Workload, spec: StudySpec, slots: int, seconds: float, clock: Callable[[], float]
) -> tuple[float, float | None]:
    """Return the median seconds per step of one trial, alone and in a cohort.

    A step that takes longer than `seconds` alone is not measured in a cohort.
    """
    plain, cohort = ReferenceTrainer(workload, spec), CohortTrainer(workload, spec, slots)
    tasks = _tasks(spec, slots)
    first = _seconds(plain, tasks[:1], 1, clock)  # one step, with one-time costs
    if first > seconds:
        first = _seconds(plain, tasks[:1], 1, clock)
        if first > seconds:
            return first, None
    rounds, most = 3, 20
    steps = int(seconds / rounds / 2 / max(first * slots, 1e-9))
    steps = max(1, min(steps, most, settings_of(spec, {}, workload.rows).steps))
    _seconds(cohort, tasks, 1, clock)
    alone, together = [], []
    for _ in range(rounds):
        alone.append(_seconds(plain, tasks[:1], steps, clock) / steps)
        together.append(_seconds(cohort, tasks, steps, clock) / steps / slots)
    return statistics.median(alone), statistics.median(together)


def _measured_mix(
    workload: Workload, spec: StudySpec, slots: int, seconds: float, clock: Callable[[], float]
) -> tuple[float, float | None]:
    """Return the same as `_measured`, of a random mix of the space, trained in groups.

    So a group of one costs what it does, and the memory is that of all groups together. The seconds
    in groups include a part of planning: once for each group of the study.
    """
    pruner = spec.search.model_validate({"sampler": "random", "pruner": "none"})
    spec = spec.model_copy(update={"search": pruner})  # no rungs at different steps
    if isinstance(workload, SearchedWorkload):  # so that none is built within the time
        workload = replace(workload, kept=sys.maxsize, built={})
    tasks = _drawn_tasks(spec, slots)
    keys = [groups.common_of(spec, task.params) for task in tasks]
    equals = {key: workload.of(task.params) for key, task in zip(keys, tasks, strict=True)}
    plain = {key: ReferenceTrainer(own, spec) for key, own in equals.items()}

    def alone(some: int, steps: int) -> float:
        turns = list(zip(keys, tasks, strict=True))[:some]
        return sum(_seconds(plain[key], [task], steps, clock) for key, task in turns) / some / steps

    first = alone(1, 1)
    if first > seconds:
        first = alone(1, 1)
        if first > seconds:
            return first, None
    horizons = [
        horizon_of(spec, task.params, equals[key].rows)
        for key, task in zip(keys, tasks, strict=True)
    ]
    rounds, most = 3, 20
    steps = max(1, min(int(seconds / rounds / 2 / max(first * slots, 1e-9)), most, *horizons))
    grouped = GroupedTrainer(workload, spec, slots)
    planning = _seconds(grouped, tasks, 1, clock)
    made = {grouped.key_of(task.params) for task in tasks}
    planning /= len(made)  # of a group
    own = set.intersection(*(set(key.own) for key in made))
    several = min(spec.budget.trials, MAX_DRAWS)
    drawn = [groups.common_of(spec, task.params) for task in _drawn_tasks(spec, several)]
    seen = {groups.key_without(common, own).common for common in drawn}
    share = planning * len(seen) / several / statistics.mean(horizons)  # of a step of a trial
    apart, together = [], []
    for _ in range(rounds):
        apart.append(alone(slots, steps))
        together.append(_seconds(grouped, tasks, steps, clock) / steps / slots + share)
    return statistics.median(apart), statistics.median(together)


def _seconds(
    trainer: Trainer, tasks: Sequence[Task], steps: int, clock: Callable[[], float]
) -> float:
    """Return the time to admit trials, train them for some steps, and evict them.

    Raise the error of a trial or group that failed, such as for lack of memory.
    """
    began = clock()
    for task in tasks:
        trainer.admit(task)
    left = steps
    while left and (events := trainer.advance(left)):
        for event in events:
            if event.error is not None:
                raise event.error
        left -= max(1, *(len(event.times) for event in events))
    for task in tasks:
        trainer.evict(task.number)
    return clock() - began


def _drawn_tasks(spec: StudySpec, count: int) -> list[Task]:
    """Return tasks drawn at random from the space, at the lowest rate, so that none diverges."""
    numbers = random.Random(0)  # noqa: S311 - not for secrets
    lowest = next(one.lowest for one in spec.space.parameters() if one.name == "lr")
    drawn = [spec.space.draw(numbers) | {"lr": lowest} for _ in range(count)]
    return [Task(number=number, seed=number, params=one) for number, one in enumerate(drawn)]


def _tasks(spec: StudySpec, count: int) -> list[Task]:
    """Return tasks at the lowest rate, so that none diverges, cycling through the choices."""
    tasks = []
    for number in range(count):
        params: dict[str, ParameterValue] = {}
        for one in spec.space.parameters():
            if one.exists(params):
                several = one.name in ("schedule", "optimizer")
                choices = options(one.entry) if several else (one.lowest,)
                params[one.name] = choices[number % len(choices)]
        tasks.append(Task(number=number, seed=number, params=params))
    return tasks
