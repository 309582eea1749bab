"""Trials without a guard: studies, optimizers and schedules, at rates around the stable limit.

`benchmarks/guarding.py` applies the guard to them afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuner.config import Space, StudySpec
from tuner.examples import diabetes, digits, house_prices, mnist, quadratic, sine, text, wine
from tuner.training import optimizers
from tuner.training.batches import BatchOrder
from tuner.training.device import without_subnormals
from tuner.training.rate_source import STATEFUL, rate_source
from tuner.training.trainer import Task
from tuner.training.trial import Trial
from tuner.training.workloads import Workload, seeded

F64 = torch.float64


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained."""

    name: str
    workload: Callable[[], Workload] | None  # None: the train function of studies/wine.py
    steps: int
    batch: int | str
    dtype: torch.dtype = torch.float32
    penalty: float = 1e-4  # of wine's


SEEN = (
    Case(name="house_prices", workload=house_prices.line, steps=50, batch="full", dtype=F64),
    Case(name="quadratic", workload=quadratic.parabola, steps=100, batch="full", dtype=F64),
    Case(name="sine", workload=sine.wave, steps=60, batch="full", dtype=torch.float64),
    Case(name="diabetes", workload=diabetes.patients, steps=200, batch=64),
    Case(name="diabetes, a line", workload=lambda: diabetes.patients(0), steps=200, batch=64),
    Case(name="digits", workload=digits.mlp, steps=200, batch=64),
    Case(name="mnist", workload=mnist.convolutional, steps=80, batch=64),
    Case(name="text", workload=text.transformer, steps=80, batch=16),
    Case(name="wine", workload=None, steps=60, batch="full"),
)  # fmt: skip
HELD_OUT = (
    Case(name="house_prices", workload=house_prices.line, steps=80, batch="full", dtype=F64),
    Case(name="quadratic", workload=lambda: quadratic.parabola(50.0), steps=60, batch="full",
         dtype=F64),
    Case(name="sine", workload=lambda: sine.wave(1.7), steps=80, batch="full", dtype=F64),
    Case(name="diabetes", workload=lambda: diabetes.patients(48, 2), steps=160, batch=32),
    Case(name="diabetes, a line", workload=lambda: diabetes.patients(0, 2), steps=140, batch=16),
    Case(name="digits", workload=lambda: digits.mlp(48, 1, 2), steps=150, batch=32),
    Case(name="mnist", workload=lambda: mnist.convolutional(6, 2), steps=80, batch=32),
    Case(name="text", workload=lambda: text.transformer(12, 24, 3, 1), steps=120, batch=8),
    Case(name="wine", workload=None, steps=80, batch="full", penalty=3e-3),
)  # fmt: skip
OPTIMIZERS: tuple[dict[str, Any], ...] = (
    {"name": "sgd"},
    {"name": "sgd", "momentum": 0.9},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    *({"name": name} for name in optimizers.OPTIMIZERS if name != "sgd"),
)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What a trial measured that nothing stopped."""

    losses: np.ndarray  # float64 [step]
    norms: np.ndarray  # float64 [step], of the gradients; 0 where they are not known
    initial: float | None  # loss of all validation rows at the start, where a trainer measures it
    began: float  # loss of up to 500 training rows before the first update
    ended: float  # and after the last
    values: tuple[tuple[int, float], ...] = ()  # metrics for a schedule with a state, by step


def complete(lr: float, schedule: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, Any]:
    """Return a trial's flat parameters, completed with defaults."""
    space = Space.model_validate({"lr": lr, "schedule": schedule, "optimizer": optimizer})
    return space.example()


