"""What a mix of widths costs: groups that take turns, against cohorts of one width at equal work.

Arms run in turn, so that a machine whose speed drifts slows all of them alike:

- *apart*: for each width a cohort of its own, with all slots;
- *mixed*: the same trials in random order, in groups that share the slots.

Workloads are built outside the time, models and plans within it. The ratio of each round is taken
before the median. Times are those of the processor, with one thread, so that other work on the
machine counts little.

    python benchmarks/shapes.py [--widths 32 64 128] [--rounds 5] [--slots 64] [--each 64]
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tuner.config import StudySpec
from tuner.training import trainer_choice
from tuner.training.cohort.groups import GroupedTrainer
from tuner.training.cohort.trainer import CohortTrainer
from tuner.training.device import use_threads
from tuner.training.trainer import ENDED, Status, Task, Trainer
from tuner.training.workloads import Workload

STEPS = 100


def spec_of(widths: Sequence[int]) -> StudySpec:
    return StudySpec.model_validate(
        {
            "study": {"name": "shapes"},
            "workload": {"factory": "tuner.examples.digits:mlp"},
            "training": {"steps": STEPS, "batch_size": 64, "evaluate_every": STEPS},
            "space": {
                "lr": {"low": 1e-3, "high": 1e-2},
                "schedule": "cosine",
                "optimizer": "adamw",
                "arguments": {"hidden": list(widths)},
            },
            "search": {"sampler": "random", "pruner": "none"},
            "budget": {"trials": 1},
        }
    )


def seconds(make: Callable[[], Trainer], tasks: Sequence[Task]) -> float:
    """Train trials in slots that are refilled; the trainer is made, and plans, within the time."""
    began = time.process_time()
    trainer = make()
    waiting, running = list(tasks), 0
    while waiting or running:
        while waiting and running < trainer.capacity:
            trainer.admit(waiting.pop())
            running += 1
        for event in trainer.advance(STEPS):
            assert event.status is not Status.DIVERGED, event.reason
            if event.status in ENDED:
                trainer.evict(event.number)
                running -= 1
    return time.process_time() - began


def measured(widths: Sequence[int], rounds: int, slots: int, each: int) -> dict[str, object]:
    spec, numbers = spec_of(widths), random.Random(0)
    workload = trainer_choice.load(spec, ("tuner.examples",))
    assert isinstance(workload, Workload)
    tasks = [
        Task(number=number, seed=number, params=spec.space.draw(numbers, {"hidden": width}))
        for number, width in enumerate(width for width in widths for _ in range(each))
    ]
    built = {width: workload.of({"hidden": width}) for width in widths}
    # as a factory that is called once for each width
    mix = replace(workload, build=lambda own: built[own["hidden"]])

    def apart() -> float:
        return sum(
            seconds(
                partial(CohortTrainer, built[width], spec, slots, common={"hidden": width}),
                [task for task in tasks if task.params["hidden"] == width],
            )
            for width in widths
        )

    def mixed() -> float:
        order = random.Random(1).sample(tasks, len(tasks))
        return seconds(partial(GroupedTrainer, mix, spec, slots), order)

    rows = []
    for index in range(rounds):
        rows.append((apart(), mixed()))
        print(f"round {index}: apart {rows[-1][0]:.2f} s, mixed {rows[-1][1]:.2f} s", flush=True)
    ratios = [one / other for other, one in rows]
    return {
        "machine": platform.machine(),
        "widths": list(widths),
        "slots": slots,
        "trials": len(tasks),
        "rounds": rounds,
        "mixed/apart": [statistics.median(ratios), min(ratios), max(ratios)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--widths", type=int, nargs="*", default=[32, 64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--each", type=int, default=64)
    arguments = parser.parse_args()
    use_threads(1)
    found = measured(arguments.widths, arguments.rounds, arguments.slots, arguments.each)
    print(json.dumps(found))
    name = f"shapes-{arguments.slots}-slots-{len(arguments.widths)}-widths.json"
    file = Path(__file__).parent / "results" / name
    file.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
