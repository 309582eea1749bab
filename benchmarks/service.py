"""Trials a second of the whole service, recorded in Optuna and MLflow, against loops by hand.

Arms run in turn, so that a machine whose speed drifts slows all of them alike; each trains digits
by a network 64-64-64-10 for 200 steps of 64 images, with AdamW and one thread for PyTorch:

- *bare*: the loop of `throughput.py`: no evaluation, no record, nothing is read;
- *service*: a worker with a cohort of 64 slots and a budget of 512, every step's loss, rate and
  gradient norm and ten evaluations in the ledger, and beside it a recorder that publishes all of
  it; from the submission until the last trial is in Optuna's tables and in MLflow;
- *batch* and *steps*: `by_hand.py`: Optuna and MLflow with one `log_batch` a trial, and with
  `log_metrics` at every step, on the same kind of database.

Every process is started before its time begins. With `--one-core` all of them, the recorder and
PostgreSQL too, share one core. PostgreSQL keeps its commits through a power cut (`fsync`).

    python benchmarks/service.py (sqlite | postgresql) [--rounds 5] [--one-core] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import throughput
from spread import spread
from sqlalchemy import func, select

from tuner.config import reading
from tuner.core.processes import RecorderProcess
from tuner.ledger import Ledger
from tuner.ledger.database import Addresses, addresses, open_ledger, upgrade, upgrade_tracking
from tuner.ledger.tables import published_trials, trials
from tuner.operations import submit
from tuner.training.device import use_threads
from tuner.worker import work

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "tests"), str(HERE.parent)]  # the latter has the studies
from postgres import cluster  # noqa: E402

STUDY = """
[study]
name = "service {index}"
[workload]
factory = "studies.digits:mlp"
[training]
steps = 200
batch_size = 64
evaluate_every = 20
trainer = "cohort"
slots = {slots}
[space]
lr = {{ low = 1e-3, high = 1e-2 }}
schedule = "cosine"
optimizer = "adamw"
[search]
sampler = "{sampler}"
pruner = "none"
[budget]
trials = {budget}
decide = 0
"""
SLOTS, BUDGET = 64, 512
BY_HAND = {"steps": 3, "batch": 12}
"""Trials of a round."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """The service on one database, with a recorder that is at work already."""

    places: Addresses
    ledger: Ledger
    sampler: str

    def train(self, index: int, budget: int, profile: cProfile.Profile | None = None) -> float:
        """Train a study of so many trials and wait until all is published; give the seconds."""
        text = STUDY.format(index=index, slots=SLOTS, budget=budget, sampler=self.sampler)
        spec = reading.parse(text, "benchmark")
        described = submit.prepare(spec, ["studies."]).description
        began = time.perf_counter()
        study, _ = submit.submit(self.ledger, spec, described)
        if profile:
            profile.enable()
        work(
            self.ledger,
            self.places,
            names=[study.name],
            prefixes=["studies."],
            stop=threading.Event(),
            until_idle=True,
        )
        if profile:
            profile.disable()
        trained = time.perf_counter()
        while self._published(study.id) < 2 * budget:
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        print(f"  trained in {trained - began:.2f} s, published {seconds:.2f} s", flush=True)
        return seconds

    def _published(self, study_id: int) -> int:
        """Count the trials that are final in Optuna's tables and those in MLflow."""
        query = (
            select(func.count())
            .select_from(published_trials.join(trials))
            .where(trials.c.study_id == study_id, published_trials.c.final)
        )
        with self.ledger.engine.begin() as tx:
            return int(tx.scalar(query) or 0)


@contextmanager
def service(url: str | None, folder: Path, sampler: str) -> Iterator[Service]:
    """Provide a service on PostgreSQL, or in files."""
    environment = {} if url is None else {"TUNER_DATABASE_URL": url}
    os.environ.update(environment)  # the recorder's too
    os.chdir(folder)
    places = addresses(environment, folder)
    if url is None:
        upgrade_tracking(places)
    else:
        upgrade(places)
    ledger = Ledger(open_ledger(places, create=url is None))
    recorder = RecorderProcess(())
    try:
        yield Service(places=places, ledger=ledger, sampler=sampler)
    finally:
        recorder.close()


def by_hand(how: str, count: int, database: Callable[[str], str]) -> float:
    """Run the script; give the seconds of a trial."""
    script = [sys.executable, str(HERE / "by_hand.py"), how]
    arguments = [database("optuna"), database("mlflow"), str(count)]
    done = subprocess.run([*script, *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1]) / count


@contextmanager
def databases(kind: str, folder: Path) -> Iterator[tuple[str | None, Callable[[str], str]]]:
    """Return the service's URL (None for files) and the database URLs of the other arms by name."""
    if kind == "sqlite":
        yield None, lambda name: f"sqlite:///{folder / name}-by-hand.db"
        return
    with cluster(fsync="on") as server:
        names: dict[str, str] = {}

        def url(name: str) -> str:
            if name not in names:
                plain = server.database()
                names[name] = plain.replace("postgresql:", "postgresql+psycopg:")
            return names[name]

        yield server.database(), url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["sqlite", "postgresql"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=BUDGET)
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--one-core", action="store_true")
    parser.add_argument("--profile", action="store_true", help="of the worker; ours alone")
    options = parser.parse_args()
    if options.one_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    os.environ["OMP_NUM_THREADS"] = "1"
    use_threads(1)
    case, spec = throughput.dense(64, bare=16, budget=0), throughput.spec_of("adamw")
    rows: list[dict[str, float]] = []
    with (
        tempfile.TemporaryDirectory() as name,
        databases(options.kind, Path(name)) as (ours, others),
        service(ours, Path(name), options.sampler) as served,
    ):
        served.train(0, SLOTS)
        throughput.bare(case, spec)
        if options.profile:
            profile = cProfile.Profile(time.process_time)  # others may use the processors
            served.train(1, options.budget, profile)
            pstats.Stats(profile).sort_stats("tottime").print_stats(45)
            pstats.Stats(profile).sort_stats("cumtime").print_stats(70)
            return
        for index in range(1, options.rounds + 1):
            row = {
                "bare": throughput.bare(case, spec),
                "service": served.train(index, options.budget) / options.budget,
            }
            row |= {how: by_hand(how, count, others) for how, count in BY_HAND.items()}
            rows.append(row)
            line = ", ".join(f"{arm} {1000 * seconds:.1f} ms" for arm, seconds in row.items())
            print(f"{options.kind}, round {index}, a trial: {line}", flush=True)
    report: dict[str, Any] = {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "slots": SLOTS,
        "budget": options.budget,
        "sampler": options.sampler,
        "milliseconds": {
            a: round(1000 * statistics.median(r[a] for r in rows), 2) for a in rows[0]
        },
    }
    for arm in ("bare", "batch", "steps"):
        report[f"{arm}/service"] = spread([row[arm] / row["service"] for row in rows])
        print(f"{arm}/service: {report[f'{arm}/service']}")
    cores = "-one-core" if options.one_core else ""
    result = HERE / "results" / f"service-{options.kind}{cores}.json"
    result.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
