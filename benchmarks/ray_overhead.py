"""What it costs to run trials through Ray: ours, and Ray Tune, with trials that only sleep.

Both have one Ray cluster on the loopback interface, with a CPU for each worker, and random search
over the same space.

- *ours*: workers as `tuner workers start --executor ray --no-recorder` starts them, a real
  PostgreSQL that keeps its commits (`fsync`), a lease, ten steps and a value in the ledger each;
- *tune*: `tune.Tuner` with defaults and so many concurrent trials, each an actor of its own;
- *tune-reuse*: the same with `reuse_actors`, so that a trial may take the actor of an earlier one.

`start` are the seconds until a first trial begins, `busy / ideal` those from there to the end of
the last trial over trials * seconds / workers. Workers of ours begin one after another while a
machine imports PyTorch so many times; `beyond start` leaves that out: it is the time of each worker
from its first trial to its last one's end, added, over trials * seconds. `when all train` is the
same from when the last worker has begun, since the others compete with its imports until then.

Results go to a file, a line an arm; an arm that is there already is left out when run again.

    pip install -c constraints.txt 'ray[tune]'
    python benchmarks/ray_overhead.py [--trials 1000] [--seconds 1] [--workers 16]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import waiting

from tuner.config import StudySpec
from tuner.config.cluster import ClusterSpec
from tuner.ledger import Ledger
from tuner.ledger.database import addresses, open_ledger
from tuner.operations import submit
from tuner.operations import workers as operation

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests"))
from postgres import cluster, rows  # noqa: E402
from ray_cluster import ENVIRONMENT, ray_cluster  # noqa: E402

ARMS = ("ours", "tune", "tune-reuse")


def ours(address: str, trials: int, seconds: float, workers: int, folder: Path) -> dict[str, Any]:
    """Train a study; return how long that took."""
    with cluster(fsync="on") as server:
        url = server.database(server.migrated)
        os.environ["TUNER_DATABASE_URL"] = url
        places = addresses({"TUNER_DATABASE_URL": url}, folder)
        ledger = Ledger(open_ledger(places, create=False))
        spec = StudySpec.model_validate(
            {
                "study": {"name": "overhead"},
                "workload": {"train": "waiting:train", "arguments": {"seconds": seconds}},
                "training": {"steps": waiting.STEPS, "evaluate_every": waiting.STEPS},
                "space": {"lr": {"low": waiting.LOW, "high": waiting.HIGH}},
                "search": {"sampler": "random", "pruner": "none"},
                "budget": {"trials": trials, "decide": 0},
            }
        )
        submit.submit(ledger, spec, submit.prepare(spec, ["waiting"]).description)
        path = f"{HERE}{os.pathsep}{HERE.parent}"
        settings = ClusterSpec.model_validate(
            {
                "worker": {"environment": {"PYTHONPATH": path, "TUNER_SPILL": f"{folder}/spill"}},
                "ray": {"address": address},
            }
        )
        began = time.time()
        operation.start(
            ledger, places, settings, "overhead", workers=workers, executor="ray",
            prefixes=["waiting"], recorder=False,
        )  # fmt: skip
        while ledger.counts(1)["completed"] < trials:
            time.sleep(0.2)
        attempts = rows(url, "SELECT worker, started_at, ended_at FROM tuner.tuner_attempts")
        stopped = operation.stop(ledger, places, settings, "overhead")
        assert not stopped["problems"], stopped
        ledger.engine.dispose()
    spans: dict[str, tuple[float, float]] = {}
    for worker, start, end in attempts:
        first, last = spans.get(worker, (start, end))
        spans[worker] = (min(first, start), max(last, end))
    busy = sum(last - first for first, last in spans.values())
    together = max(first for first, _ in spans.values())
    later: dict[str, list[tuple[float, float]]] = {}
    for worker, start, end in attempts:
        if start >= together:
            later.setdefault(worker, []).append((start, end))
    steady = sum(max(own)[1] - min(own)[0] for own in later.values())
    return {
        **_summary(began, [(start, end) for _, start, end in attempts], trials, seconds, workers),
        "beyond start": round(busy / (trials * seconds), 3),
        "when all train": round(steady / (seconds * sum(map(len, later.values()))), 3),
        "workers that trained": len(spans),
    }


def tuned(
    address: str, trials: int, seconds: float, workers: int, folder: Path, *, reuse: bool
) -> dict[str, Any]:
    """Run the same trials by Ray Tune; return how long that took."""
    import ray  # noqa: PLC0415 - for this arm alone
    from ray import tune  # noqa: PLC0415

    def train(config: dict[str, float]) -> dict[str, float]:
        began = time.time()
        time.sleep(seconds)
        loss = 1 + (math.log10(config["lr"]) + 1.5) ** 2
        return {"loss": loss, "began": began, "ended": time.time()}

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    began = time.time()
    results = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={"lr": tune.loguniform(1e-5, 10.0)},
        tune_config=tune.TuneConfig(
            num_samples=trials, max_concurrent_trials=workers, reuse_actors=reuse
        ),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
    ).fit()
    spans = [(one.metrics["began"], one.metrics["ended"]) for one in results]
    assert len(spans) == trials
    found = _summary(began, spans, trials, seconds, workers)
    ray.shutdown()
    return found


def _summary(
    began: float, spans: list[tuple[float, float]], trials: int, seconds: float, workers: int
) -> dict[str, Any]:
    first, last = min(start for start, _ in spans), max(end for _, end in spans)
    return {
        "start, s": round(first - began, 2),
        "all, s": round(last - began, 2),
        "busy / ideal": round((last - first) / (trials * seconds / workers), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("ray_overhead.jsonl"))
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--address", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    about = {"trials": asked.trials, "seconds": asked.seconds, "workers": asked.workers}
    if asked.arm:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (asked.address, *about.values(), Path(folder))
            found = (
                ours(*arguments)
                if asked.arm == "ours"
                else tuned(*arguments, reuse=asked.arm == "tune-reuse")
            )
        with asked.out.open("a") as out:
            out.write(json.dumps({"arm": asked.arm} | about | found) + "\n")
        return
    lines = asked.out.read_text().splitlines() if asked.out.exists() else []
    for arm in ARMS:
        if any(json.loads(line).items() >= ({"arm": arm} | about).items() for line in lines):
            continue
        with ray_cluster(1, {"OMP_NUM_THREADS": "1"}, cpus=asked.workers) as engine:
            subprocess.run(
                [
                    sys.executable,
                    __file__,
                    *sys.argv[1:],
                    "--arm",
                    arm,
                    "--address",
                    engine.address,
                ],
                env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"},
                check=True,
            )
    print(asked.out.read_text(), end="")


if __name__ == "__main__":
    main()
