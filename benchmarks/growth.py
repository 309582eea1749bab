"""Speedup of training trials together, by their number and the model's size; and the choice.

For each model of the digits and each number of trials from 1 to 512, the bare loop of
`benchmarks/throughput.py` and a cohort run in turn, on one thread. The cohort also evaluates each
20 steps, guards, and returns its curves. The ratio of each turn is taken before the median. Then
`trainer = "auto"` is asked what it would choose, and what it measured.

    python benchmarks/growth.py [--rounds 5] [--optimizer adamw] [--plot docs/images/growth.png]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from throughput import bare, convolutional, dense, spec_of, task_of

from tuner.config import StudySpec
from tuner.examples import digits
from tuner.report.charts.matplotlib_backend import draw as drawn
from tuner.report.charts.matplotlib_backend import save
from tuner.report.charts.plot import FAINT, Line
from tuner.report.charts.plot_builders import comparison
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.device import use_threads
from tuner.training.trainer_choice import choose
from tuner.training.workloads import Workload

STEPS = 20
"""Steps of a turn, with an evaluation at the end; of a bare turn, two hundred."""

MEMORY = 50_000_000
"""Parameters of all members together, beyond which a number of trials is left out."""

MODELS: dict[str, Callable[[], Workload]] = {
    "64-10": lambda: digits.mlp(layers=0),
    "64-64-64-10": lambda: digits.mlp(64),
    "64-256-256-10": lambda: digits.mlp(256),
    "64-1024-1024-10": lambda: digits.mlp(1024),
    "convolutional": lambda: convolutional().workload,
}


def cohort(trainer: CohortTrainer, spec: StudySpec, members: int) -> float:
    """Train trials for some steps from their beginning; give the seconds of a trial's step."""
    for number in range(members):
        trainer.admit(task_of(spec, number))
    trainer.advance(STEPS)  # builds what later steps use, and has step 0's evaluation
    began = time.perf_counter()
    trainer.advance(STEPS)
    seconds = time.perf_counter() - began
    for number in range(members):
        trainer.evict(number)
    return seconds / STEPS / members


def measured(name: str, rounds: int, optimizer: str, numbers: list[int]) -> dict[str, Any]:
    """Run the rounds of a model."""
    workload, spec = MODELS[name](), spec_of(optimizer)
    case = replace(dense(64, bare=1, budget=1), workload=workload)
    parameters = sum(p.numel() for p in workload.model(0, torch.float32).parameters())
    ratios: dict[int, list[float]] = {n: [] for n in numbers if n * parameters <= MEMORY}
    for members, found in ratios.items():
        trainer = CohortTrainer(workload, spec, members)
        bare(case, spec), cohort(trainer, spec, members)
        for _ in range(rounds):
            alone = bare(case, spec) / 200
            found.append(alone / cohort(trainer, spec, members))
        low, middle, high = (f(found) for f in (min, statistics.median, max))
        print(f"{name}, {members}: {middle:.2f} ({low:.2f} to {high:.2f})", flush=True)
    chosen = choose(workload, spec, slots=64)
    print(f"{name}: {chosen.trainer}, {chosen.slots} slots; {chosen.reason}", flush=True)
    return {
        "parameters": parameters,
        "ratios": {str(members): sorted(found) for members, found in ratios.items()},
        "chosen": {"trainer": chosen.trainer, "slots": chosen.slots, "reason": chosen.reason},
    }


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the medians over the number of trials."""
    lines = [
        Line(
            label=f"{name} ({each['parameters']:,})",
            x=np.array([int(members) for members in each["ratios"]]),
            y=np.array([statistics.median(found) for found in each["ratios"].values()]),
        )
        for name, each in report["models"].items()
    ]
    title = "Trials a second together, relative to a bare loop, by model (parameters)"
    figure = drawn(comparison(lines, title=title, ylabel="ratio"))
    axes = figure.axes[0]
    axes.set(xlabel="trials at a time", yscale="log", ylim=(0.25, 32))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    heights = {0.25: "¼", 0.5: "½", 1: "1", 2: "2", 4: "4", 8: "8", 16: "16", 32: "32"}
    axes.set_yticks(list(heights), labels=heights.values())
    axes.minorticks_off()
    axes.axhline(1.0, color=FAINT, linewidth=0.8)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--most", type=int, default=512)
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    use_threads(1)
    numbers = [2**power for power in range(given.most.bit_length())]
    report: dict[str, Any] = {"machine": platform.machine(), "optimizer": given.optimizer}
    report["models"] = {
        name: measured(name, given.rounds, given.optimizer, numbers) for name in given.models
    }
    results = Path(__file__).resolve().parent / "results"
    (results / f"growth-{given.optimizer}.json").write_text(json.dumps(report, indent=2) + "\n")
    if given.plot is not None:
        draw(report, given.plot)


if __name__ == "__main__":
    main()
