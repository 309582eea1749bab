"""How many trials a second: a cohort, against the loop that a person writes who records nothing.

Arms run in turn, so that a machine whose speed drifts slows all of them alike:

- *bare*: forward, loss, backward and `torch.optim`'s step, for each of 200 batches, and nothing
  else: no loss is read, no rate is changed;
- *cohort*: our trainer, with 64 slots that are refilled until the budget is spent, which also takes
  every step's loss and gradient norm, guards against divergence and returns its curves, and
  evaluates at the start and at the end; nothing is written anywhere;
- *bare evaluated* and *cohort evaluated*: the same with ten evaluations on the validation data.

Models are built within the time, data are loaded outside it. The ratio of each round is taken
before the median. The floor is what the matrix products alone would take at the rate that a large
product reaches here.

    python benchmarks/throughput.py [64] [256] [conv] [text] [--rounds 5] [--optimizer adamw]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tuner.config import StudySpec
from tuner.examples import digits, text
from tuner.training import optimizers
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.device import use_threads
from tuner.training.trainer import ENDED, Status, Task, seed_of
from tuner.training.workloads import Workload, seeded

STEPS, BATCH = 200, 64


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and how much of it a round takes."""

    workload: Workload
    products: int  # floating-point operations of all matrix products of a trial; 0: not counted
    bare: int  # trials a round
    budget: int  # trials a round of the others
    slots: int = 64


def dense(hidden: int, bare: int, budget: int) -> Case:
    """Return the digits workload with a network 64-hidden-hidden-10."""
    first, others = 64 * hidden, hidden * hidden + 10 * hidden
    # forward, and backward to weights and inputs, without the gradient of the data
    products = 2 * BATCH * STEPS * (2 * first + 3 * others)
    return Case(workload=digits.mlp(hidden), products=products, bare=bare, budget=budget)


