"""How much training does a preemption cost, against the interval of checkpoints?

One long trial of a small network on the digits, whose steps take 20 ms, is trained by a worker that
is preempted again and again, each time at a random moment of the interval: by SIGTERM with a grace
of 30 s, as by Slurm and Kubernetes, or by kill -9, as where a machine is lost. Each step that is
trained adds a byte to a file, so the steps that were trained twice are counted. The seconds lost
are those steps, and the time from the signal to the next worker's first step, most of which is the
start of Python and its libraries; with a service manager or an engine, add what that takes.

    python benchmarks/preemption.py [--preemptions 10] [--intervals 1 5 30 60] [--write]

With --write each row is kept as soon as it is measured, and a row that is there is not measured
again; --again measures all.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tuner.config import StudySpec
from tuner.ledger import Ledger, database
from tuner.operations import submit

RESULTS = Path(__file__).parent / "results" / "preemption.json"
STEP_SECONDS = 0.02
GRACE_SECONDS = 30
LOG = Path("worker.log")
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}
MODULE = f"""
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from tuner.examples import digits
from tuner.training.workloads import Workload

trained = os.open("trained", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def paced() -> Workload:
    made = digits.mlp(hidden=16, layers=1)

    def loss(outputs, targets):
        if torch.is_grad_enabled():
            if Path("slow").exists():
                time.sleep({STEP_SECONDS})
            os.write(trained, b".")
        return made.loss(outputs, targets)

    return replace(made, loss=loss)
"""


def spec_of(interval: float, preemptions: int) -> StudySpec:
    steps = math.ceil(3 * preemptions * interval / STEP_SECONDS) + 1000
    return StudySpec.model_validate(
        {
            "study": {"name": "preempted"},
            "workload": {"factory": "job:paced"},
            "training": {
                "steps": steps,
                "batch_size": 32,
                "evaluate_every": steps,
                "checkpoint_seconds": interval,
                "trainer": "reference",
                "threads": 1,
            },
            "space": {"lr": 0.01, "schedule": "constant", "optimizer": "sgd"},
            "search": {"sampler": "random", "pruner": "none"},
            "budget": {"trials": 1, "decide": 0, "retries": {"stale": 1000}},
        }
    )


def preempted(kind: str, interval: float, preemptions: int) -> dict[str, Any]:
    """Train the trial with so many preemptions; return what they have cost."""
    draw = random.Random(f"{kind} {interval}")
    with tempfile.TemporaryDirectory() as made, entered(Path(made)) as folder:
        (folder / "job.py").write_text(MODULE)
        (folder / "slow").touch()
        spec = spec_of(interval, preemptions)
        ledger = Ledger(database.open_ledger(database.addresses({}, folder), create=True))
        described = submit.prepare(spec, ["job."]).description
        study, _ = submit.submit(ledger, spec, described)

        def steps() -> int:
            return (folder / "trained").stat().st_size

        (folder / "trained").write_bytes(b"")
        restarts = []
        worker = start()
        until(lambda: steps() > 0, worker)
        for _ in range(preemptions):
            time.sleep(interval * (1 + draw.random()))
            began = time.monotonic()
            worker.send_signal(SIGNALS[kind])
            worker.wait()
            before = steps()
            worker = start()
            until(lambda before=before: steps() > before, worker)
            restarts.append(time.monotonic() - began)
        (folder / "slow").unlink()
        assert worker.wait() == 0
        (trial,) = ledger.trials(study.id)
        attempts = len(ledger.attempts(study.id))
        ledger.engine.dispose()
        assert (trial.state, attempts) == ("completed", preemptions + 1), trial.reason
        lost = (steps() - trial.steps) / preemptions
    return {
        "preemptions": preemptions,
        "steps_lost": lost,  # a preemption
        "training_seconds_lost": lost * STEP_SECONDS,
        "restart_seconds": statistics.median(restarts),
    }


@contextmanager
def entered(folder: Path) -> Iterator[Path]:
    """Work in a folder, from which modules are imported."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
        sys.modules.pop("job", None)


def start() -> subprocess.Popen[bytes]:
    options = ["--allow", "job.", "--until-idle", "--no-recorder", "--grace", str(GRACE_SECONDS)]
    with LOG.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "tuner", "worker", *options],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )


def until(condition: Callable[[], bool], worker: subprocess.Popen[bytes]) -> None:
    while not condition():
        assert worker.poll() is None, LOG.read_text()
        time.sleep(0.005)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preemptions", type=int, default=10)
    parser.add_argument("--intervals", type=float, nargs="+", default=[1, 5, 30, 60])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--again", action="store_true")
    asked = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() and not asked.again else {}
    for interval in asked.intervals:
        for kind in SIGNALS:
            name = f"{kind}, a checkpoint every {interval:g} s"
            if rows.get(name, {}).get("preemptions") != asked.preemptions:
                rows[name] = preempted(kind, interval, asked.preemptions)
                if asked.write:
                    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
            row = rows[name]
            print(
                f"{name}: {row['steps_lost']:.0f} steps or {row['training_seconds_lost']:.2f} s of "
                f"training lost a preemption, {row['restart_seconds']:.1f} s until the next "
                "worker's first step"
            )


if __name__ == "__main__":
    main()
