"""What a real PostgreSQL sees of many workers: connections, statements while idle, claims.

- *idle*: so many workers look for something to train where there is nothing, in a database with
  finished studies. Each is the loop of `tuner worker`, with a ledger and connections of its own, in
  a thread: a process of 200 MB each would measure this machine. Statements are counted by the
  workers' engines, transactions and connections by the server. The counts are of `--seconds` after
  `--settle` seconds, when workers look every 5 seconds; at their start they look every half second.
- *busy*: the calls on the ledger of `--busy` workers with trials that take `--trial` seconds each:
  every trial is claimed and finished, and every lease renewed each third of it. They are simulated:
  `--threads` threads make the calls when they are due. Nothing is trained or recorded.

Through pgbouncer with `--pool CONNECTIONS`, in transaction mode (Debian's package).

    python benchmarks/many_workers.py [--idle 200] [--busy 1000] [--trial 60] [--pool 20]
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Engine, event

from tuner.config import StudySpec
from tuner.core.outcome import Outcome
from tuner.ledger import Lease, Ledger, StudyRecord
from tuner.ledger.database import Addresses, addresses, open_ledger
from tuner.operations import submit
from tuner.worker import work

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from pooler import pooler, through
from postgres import cluster

FINISHED = 20
"""How many studies have ended."""


def submitted(ledger: Ledger, name: str, trials: int) -> StudyRecord:
    spec = StudySpec.model_validate(
        {
            "study": {"name": name},
            "workload": {"factory": "studies.digits:mlp"},
            "training": {"steps": 10},
            "space": {"lr": {"low": 1e-3, "high": 1e-2}},
            "search": {"sampler": "random", "pruner": "none"},
            "budget": {"trials": trials, "decide": 0},
        }
    )
    study, _ = submit.submit(ledger, spec, submit.prepare(spec, ["studies."]).description)
    return study


class Counting:
    """Counts the statements of engines."""

    def __init__(self) -> None:
        self._numbers = count()
        self._read = count()

    def of(self, engine: Engine) -> Engine:
        event.listen(engine, "before_cursor_execute", lambda *_: next(self._numbers))
        return engine

    @property
    def total(self) -> int:
        """The statements so far."""
        return next(self._numbers) - next(self._read)


def server(url: str) -> dict[str, int]:
    """Ask the server for the transactions so far, and the connections."""
    query = (
        "SELECT sum(xact_commit + xact_rollback)::bigint, sum(numbackends)::int "
        "FROM pg_stat_database WHERE datname = current_database()"
    )
    with psycopg.connect(url) as connection:
        transactions, connections = connection.execute(query).fetchone()  # type: ignore[misc]
    return {"transactions": transactions, "connections": connections - 1}


@contextmanager
def idling(places: Addresses, workers: int) -> Iterator[Counting]:
    """Let so many workers look for something to train."""
    stop, counting = threading.Event(), Counting()
    threads = [
        threading.Thread(
            target=work,
            args=(Ledger(counting.of(open_ledger(places, create=False))), places),
            kwargs={"names": (), "prefixes": ("studies.",), "stop": stop, "until_idle": False},
        )
        for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    try:
        yield counting
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def idle(places: Addresses, direct: str, workers: int, settle: float, seconds: float) -> Any:
    """Return what the server sees of idle workers, a second."""
    with idling(places, workers) as counting:
        time.sleep(settle)
        before, statements, began = server(direct), counting.total, time.monotonic()
        time.sleep(seconds)
        after, ended = server(direct), time.monotonic()
        return {
            "workers": workers,
            "connections": after["connections"],
            "statements/s": round((counting.total - statements) / (ended - began), 1),
            "transactions/s": round(
                (after["transactions"] - before["transactions"]) / (ended - began), 1
            ),
        }


def busy(
    places: Addresses, direct: str, workers: int, trial: float, threads: int, seconds: float
) -> Any:
    """Return how long claims take while so many workers are served, and how many are late."""
    ledgers = [Ledger(open_ledger(places, create=False)) for _ in range(threads)]
    study = submitted(ledgers[0], f"busy {time.time()}", 1_000_000)
    taken = ledgers[0].claim_together(study.id, "simulated", {}, workers)
    held = {index: one.lease for index, one in enumerate(taken)}
    began = time.monotonic()
    third = ledgers[0].lease_seconds / 3
    due = [(began + index / workers * third, index, "renew") for index in held]
    due += [(began + index / workers * trial, index, "next") for index in held]
    heapq.heapify(due)
    lock, claims, late, calls = threading.Lock(), [], [], count()

    def serve(ledger: Ledger) -> None:
        while time.monotonic() < began + seconds:
            with lock:
                at, index, call = heapq.heappop(due)
                heapq.heappush(due, (at + (third if call == "renew" else trial), index, call))
            time.sleep(max(0.0, at - time.monotonic()))
            late.append(time.monotonic() - at)
            next(calls)
            _call(ledger, call, index)

    def _call(ledger: Ledger, call: str, index: int) -> None:
        lease: Lease = held[index]
        if call == "renew":
            ledger.renew([lease])
            return
        ledger.finish(lease, ENDED)
        at = time.monotonic()
        claimed = ledger.claim(study.id, "simulated", {})
        claims.append(time.monotonic() - at)
        assert claimed is not None
        held[index] = claimed.lease

    running = [threading.Thread(target=serve, args=(one,)) for one in ledgers]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    cuts = statistics.quantiles(claims, n=20) if len(claims) > 1 else [0.0] * 19
    return {
        "workers": workers,
        "trial, s": trial,
        "connections": server(direct)["connections"],
        "calls/s": round(next(calls) / seconds, 1),
        "claims": len(claims),
        "claim, ms, median": round(1000 * cuts[9], 1),
        "claim, ms, 95 %": round(1000 * cuts[18], 1),
        "late, s, most": round(max(late), 2),
    }


ENDED = Outcome(kind="completed", reason="Simulated.", value=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--idle", type=int, default=200)
    parser.add_argument("--busy", type=int, default=1000)
    parser.add_argument("--trial", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--settle", type=float, default=70.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--pool", type=int, help="connections of a pgbouncer between them")
    asked = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = stack.enter_context(
            cluster(fsync="on", max_connections=str(2 * asked.idle + asked.threads + 50))
        )
        direct = made.database(made.migrated)
        url = direct
        if asked.pool:
            port = stack.enter_context(pooler(made, connections=asked.pool, clients=5000))
            url = through(direct, port)
        places = addresses({"TUNER_DATABASE_URL": url}, folder)
        ledger = Ledger(open_ledger(places, create=False))
        for index in range(FINISHED):
            study = submitted(ledger, f"finished {index}", 1)
            claimed = ledger.claim(study.id, "simulated", {})
            assert claimed is not None
            ledger.finish(claimed.lease, ENDED)
        ledger.engine.dispose()
        if asked.idle:
            print(
                json.dumps({"idle": idle(places, direct, asked.idle, asked.settle, asked.seconds)})
            )
        if asked.busy:
            result = busy(places, direct, asked.busy, asked.trial, asked.threads, asked.seconds)
            print(json.dumps({"busy": result}))


if __name__ == "__main__":
    main()