def spec_of(steps: int) -> StudySpec:
    """Return a minimal study with a horizon, ten evaluations, and a guard."""
    return StudySpec.model_validate(
        {
            "study": {"name": "guarding"},
            "workload": {"factory": "studies.digits:mlp"},
            "training": {"steps": steps, "evaluate_every": max(1, steps // 10)},
            "space": {"lr": 0.1, "schedule": "constant", "optimizer": "sgd"},
            "search": {"sampler": "random", "pruner": "none"},
            "budget": {"trials": 1},
        }
    )


def trained(
    case: Case, workload: Workload | None, params: dict[str, Any], seed: int, steps: int
) -> Curve:
    """Train to the horizon, whatever happens."""
    if workload is None:
        return passes(case, params, seed, steps)
    inputs, targets, *validation = (
        data.to(case.dtype) if data.is_floating_point() else data
        for data in (workload.train_inputs, workload.train_targets,
                     workload.validation_inputs, workload.validation_targets)
    )  # fmt: skip
    order = BatchOrder(seed, len(inputs), case.batch)
    paced = rate_source(params, steps, "minimize")
    evaluated = spec_of(steps).evaluation_steps()
    losses, norms, values = [], [], []
    with seeded(seed), without_subnormals():
        model = workload.model(seed, case.dtype)
        parameters = list(model.parameters())
        optimizer = optimizers.make(params, parameters)

        def whole(inputs: Tensor = inputs[:500], targets: Tensor = targets[:500]) -> float:
            with torch.no_grad():
                return workload.loss(model.eval()(inputs), targets).item()

        began, initial = whole(), whole(*validation)
        for step in range(steps):
            rows = order.rows(step)
            batch = (inputs, targets) if rows is None else (inputs[rows], targets[rows])
            for group in optimizer.param_groups:
                group["lr"] = paced.rate(step)
            optimizer.zero_grad()
            loss = workload.loss(model.train()(batch[0]), batch[1])
            loss.backward()
            gradient = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
            losses.append(loss.item())
            norms.append(torch.linalg.vector_norm(gradient).item())
            optimizer.step()
            if params["schedule"] in STATEFUL and step + 1 in evaluated:
                value = whole()
                if math.isfinite(value):
                    paced.evaluated(step + 1, value)
                    values.append((step + 1, value))
        return Curve(losses=np.array(losses), norms=np.array(norms), initial=initial, began=began,
                     ended=whole(), values=tuple(values))  # fmt: skip


class Losses:
    """Takes what a train function reports; a `Recorder` that never stops it."""

    first_step = 0

    def __init__(self) -> None:
        self.seen: list[float] = []

    def report(self, step: int, row: tuple[float, float, float] | None, metrics: object) -> None:
        self.seen += [] if row is None else [row[0]]

    def due(self) -> bool:
        return False

    def save(self, state: object) -> None: ...

    def load(self) -> None: ...


def passes(case: Case, params: dict[str, Any], seed: int, steps: int) -> Curve:
    """Run wine's own loop; scikit-learn raises if weights are not finite."""
    # one more pass, whose loss is that after the last
    recorder, spec = Losses(), spec_of(steps + 1)
    task = Task(number=0, seed=seed, params=params)
    try:
        wine.train(Trial(task, spec, recorder), case.penalty)  # type: ignore[arg-type]
    except ValueError:
        recorder.seen += [math.nan] * (steps + 1 - len(recorder.seen))
    losses = np.array(recorder.seen)
    return Curve(losses=losses[:-1], norms=np.zeros(steps), initial=None, began=losses[0],
                 ended=losses[-1])  # fmt: skip


def stable_limit(case: Case, workload: Workload | None, optimizer: dict[str, Any]) -> float:
    """Measure the lowest of rates that is too high, in big steps and then in small ones.

    2 where none is, as on a sine.
    """
    rates = 1e-3 * 1.5 ** np.arange(46)

    def too_high(rate: float) -> bool:
        params = complete(rate, {"name": "constant"}, optimizer)
        curve = trained(case, workload, params, 1, 15)
        return not curve.ended <= curve.began

    big = next((i for i in range(0, len(rates), 5) if too_high(float(rates[i]))), None)
    if big is None:
        return 2.0
    return next(float(rate) for rate in rates[max(big - 4, 0) : big + 1] if too_high(float(rate)))
