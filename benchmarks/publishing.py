"""What publishing costs: finished trials, from the ledger into MLflow and into Optuna's tables.

Each target is published to in two ways, into fresh databases each time:

- *bulk*: many trials at once, into the target's own tables;
- *public*: through the target's public API, one trial after the other.

Every trial has 200 steps of three metrics. Both ways run in turn in each round, so that a machine
whose speed drifts slows both alike; the ratio of each round is taken before the median. Times are
those of a publication from its first look to its last note; opening the databases is not in it.
`cpu` is the processor's time of this process, which trainers beside it do not get.

    python benchmarks/publishing.py [--rounds 5] [--trials 100] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import json
import platform
import pstats
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from tuner.config import reading
from tuner.core.curves import Chunk
from tuner.core.environment import describe
from tuner.core.outcome import COMPLETED, Outcome
from tuner.ledger import Ledger
from tuner.ledger.database import addresses, open_ledger, upgrade_tracking
from tuner.tracking.recorder import Recorder

STEPS = 200
STUDY = """
[study]
name = "publishing"
[workload]
factory = "studies.digits:mlp"
[training]
steps = 200
[space]
lr = { low = 1e-4, high = 1.0 }
schedule = { name = "cosine", warmup = 0.1 }
optimizer = { name = "sgd", momentum = { low = 0.1, high = 0.9 } }
[budget]
trials = 1000000
"""
WORKLOAD = {"code": "c0de", "data": "da7a", "data_name": "digits", "training_rows": 1437}
Timing = dict[str, float]
WAYS, TARGETS = ("bulk", "public"), ("mlflow", "optuna")


def prepare(folder: Path, trials: int) -> None:
    """Create databases with finished, unpublished trials."""
    places = addresses({}, folder)
    upgrade_tracking(places)
    ledger = Ledger(open_ledger(places, create=True))
    study, _ = ledger.submit(reading.parse(STUDY, "benchmark"), limit=trials, workload=WORKLOAD)
    environment = describe("cpu") | {"settled": {"trainer": "reference", "threads": 1}}
    random = np.random.default_rng(0)
    for _ in range(trials):
        claim = ledger.claim(study.id, "benchmark", environment)
        assert claim is not None
        params = {"lr": random.uniform(1e-4, 1.0), "schedule": "cosine", "cosine.warmup": 0.1}
        params |= {"optimizer": "sgd", "sgd.momentum": random.uniform(0.1, 0.9)}
        ledger.draw(claim.lease, params, attrs={}, study_attrs={}, asked_revision=1)
        outcome = Outcome(kind=COMPLETED, reason="Ran all steps.", value=random.random())
        ledger.finish(claim.lease, outcome, chunk=curve(random))
    ledger.engine.dispose()


def curve(random: np.random.Generator, steps: int = STEPS) -> Chunk:
    times = 1.7e9 + np.arange(steps) * 0.003
    columns = {name: random.random(steps) for name in ("train_loss", "lr", "grad_norm")}
    none = np.empty(0)
    return Chunk(
        first_step=0,
        columns=columns,
        times=times,
        eval_steps=none.astype(np.int64),
        eval_times=none,
        metrics={},
    )


def published(template: Path, way: str, target: str, profile: cProfile.Profile | None) -> Timing:
    """Publish to one target from a fresh copy; give the seconds."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for file in template.glob("*.db"):
            shutil.copy(file, folder)
        places = addresses({}, folder)
        engine = open_ledger(places, create=False)
        projection = Recorder(engine, places, in_bulk=way == "bulk").projections[target]
        began, cpu = time.perf_counter(), time.process_time()
        if profile is not None:
            profile.enable()
        while projection.publish():
            pass
        if profile is not None:
            profile.disable()
        spent = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        assert not projection.behind()
        engine.dispose()
    return spent


def spread(values: list[float]) -> Timing:
    ordered = sorted(values)
    return {"min": ordered[0], "median": statistics.median(ordered), "max": ordered[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--profile", action="store_true", help="Say where bulk spends its time.")
    options = parser.parse_args()
    rows: list[dict[str, Timing]] = []
    with tempfile.TemporaryDirectory() as made:
        template = Path(made)
        prepare(template, options.trials)
        for way in WAYS:  # what is imported late is imported now
            for target in TARGETS:
                published(template, way, target, None)
        for target in TARGETS if options.profile else ():
            profile = cProfile.Profile()
            published(template, "bulk", target, profile)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        for index in range(options.rounds):
            row = {
                f"{target} {way}": published(template, way, target, None)
                for target in TARGETS
                for way in WAYS
            }
            rows.append(row)
            each = {name: 1000 * one["wall"] / options.trials for name, one in row.items()}
            print(f"round {index}: " + ", ".join(f"{k} {v:.1f} ms" for k, v in each.items()))
    report: dict[str, object] = {"machine": platform.machine(), "trials": options.trials}
    report |= {"steps": STEPS, "metrics": 3}
    for target in TARGETS:
        for clock in ("wall", "cpu"):
            for way in WAYS:
                each = [1000 * row[f"{target} {way}"][clock] / options.trials for row in rows]
                report[f"{target}: {way}, {clock} ms a trial"] = spread(each)
            ratios = [row[f"{target} public"][clock] / row[f"{target} bulk"][clock] for row in rows]
            report[f"{target}: public/bulk, {clock}"] = spread(ratios)
    for name, value in report.items():
        if isinstance(value, dict):
            print(f"{name}: {value['median']:.2f} ({value['min']:.2f} to {value['max']:.2f})")
    result = Path(__file__).resolve().parent / "results" / "publishing.json"
    result.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
