"""Measure curves at several learning rates from the same initial weights of a workload."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from tuner.config import ParameterValue, StudySpec, settings_of
from tuner.training.cohort import eligibility
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.lr_probe.stability import Curves
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import ENDED, Event, Task, Trainer, seed_of
from tuner.training.workloads import Workload

MeasureCurves: TypeAlias = Callable[[Mapping[str, Sequence[float]]], Mapping[str, Curves]]
"""Map ascending positive rates of each optimizer, by its name, to its curves."""


def curves_of_workload(
    workload: Workload, spec: StudySpec, params: Mapping[str, Mapping[str, ParameterValue]]
) -> MeasureCurves:
    """Return a function that trains a workload at given rates, in one cohort if possible.

    `params` has the parameters of each optimizer, by its name, without a rate.
    """
    short = probe_spec(spec, workload.rows)
    seed = seed_of(spec, 0)
    not_stackable = eligibility.reason_not_stackable(workload, short)

    def measure(todo: Mapping[str, Sequence[float]]) -> Mapping[str, Curves]:
        tasks = [
            Task(number=number, seed=seed, params={**params[name], "lr": rate})
            for number, (name, rate) in enumerate(
                (name, rate) for name, rates in todo.items() for rate in (0.0, *rates)
            )
        ]
        slots = len(tasks)
        trainer = (
            ReferenceTrainer(workload, short)
            if not_stackable
            else CohortTrainer(workload, short, slots)
        )
        rows = train_to_end(trainer, tasks, short.training.steps)  # [task, column, step]
        curves, done = {}, 0
        for name, rates in todo.items():
            own = rows[done : done + 1 + len(rates)]
            done += 1 + len(rates)
            curves[name] = Curves(
                rates=np.array(rates),
                losses=own[1:, 0],
                norms=own[1:, 1],
                baseline_losses=own[0, 0],
            )
        return curves

    return measure


def train_to_end(trainer: Trainer, tasks: Sequence[Task], steps: int) -> np.ndarray:
    """Train trials to the end; return losses and gradient norms, float64 [task, 2, step].

    Values are nan from the step at which a trial was stopped.
    """
    rows = np.full((len(tasks), 2, steps), np.nan)
    waiting, running = list(tasks), 0
    while waiting or running:
        while waiting and running < trainer.capacity:
            trainer.admit(waiting.pop(0))
            running += 1
        for event in trainer.advance(steps):
            _write(rows[event.number], event)
            if event.status in ENDED:
                trainer.evict(event.number)
                running -= 1
    return rows


def _write(row: np.ndarray, event: Event) -> None:  # row: [2, step]
    place = slice(event.first_step, event.next_step)
    row[0, place], row[1, place] = event.columns["train_loss"], event.columns["grad_norm"]
    if event.stopped_step is not None:
        row[:, event.stopped_step :] = np.nan
        row[:, -1] = np.nan  # also if it stopped after the last row


def probe_spec(spec: StudySpec, rows: int | None) -> StudySpec:
    """Return a study with the probe's number of steps, a constant rate and no pruner.

    Settings that are searched have their lowest or first values; `rows` is the number of training
    examples.
    """
    steps, settings = probe_steps(spec, rows), settings_of(spec, {}, rows)
    space = spec.space.model_validate({"lr": 1.0, "schedule": "constant", "optimizer": "sgd"})
    return spec.model_copy(
        update={
            "training": spec.training.model_copy(
                update={
                    "steps": steps,
                    "epochs": None,
                    "examples": None,
                    "batch_size": settings.batch_size,
                    "evaluate_every": steps,
                    "patience": None,
                    "seconds": None,
                }
            ),
            "space": space,
            "search": spec.search.model_validate({"sampler": "random", "pruner": "none"}),
        }
    )


def probe_steps(spec: StudySpec, rows: int | None) -> int:
    """Return the number of steps at each rate."""
    return min(spec.probe.steps, settings_of(spec, {}, rows).steps)
