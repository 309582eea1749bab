"""Curves at several rates from the same weights, of a workload or of a model that there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tuner.config import ParameterValue, StudySpec
from tuner.training.cohort import eligibility
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.lr_probe.stability import Curves
from tuner.training.lr_probe.untouched import untouched
from tuner.training.reference import ReferenceTrainer
from tuner.training.trainer import ENDED, Event, Task, Trainer, seed_of
from tuner.training.workloads import Workload

Try: TypeAlias = Callable[[Mapping[str, Sequence[float]]], Mapping[str, Curves]]
"""Trains each optimiser at some rates, rising and above 0, and gives the curves."""


def of_workload(
    workload: Workload, spec: StudySpec, params: Mapping[str, Mapping[str, ParameterValue]]
) -> Try:
    """Train on a workload: all optimisers and rates in one cohort where that is possible."""
    short = probing(spec)
    seed = seed_of(spec, 0)
    alone = eligibility.reason_not_stackable(workload, short)

    def attempt(todo: Mapping[str, Sequence[float]]) -> Mapping[str, Curves]:
        tasks = [
            Task(number=number, seed=seed, params={**params[name], "lr": rate})
            for number, (name, rate) in enumerate(
                (name, rate) for name, rates in todo.items() for rate in (0.0, *rates)
            )
        ]
        slots = len(tasks)
        made = ReferenceTrainer(workload, short) if alone else CohortTrainer(workload, short, slots)
        rows = trained(made, tasks, short.training.steps)  # [task, column, step]
        curves, done = {}, 0
        for name, rates in todo.items():
            own = rows[done : done + 1 + len(rates)]
            done += 1 + len(rates)
            curves[name] = Curves(
                rates=np.array(rates), losses=own[1:, 0], norms=own[1:, 1], still=own[0, 0]
            )
        return curves

    return attempt


def trained(trainer: Trainer, tasks: Sequence[Task], steps: int) -> np.ndarray:
    """Train trials to their ends; give losses and gradients' norms, float64 [trial, 2, step].

    They are nan from where a trial was stopped.
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
        row[:, -1] = np.nan  # also where it stopped after the last row


def of_model(
    model: nn.Module, optimizer: Optimizer, loss: Callable[[int], Tensor], steps: int
) -> Try:
    """Train a model that there is, with its optimiser, for `steps` steps a rate, one after another.

    `loss` gives the loss of a step's batch, from the model as it is then. Model, optimiser and
    random states are the same to the bit after each call as before it.
    """

    def curve(rate: float) -> tuple[list[float], list[float]]:
        losses, norms = [], []
        with untouched(model, optimizer):
            for group in optimizer.param_groups:
                group["lr"] = rate
            for step in range(steps):
                optimizer.zero_grad()
                value = loss(step)
                value.backward()  # type: ignore[no-untyped-call]
                gradients = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
                losses.append(value.item())
                norms.append(torch.cat(gradients).norm().item())
                optimizer.step()
        return losses, norms

    def attempt(todo: Mapping[str, Sequence[float]]) -> Mapping[str, Curves]:
        found = {}
        for name, rates in todo.items():
            still, *rows = [curve(rate) for rate in (0.0, *rates)]
            found[name] = Curves(
                rates=np.array(rates),
                losses=np.array([losses for losses, _ in rows]),
                norms=np.array([norms for _, norms in rows]),
                still=np.array(still[0]),
            )
        return found

    return attempt


def probing(spec: StudySpec) -> StudySpec:
    """Give a study's training, cut to the probe's steps, without schedule and pruner."""
    steps = steps_of(spec)
    space = spec.space.model_validate({"lr": 1.0, "schedule": "constant", "optimizer": "sgd"})
    return spec.model_copy(
        update={
            "training": spec.training.model_copy(
                update={"steps": steps, "evaluate_every": steps, "patience": None, "seconds": None}
            ),
            "space": space,
            "search": spec.search.model_validate({"sampler": "random", "pruner": "none"}),
        }
    )


def steps_of(spec: StudySpec) -> int:
    """Give the steps of a rate."""
    return min(spec.probe.steps, spec.training.steps)
