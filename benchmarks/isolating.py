"""What does a process of its own cost a trial of a train function?

The same function in the worker's thread, in a forked process, and in an interpreter that is started
for each trial. It descends (x - 2)² without any other work, so what differs is the start of a
process and a round trip for each report. Measured is the processor time of all processes, which
does not depend on what else the machine does: of a trial, of a report, and as a ratio to a trial in
the thread whose steps take 20 ms.

    python benchmarks/isolating.py [--trials 20] [--steps 50] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from tuner.config import StudySpec
from tuner.training import trainer_choice
from tuner.training.function_trainer import FunctionTrainer
from tuner.training.trainer import ENDED, Task

RESULTS = Path(__file__).parent / "results" / "isolating.json"
STEP_SECONDS = 0.02
MODULE = """
def train(trial):
    x = 0.0
    for step in range(trial.steps):
        trial.report(step, train_loss=(x - 2) ** 2)
        x -= trial.rate(step) * 2 * (x - 2)
    trial.report(trial.steps, val_loss=(x - 2) ** 2)
"""
THREAD = """
import threading

threading.Thread(target=threading.Event().wait, daemon=True).start()
"""
"""It makes a module that cannot be forked."""
PARAMS = {"lr": 0.1, "schedule": "constant", "optimizer": "sgd", "constant.warmup": 0.0}


def spec_of(module: str, isolation: str, steps: int) -> StudySpec:
    content = {
        "study": {"name": "isolating"},
        "workload": {"train": f"{module}:train", "isolation": isolation},
        "training": {"steps": steps},
        "space": {"lr": 0.1, "schedule": "constant", "optimizer": "sgd"},
        "search": {"pruner": "none"},
        "budget": {"trials": 1},
    }
    return StudySpec.model_validate(content)


def seconds(module: str, isolation: str, steps: int, trials: int) -> float:
    """Return the processor seconds of a trial, without those of what stays for the next."""
    spec = spec_of(module, isolation, steps)
    trainer = FunctionTrainer(trainer_choice.load(spec, [f"{module}."]), spec)
    before = 0.0
    for number in range(trials + 1):
        trainer.admit(Task(number=number, seed=number, params=PARAMS))
        while trainer.advance(steps + 1)[-1].status not in ENDED:
            pass
        trainer.evict(number)
        before = before or used()  # after the first trial
    return (used() - before) / trials


def used() -> float:
    """Return the processor seconds of this process, its children and theirs so far."""
    own = psutil.Process()
    times = [one.cpu_times() for one in (own, *own.children())]
    return sum(t.user + t.system + t.children_user + t.children_system for t in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--write", action="store_true", help="write results/isolating.json")
    chosen = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("descending.py").write_text(MODULE)
        Path("threaded.py").write_text(f"{THREAD}{MODULE}")
        steps, trials = chosen.steps, chosen.trials
        for name, module, isolation in (
            ("thread", "descending", "thread"),
            ("process, forked", "descending", "process"),
            ("process, started", "threaded", "process"),
        ):
            rounds = 2 if module == "threaded" else trials
            taken = seconds(module, isolation, steps, rounds)
            found[name] = {"processor seconds a trial": round(taken, 4)}
            if module == "descending":
                longer = seconds(module, isolation, 20 * steps, max(1, trials // 4))
                report = 1e3 * (longer - taken) / (19 * steps)
                found[name]["processor milliseconds a report"] = round(report, 3)
            alone = found["thread"]["processor seconds a trial"]
            work = steps * STEP_SECONDS
            ratio = (work + taken) / (work + alone)
            found[name][f"ratio with {steps} steps of 20 ms"] = round(ratio, 3)
        os.chdir("/")
    text = json.dumps(found, indent=1)
    sys.stdout.write(text + "\n")
    if chosen.write:
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
