"""Cohorts for tests: mixtures of trials, trained together or by the reference trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from helpers import complete
from test_reference import curve_of, regression
from torch import nn

from tuner.config import StudySpec
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.optimizers import OPTIMIZERS
from tuner.training.rate_source import STATEFUL
from tuner.training.reference import ReferenceTrainer
from tuner.training.schedules import SCHEDULES
from tuner.training.trainer import ENDED, TRAIN_COLUMNS, Event, Task, Trainer
from tuner.training.workloads import Workload, seeded

OPTIMISERS = [
    (0.02, {"name": "sgd"}),
    (0.02, {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}),
    (0.02, {"name": "sgd", "momentum": 0.5}),
    (0.01, {"name": "adam", "weight_decay": 1e-2}),
    (0.01, {"name": "adamw", "beta1": 0.8, "weight_decay": 0.1}),
    (0.01, {"name": "nadam", "weight_decay": 1e-2}),
    (0.01, {"name": "nadam", "decoupled_weight_decay": True, "weight_decay": 0.1}),
    (0.005, {"name": "rmsprop"}),
    (0.003, {"name": "rmsprop", "centered": True, "momentum": 0.5, "weight_decay": 1e-2}),
    (0.05, {"name": "adagrad", "initial_accumulator_value": 0.1, "weight_decay": 1e-2}),
    (0.001, {"name": "lion", "weight_decay": 0.1}),
    (0.05, {"name": "schedule_free_sgd", "weight_decay": 1e-2}),
    (0.01, {"name": "schedule_free_adamw", "beta1": 0.8, "weight_decay": 0.1}),
    (1.0, {"name": "prodigy", "weight_decay": 1e-2, "bias_correction": True}),
    (0.5, {"name": "prodigy", "d_coef": 0.5, "safeguard_warmup": True}),
    (1.0, {"name": "dog", "reps_rel": 1e-4, "weight_decay": 1e-2}),
]
"""Stable rates and settings of every optimiser that a cohort has."""

assert {settings["name"] for _, settings in OPTIMISERS} == set(OPTIMIZERS) - {"muon"}


def tasks() -> list[Task]:
    """Give a trial for every schedule with and without warm-up, optimisers in turn."""
    made = []
    names = [*SCHEDULES, *STATEFUL]
    for index, (name, warmup) in enumerate([(n, w) for n in names for w in (0.0, 0.1)]):
        lr, optimizer = OPTIMISERS[index % len(OPTIMISERS)]
        own: dict[str, object] = {"milestones": "0.5,0.75"} if name == "multistep" else {}
        if name == "plateau":  # a patience that is lost
            own = {"patience": 0, "threshold": 0.5, "factor": 0.5}
        params = complete(lr, {"name": name, "warmup": warmup, **own}, dict(optimizer))
        made.append(Task(number=index, seed=100 + index, params=params))
    return made


class Branched(nn.Module):
    """No chain of layers: two ways that are joined, with normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        # without a bias: its gradient before a normalisation is rounding, and Lion takes its sign
        first = nn.Linear(3, 8, bias=False)
        self.wide = nn.Sequential(first, nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.short = nn.Linear(3, 8, bias=False)
        self.last = nn.Sequential(nn.LayerNorm(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))

    def forward(self, inputs):  # type: ignore[no-untyped-def]
        return self.last(self.wide(inputs) + self.short(inputs))


def branched(seed, dtype):  # type: ignore[no-untyped-def]
    with seeded(seed):
        return Branched().to(dtype)


def chain(seed, dtype):  # type: ignore[no-untyped-def]
    with seeded(seed):
        return nn.Sequential(
            nn.Linear(3, 8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 5, bias=False), nn.Tanh(),
            nn.Sequential(nn.Linear(5, 5), nn.SiLU(), nn.Linear(5, 4), nn.Sigmoid()),
            nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1),
        ).to(dtype)  # fmt: skip


