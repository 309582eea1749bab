"""Trials a second with so many workers on PostgreSQL: ours, and Optuna's alone; and their memory.

Each side has a database of its own on one server, which keeps its commits through a power cut
(`fsync`), and as many processes as there are workers:

- *ours* are workers as `tuner worker --no-recorder` runs them, with a train function: a lease, a
  report and a decision at each of three rungs, every step's loss in the ledger, the outcome, and
  a line of the log each time;
- *Optuna's* run `study.optimize` on an `RDBStorage` with all defaults: three suggestions, three
  reports each with `should_prune`, the outcome, and a line of the log.

Sampler, pruner, space, rungs and losses are the same, and so is the work: a trial sleeps, so 16
workers do not compete for processors while they train. What publishes into MLflow is no part of
either. A trial's cost grows with the trials that there are, and the side that is faster has more of
them; so a ratio is never flattered by this.

Steady state: all processes are started, and all have ended a trial, before the time begins. Each
process tells when its trials began; its rate is the trials from the first to the last beginning in
that time, and the rates of all are added. The two sides take turns within a cell of the table.

Memory is of a fresh process after the shortest trials, while no other one runs. Optuna alone needs
no torch, but what is tuned does: it is measured with torch imported too.

    python benchmarks/workers.py [--quick] [--sampler random|tpe] [--workers 1 2 4 8 16]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import waiting

from tuner.config import StudySpec
from tuner.ledger import Ledger
from tuner.ledger.database import addresses, open_ledger, upgrade
from tuner.operations import submit

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests"))
from postgres import Cluster, cluster  # noqa: E402

ARMS = ("tuner", "optuna")
TRIALS = (0.0, 0.01, 0.1, 1.0)
"""The seconds that a trial takes."""


class Side:
    """One side: its database, its processes and its studies."""

    def __init__(self, arm: str, url: str, sampler: str) -> None:
        self.arm = arm
        self._sampler = sampler
        self._url = url
        self._processes: list[subprocess.Popen[str]] = []
        self._studies = 0
        if arm == "tuner":
            self._places = addresses({"TUNER_DATABASE_URL": url}, Path.cwd())
            upgrade(self._places)
            self._ledger = Ledger(open_ledger(self._places, create=False))
        else:
            self._url = url.replace("postgresql:", "postgresql+psycopg:")
            optuna.storages.RDBStorage(self._url)  # makes its tables

    def start(self, count: int, *more: str) -> None:
        """Start processes, and wait until they have imported everything."""
        command = [sys.executable, str(HERE / f"worker_{self.arm}.py"), self._url]
        command += [] if self.arm == "tuner" else [self._sampler, *more]
        path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        started = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                bufsize=1,
                env=environment,
            )
            for _ in range(count - len(self._processes))
        ]
        self._processes += started
        for process in started:
            _line(process)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.communicate()
        self._processes.clear()

    def measured(self, workers: int, trial: float, seconds: float) -> dict[str, Any]:
        """Train a new study for some seconds; return trials per second and memory."""
        study, processes = self._submitted(trial), self._processes[:workers]
        for process in processes:
            _tell(process, json.dumps({"study": study, "seconds": trial}))
        for process in processes:
            _line(process)
        began = time.time()
        time.sleep(seconds)
        ended = time.time()
        for process in processes:
            _tell(process, "stop")
        output = [json.loads(_line(process)) for process in processes]
        rates = [_rate([t for t in one["began"] if began <= t <= ended]) for one in output]
        trials = sum(len(one["began"]) for one in output)
        return {"rate": sum(rates), "trials": trials, "memory, MB": output[0]["memory, MB"]}

    def _submitted(self, trial: float) -> str:
        self._studies += 1
        name = f"workers, {self._studies}"
        if self.arm == "optuna":
            optuna.create_study(storage=self._url, study_name=name)
        else:
            spec = _spec(name, self._sampler, trial)
            submit.submit(self._ledger, spec, submit.prepare(spec, ["waiting"]).description)
        return name


def _spec(name: str, sampler: str, trial: float) -> StudySpec:
    tables = {
        "study": {"name": name},
        "workload": {"train": "waiting:train", "arguments": {"seconds": trial}},
        "training": {"steps": waiting.STEPS, "evaluate_every": waiting.STEPS},
        "space": {
            "lr": {"low": waiting.LOW, "high": waiting.HIGH},
            "schedule": list(waiting.SCHEDULES),
            "optimizer": list(waiting.OPTIMIZERS),
        },
        "search": {"sampler": sampler, "pruner": {"name": "asha", "min_steps": 1}},
        "budget": {"trials": 1_000_000},
    }
    spec = StudySpec.model_validate(tables)
    assert spec.rungs() == waiting.RUNGS, spec.rungs()
    return spec


def _rate(began: list[float]) -> float:
    """Return the trials per second between the first start and the last."""
    return (len(began) - 1) / (began[-1] - began[0]) if len(began) > 1 else 0.0


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a worker ended by itself, with exit code {process.wait()}")
    return line


@contextmanager
def opened(server: Cluster, arm: str, sampler: str) -> Iterator[Side]:
    """Provide a side with an empty database."""
    side = Side(arm, server.database(), sampler)
    try:
        yield side
    finally:
        side.close()


def memory(side: Side, seconds: float, *more: str) -> dict[str, float]:
    """Measure a fresh process; the side has none after."""
    side.start(1, *more)
    found = side.measured(1, 0.0, seconds)
    side.close()
    return {"trials": found["trials"]} | {k: round(v, 1) for k, v in found["memory, MB"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--trials", type=float, nargs="+", default=TRIALS, metavar="SECONDS")
    parser.add_argument("--sampler", choices=("random", "tpe"), default="random")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each cell of the table")
    parser.add_argument("--quick", action="store_true", help="a minute: a look, no result written")
    options = parser.parse_args()
    if options.quick:
        options.workers, options.trials, options.seconds = [1, 4], [0.0, 0.1], 3.0
    report: dict[str, Any] = {
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "database": "postgresql",
        "sampler": options.sampler,
        "seconds a cell": options.seconds,
    }
    with (
        cluster(fsync="on") as server,
        opened(server, "tuner", options.sampler) as ours,
        opened(server, "optuna", options.sampler) as theirs,
    ):
        report["memory, MB"] = {
            "tuner": memory(ours, options.seconds),
            "optuna": memory(theirs, options.seconds),
            "optuna and torch": memory(theirs, options.seconds, "torch"),
        }
        for who, held in report["memory, MB"].items():
            print(f"{who}: USS {held['uss']:.0f} MB, RSS {held['rss']:.0f} MB", flush=True)
        print(f"{'trial':>8} {'workers':>8} {'tuner':>8} {'optuna':>8} {'ratio':>6}", flush=True)
        for workers in options.workers:
            ours.start(workers)
            theirs.start(workers)
            for trial in options.trials:
                cell = one_cell((ours, theirs), workers, trial, options.seconds)
                report[f"{trial:g} s, {workers} workers"] = cell
                print(
                    f"{trial:>6g} s {workers:>8} {cell['tuner']:>8.1f} {cell['optuna']:>8.1f} "
                    f"{cell['tuner/optuna']:>6.2f}",
                    flush=True,
                )
    if not options.quick:
        (HERE / "results" / "workers.json").write_text(json.dumps(report, indent=2) + "\n")


def one_cell(
    sides: tuple[Side, Side], workers: int, trial: float, seconds: float
) -> dict[str, float]:
    """Measure both sides; give trials a second."""
    rates = {side.arm: side.measured(workers, trial, seconds)["rate"] for side in sides}
    rates["tuner/optuna"] = rates["tuner"] / rates["optuna"]
    return {key: round(rate, 3) for key, rate in rates.items()}


if __name__ == "__main__":
    main()