def convolutional() -> Case:
    """Return the digits workload with a small convolutional network."""

    def model(seed: int, dtype: torch.dtype) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(
                nn.Unflatten(1, (1, 8, 8)),
                nn.Conv2d(1, 8, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(8, 16, 3, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(256, 10),
            ).to(dtype)

    return Case(workload=replace(digits.mlp(), model=model), products=0, bare=4, budget=64)


def transformer() -> Case:
    """Return the transformer of the study `text`."""
    return Case(workload=text.transformer(), products=0, bare=2, budget=32, slots=16)


CASES: dict[str, Callable[[], Case]] = {
    "64": lambda: dense(64, bare=16, budget=512),
    "256": lambda: dense(256, bare=8, budget=128),
    "conv": convolutional,
    "text": transformer,
}


def spec_of(optimizer: str, evaluate_every: int = STEPS) -> StudySpec:
    return StudySpec.model_validate(
        {
            "study": {"name": "throughput"},
            "workload": {"factory": "studies.digits:mlp"},
            "training": {
                "steps": STEPS,
                "batch_size": BATCH,
                "evaluate_every": evaluate_every,
            },
            "space": {"lr": 0.01, "schedule": "cosine", "optimizer": optimizer},
            "search": {"sampler": "random", "pruner": "none"},
            "budget": {"trials": 1},
        }
    )


def task_of(spec: StudySpec, number: int) -> Task:
    """Return a trial with a rate between 0.001 and 0.01, none of which diverges."""
    lr = 0.001 * 10 ** (number % 16 / 15)
    params = {**spec.space.example(), "lr": lr}
    return Task(number=number, seed=seed_of(spec, number), params=params)


def bare(case: Case, spec: StudySpec) -> float:
    """Train without recording anything; give the seconds of a trial."""
    workload, every = case.workload, spec.training.evaluation_interval
    inputs, unseen = (
        data.float() if data.is_floating_point() else data
        for data in (workload.train_inputs, workload.validation_inputs)
    )
    targets, answers = workload.train_targets, workload.validation_targets
    rows = torch.randint(len(inputs), (STEPS, BATCH), generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    for number in range(case.bare):
        task = task_of(spec, number)
        model = workload.model(task.seed, torch.float32)
        optimizer = optimizers.make(task.params, model.parameters())
        for step, batch in enumerate(rows, start=1):
            optimizer.zero_grad()
            workload.loss(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
            if step % every == 0 and every < STEPS:
                with torch.no_grad():
                    outputs = model(unseen)
                    for measure in (workload.loss, *workload.metrics.values()):
                        measure(outputs, answers).item()
    return (time.perf_counter() - began) / case.bare


def cohort(case: Case, spec: StudySpec) -> float:
    """Train in slots that are refilled, and throw away what is measured."""
    began = time.perf_counter()
    trainer = CohortTrainer(case.workload, spec, case.slots)
    waiting, running = list(range(case.budget)), 0
    while waiting or running:
        while waiting and running < case.slots:
            trainer.admit(task_of(spec, waiting.pop()))
            running += 1
        for event in trainer.advance(STEPS):
            assert event.status is not Status.DIVERGED, event.reason
            if event.status in ENDED:
                trainer.evict(event.number)
                running -= 1
    return (time.perf_counter() - began) / case.budget


ARMS: dict[str, tuple[Callable[[Case, StudySpec], float], int]] = {
    "bare": (bare, STEPS),
    "cohort": (cohort, STEPS),
    "bare evaluated": (bare, STEPS // 10),
    "cohort evaluated": (cohort, STEPS // 10),
}
"""What is measured in each round, in this order: seconds of a trial, evaluated every so often."""

RATIOS = (("bare", "cohort"), ("bare evaluated", "cohort evaluated"))


def product_rate() -> float:
    """Measure how many floating-point operations a second a large matrix product makes."""
    matrix = torch.randn(1024, 1024)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - began)
    return 2 * 1024**3 / min(seconds)


def measured(name: str, rounds: int, optimizer: str, slots: int) -> dict[str, Any]:
    """Run a case's rounds, and print and give what came out."""
    case = CASES[name]()
    slots = slots or case.slots
    case = replace(case, slots=slots)
    for arm, every in ARMS.values():  # the first calls of a process are slower
        arm(replace(case, bare=1, budget=slots), spec_of(optimizer, every))
    floor = case.products / product_rate()
    rows = []
    for index in range(rounds):
        row = {arm: run(case, spec_of(optimizer, every)) for arm, (run, every) in ARMS.items()}
        rows.append(row)
        line = ", ".join(f"{arm} {1000 * seconds:.2f} ms" for arm, seconds in row.items())
        print(f"{name} {optimizer}, round {index}, a trial: {line}", flush=True)
    report: dict[str, Any] = {
        "machine": platform.machine(),
        "optimizer": optimizer,
        "slots": slots,
        "budget": case.budget,
        "milliseconds": {
            arm: 1000 * statistics.median(row[arm] for row in rows) for arm in rows[0]
        },
    }
    for above, below in RATIOS:
        report[f"{above}/{below}"] = spread(f"{above}/{below}", [r[above] / r[below] for r in rows])
    if case.products:
        report["milliseconds"] |= {"floor": 1000 * floor}
        shares = [floor / row["cohort"] for row in rows]
        report["share of the floor"] = spread("share of the floor", shares)
    return report


def spread(name: str, values: list[float]) -> dict[str, float]:
    low, median, high = min(values), statistics.median(values), max(values)
    print(f"{name}: {median:.2f} ({low:.2f} to {high:.2f})")
    return {"min": low, "median": median, "max": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--slots", type=int, default=0, help="default: those of the case")
    given = parser.parse_args()
    use_threads(1)
    for name in given.cases or CASES:
        report = measured(name, given.rounds, given.optimizer, given.slots)
        result = f"throughput-{name}-{given.optimizer}.json"
        path = Path(__file__).resolve().parent / "results" / result
        path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