IMAGES = {
    "padded": lambda: [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                       nn.Conv2d(3, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 1)],
    "strided": lambda: [nn.Conv2d(2, 3, (3, 2), stride=2, padding=(2, 1), dilation=(2, 1)),
                        nn.Tanh(), nn.Tanh(), nn.Conv2d(3, 2, (2, 3), padding=1, bias=False),
                        nn.GELU(), nn.AvgPool2d(2, padding=1), nn.Dropout(0.3), nn.Flatten(),
                        nn.Linear(8, 1)],
    "pooled": lambda: [nn.MaxPool2d(3, stride=1, padding=1), nn.ReLU(), nn.Conv2d(2, 3, 1),
                       nn.MaxPool2d(2, stride=1), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True),
                       nn.Flatten(), nn.Dropout(0.1), nn.Linear(12, 1)],
    "without any": lambda: [nn.Dropout(0.2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 1)],
}  # fmt: skip
"""Layers for images of 2 channels of 4 by 4, as data."""


def images(name):  # type: ignore[no-untyped-def]
    """Return a workload of images."""

    def model(seed, dtype):  # type: ignore[no-untyped-def]
        with seeded(seed):
            return nn.Sequential(*IMAGES[name]()).to(dtype)

    inputs = torch.randn(50, 2, 4, 4, generator=torch.Generator().manual_seed(3)).double()
    return regression(model, train_inputs=inputs, validation_inputs=inputs[:9])


def drawn(seed, dtype):  # type: ignore[no-untyped-def]
    """Return a network that makes an image of its inputs."""
    with seeded(seed):
        layers = [nn.Linear(3, 32), nn.Unflatten(1, (2, 4, 4)), *IMAGES["strided"]()]
        return nn.Sequential(*layers).to(dtype)


def train_all(
    trainer: Trainer,
    tasks: Sequence[Task],
    chunks: Iterator[int] | None = None,
    between: Callable[[Trainer, dict[int, Task]], None] | None = None,
) -> dict[int, list[Event]]:
    """Train trials to their ends, each as soon as there is a slot for it; their events."""
    waiting, running = list(tasks), {}
    events: dict[int, list[Event]] = {task.number: [] for task in tasks}
    while waiting or running:
        while waiting and len(running) < trainer.capacity:
            task = waiting.pop(0)
            trainer.admit(task)
            running[task.number] = task
        for event in trainer.advance(10**6 if chunks is None else next(chunks)):
            events[event.number].append(event)
            if event.status in ENDED:
                trainer.evict(event.number)
                del running[event.number]
        if between is not None:
            between(trainer, running)
    return events


def together(workload: Workload, spec: StudySpec, tasks: Sequence[Task], slots: int = 16):  # type: ignore[no-untyped-def]
    """Train trials in a cohort; the curve of each."""
    events = train_all(CohortTrainer(workload, spec, slots), tasks)
    return {number: curve_of(own) for number, own in events.items()}


def alone(workload: Workload, spec: StudySpec, tasks: Sequence[Task]):  # type: ignore[no-untyped-def]
    """Train trials by the reference trainer; the curve of each."""
    events = train_all(ReferenceTrainer(workload, spec), tasks)
    return {number: curve_of(own) for number, own in events.items()}


def assert_close(found, expected, rtol=1e-9):  # type: ignore[no-untyped-def]
    """Compare curves: the numbers closely, steps and verdicts exactly."""
    for name in TRAIN_COLUMNS:
        np.testing.assert_allclose(found[0][name], expected[0][name], rtol=rtol, err_msg=name)
    assert [step for step, _ in found[1]] == [step for step, _ in expected[1]]
    for (step, ours), (_, theirs) in zip(found[1], expected[1], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            np.testing.assert_allclose(value, theirs[name], rtol=rtol, err_msg=f"{name} {step}")
    assert found[2] == expected[2]


def resumed(trainer: Trainer, task: Task) -> Task:
    """Take a trial out of its slot, to go on elsewhere."""
    taken = replace(task, snapshot=trainer.snapshot(task.number))
    trainer.evict(task.number)
    return taken
