"""Prometheus metrics and loop heartbeats of this process; see docs/operations.md.

Metrics are global to the process, as its log is. Counting takes less than a microsecond;
`tuner.observability.serving` exports the values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

STEPS = Counter("tuner_steps", "Training steps made by this worker.", registry=REGISTRY)
TRIALS_ENDED = Counter(
    "tuner_trials_ended", "Trials ended by this worker.", ["outcome"], registry=REGISTRY
)
LEASES_LOST = Counter(
    "tuner_leases_lost", "Trials of this worker that another worker took over.", registry=REGISTRY
)
ATTEMPTS_REAPED = Counter(
    "tuner_attempts_reaped", "Attempts of lost workers that this worker ended.", registry=REGISTRY
)
CHUNKS_SPILLED = Counter(
    "tuner_chunks_spilled",
    "Times that rows were written to a spill file because the database was unreachable.",
    registry=REGISTRY,
)
OUTAGE = Gauge(
    "tuner_outage",
    "1 while this process cannot reach a target: ledger, optuna or mlflow.",
    ["target"],
    registry=REGISTRY,
)
BULK_WRITER = Gauge(
    "tuner_bulk_writer",
    "1 while rows are written to a target in bulk, 0 while through its slower API.",
    ["target"],
    registry=REGISTRY,
)
LOOP_TURNED = Gauge(
    "tuner_loop_turned_timestamp_seconds",
    "Time of the last heartbeat of a loop of this process.",
    ["loop"],
    registry=REGISTRY,
)
LOOP_ERRORS = Counter(
    "tuner_loop_errors",
    "Unexpected errors after which a loop of this process continued.",
    ["loop"],
    registry=REGISTRY,
)
_heartbeats: dict[str, float] = {}  # by loop, on the monotonic clock


@contextmanager
def expect_heartbeats(loop: str) -> Iterator[None]:
    """Count a loop as stuck if its heartbeats stop while the body runs.

    A loop must record a heartbeat every few minutes, also while it waits for a database.
    """
    is_nested = loop in _heartbeats  # the outer loop of the same name goes on
    _heartbeats[loop] = time.monotonic()
    try:
        yield
    finally:
        if is_nested:
            heartbeat(loop)
        else:
            _heartbeats.pop(loop, None)
            with suppress(KeyError):  # no heartbeat was recorded
                LOOP_TURNED.remove(loop)


def heartbeat(loop: str) -> None:
    """Record a heartbeat of a loop."""
    if loop in _heartbeats:  # the same work may be done outside a loop
        _heartbeats[loop] = time.monotonic()
    LOOP_TURNED.labels(loop).set_to_current_time()


def stuck_loops(seconds: float, clock: Callable[[], float] = time.monotonic) -> list[str]:
    """Return the names of the loops without a heartbeat for `seconds`."""
    now = clock()
    return sorted(loop for loop, at in dict(_heartbeats).items() if now - at > seconds)


def set_outage(target: str, *, active: bool) -> None:
    """Record whether a target is unreachable now."""
    OUTAGE.labels(target).set(float(active))
