"""What MLflow's UI waits for: its own requests, to a real server, on a study of many trials.

The database that TUNER_DATABASE_URL names is filled with finished trials of 200 steps and three
metrics (by the recorder's own writer), then a server is started on it and asked what the UI asks:

- *open*: the runs by date, 100 of them, as a fresh browser does;
- *sorted*: the trials by best value, as our views do;
- *curves*: the points of one metric of these 100 runs, 320 points each, as a chart does.

All of it before the database's statistics are brought up to date, and after (`ANALYZE`).

    TUNER_DATABASE_URL=postgresql://... python benchmarks/browsing.py [--trials 1000] [--asks 5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine

from tuner.core.outcome import COMPLETED, PRUNED
from tuner.ledger.database import addresses, tracking_client, upgrade
from tuner.tracking.mlflow.bulk_writer import BulkRunWriter, tables_engine
from tuner.tracking.mlflow.client_writer import RunEnd
from tuner.tracking.mlflow.run_content import NewRun, Points
from tuner.tracking.mlflow.views import TRIALS, VALUE

STEPS, PORTION = 200, 50
METRICS = ("train_loss", "lr", "grad_norm")


def fill(engine: Engine, trials: int) -> str:
    """Write runs as the recorder does; give the experiment's id."""
    places = addresses(dict(os.environ), Path.cwd())
    experiment = str(tracking_client(places).create_experiment(f"browsing {trials} {time.time()}"))
    writer, random = BulkRunWriter(engine), np.random.default_rng(0)
    (parent,) = writer.create(experiment, [new_run("study", random)])
    for first in range(0, trials, PORTION):
        numbers = range(first, min(first + PORTION, trials))
        runs = [new_run(str(number), random, parent) for number in numbers]
        ids = writer.create(experiment, runs)
        writer.append([(one, points(key, random)) for one in ids for key in METRICS])
        done = {one for one in ids if random.random() < 0.35}
        writer.prepare_end({one: ends(one in done, random) for one in ids})
        writer.end([RunEnd(run_id=one, status="FINISHED", time=1_700_000_001_000) for one in ids])
    return experiment


def new_run(number: str, random: np.random.Generator, parent: str | None = None) -> NewRun:
    more = {"mlflow.parentRunId": parent} if parent else {}
    tags = {"tuner.study": "browsing", "tuner.trial": number, "tuner.host": "here"}
    versions = {f"tuner.version.{name}": "1.2.3" for name in ("torch", "optuna", "mlflow", "numpy")}
    params = {"lr": str(random.random()), "schedule": "cosine", "optimizer": "sgd"}
    return NewRun(
        run_id=None,
        name=f"{number}: lr {random.random():.3g}, cosine, sgd (browsing)",
        start_time=1_700_000_000_000,
        tags={**tags, **versions, **more},
        params=params if parent else {},
        dataset=None,
    )


def points(key: str, random: np.random.Generator) -> Points:
    steps = np.arange(STEPS)
    times = 1_700_000_000_000 + 3 * steps
    return Points(key=key, steps=steps, values=random.random(STEPS), times=times)


def ends(completed: bool, random: np.random.Generator) -> tuple[dict[str, str], list[Points]]:
    tags = {
        "tuner.outcome": COMPLETED if completed else PRUNED,
        "tuner.reason": "Ran all steps.",
    }
    at, value = np.array([1_700_000_001_000]), random.random(1)
    last = Points(key=VALUE, steps=np.array([STEPS]), values=value, times=at)
    return tags, [last] if completed else []


def served(uri: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start MLflow's server; give it and its address, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--workers", "1"],
        env=os.environ
        | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow"
    while True:
        try:
            urllib.request.urlopen(address.replace("/ajax-api/2.0/mlflow", "/health"), timeout=5)
        except OSError:
            assert process.poll() is None, "MLflow's server ended"
            time.sleep(0.2)
        else:
            return process, address


def search(address: str, experiment: str, **more: Any) -> Any:
    body = {"experiment_ids": [experiment], "max_results": 100, **more}
    request = urllib.request.Request(
        f"{address}/runs/search", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return json.load(urllib.request.urlopen(request))["runs"]


def asks(address: str, experiment: str, times: int) -> dict[str, list[float]]:
    """Ask what the UI asks; give the seconds of each answer."""
    by_value = {"filter": TRIALS, "order_by": [f"metrics.`{VALUE}` ASC"]}
    taken: dict[str, list[float]] = {"open": [], "sorted": [], "curves": []}
    for _ in range(times):
        began = time.perf_counter()
        search(address, experiment, order_by=["attributes.start_time DESC"])
        opened = time.perf_counter()
        runs = search(address, experiment, **by_value)
        found = time.perf_counter()
        asked = [("run_ids", run["info"]["run_id"]) for run in runs]
        asked += [("metric_key", METRICS[0]), ("max_results", "320")]
        query = urllib.parse.urlencode(asked)
        urllib.request.urlopen(f"{address}/metrics/get-history-bulk-interval?{query}").read()
        taken["open"].append(opened - began)
        taken["sorted"].append(found - opened)
        taken["curves"].append(time.perf_counter() - found)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--asks", type=int, default=5)
    options = parser.parse_args()
    places = addresses(dict(os.environ), Path.cwd())
    upgrade(places)
    engine = tables_engine(places.tracking)
    assert engine is not None, "this fills the tables of a database"
    began = time.perf_counter()
    experiment = fill(engine, options.trials)
    result: dict[str, Any] = {"trials": options.trials, "filling": time.perf_counter() - began}
    process, address = served(places.tracking)
    try:
        result["before ANALYZE"] = asks(address, experiment, options.asks)
        began = time.perf_counter()
        with engine.begin() as tx:
            tx.exec_driver_sql("ANALYZE")
        result["ANALYZE"] = time.perf_counter() - began
        result["after ANALYZE"] = asks(address, experiment, options.asks)
    finally:
        process.terminate()
        process.wait()
    result["python"], result["dialect"] = platform.python_version(), engine.dialect.name
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
