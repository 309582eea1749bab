"""What an ended trial takes in PostgreSQL: bytes in the ledger, in Optuna's and MLflow's tables.

Trials have three columns of random numbers and a given number of steps, published by a recorder.
The size of a schema is that of its tables with indexes and what is too long for a row, less what it
was before the first trial. Random numbers do not compress, so a real curve takes no more.

    python benchmarks/storing.py postgresql://postgres@127.0.0.1/postgres [--steps 200 2000]

It makes a database of its own on the server and drops it again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import psycopg
import publishing
from sqlalchemy import make_url

from tuner.config import reading
from tuner.core.environment import describe
from tuner.core.outcome import COMPLETED, Outcome
from tuner.ledger import Ledger, database
from tuner.ledger.database import Addresses
from tuner.tracking.recorder import Recorder

NAME = "tuner_benchmark_storing"
SIZES = """
SELECT schemaname, sum(pg_total_relation_size(format('%I.%I', schemaname, tablename)::regclass))
FROM pg_tables WHERE schemaname IN ('tuner', 'mlflow', 'public') GROUP BY 1
"""


def sizes(url: str) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        return {schema: int(size) for schema, size in connection.execute(SIZES)}


def fill(places: Addresses, trials: int, steps: int) -> None:
    """Insert finished trials into the ledger, and publish them."""
    ledger = Ledger(database.open_ledger(places, create=False))
    study, _ = ledger.submit(
        reading.parse(publishing.STUDY, "benchmark"), limit=trials, workload=publishing.WORKLOAD
    )
    environment = describe("cpu") | {"settled": {"trainer": "reference", "threads": 1}}
    random = np.random.default_rng(0)
    for _ in range(trials):
        claim = ledger.claim(study.id, "benchmark", environment)
        assert claim is not None
        params = {"lr": random.uniform(1e-4, 1.0), "schedule": "cosine", "cosine.warmup": 0.1}
        params |= {"optimizer": "sgd", "sgd.momentum": random.uniform(0.1, 0.9)}
        ledger.draw(claim.lease, params, attrs={}, study_attrs={}, asked_revision=1)
        outcome = Outcome(kind=COMPLETED, reason="Ran all steps.", value=random.random())
        ledger.finish(claim.lease, outcome, chunk=publishing.curve(random, steps))
    recorder = Recorder(ledger.engine, places)
    while recorder.publish():
        pass
    recorder.close()
    ledger.engine.dispose()


def measure(server: str, trials: int, steps: int) -> dict[str, float]:
    """Return the kilobytes per trial of each schema."""
    url = make_url(server).set(database=NAME).render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as administrator:
        administrator.execute(f"CREATE DATABASE {NAME}")
        try:
            with tempfile.TemporaryDirectory() as folder:
                places = database.addresses({"TUNER_DATABASE_URL": url}, Path(folder))
                database.upgrade(places)
                before = sizes(url)
                fill(places, trials, steps)
                after = sizes(url)
        finally:
            administrator.execute(f"DROP DATABASE {NAME} WITH (FORCE)")
    return {name: round((after[name] - before[name]) / trials / 1000, 2) for name in before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", help="an administrator's URL")
    parser.add_argument("--steps", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--trials", type=int, default=100)
    arguments = parser.parse_args()
    report = {
        "metrics": 3,
        "trials": arguments.trials,
        "kilobytes a trial": {
            str(steps): measure(arguments.server, arguments.trials, steps)
            for steps in arguments.steps
        },
    }
    text = json.dumps(report, indent=2)
    print(text)
    result = Path(__file__).resolve().parent / "results" / "storing.json"
    result.write_text(text + "\n")


if __name__ == "__main__":
    main()
