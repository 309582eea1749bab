"""Prometheus metrics of services, and the heartbeats of their loops; see docs/operations.md.

Metrics belong to the process, as its log does, so they are module-level objects. Counting takes
less than a microsecond; `tuner.observability.serving` exports them.
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
    "tuner_leases_lost", "Trials of this worker that another one took.", registry=REGISTRY
)
ATTEMPTS_REAPED = Counter(
    "tuner_attempts_reaped", "Attempts of lost workers that this one ended.", registry=REGISTRY
)
CHUNKS_SPILLED = Counter(
    "tuner_chunks_spilled",
    "Times that rows went into a file, as the database was away.",
    registry=REGISTRY,
)
OUTAGE = Gauge(
    "tuner_outage",
    "1 while this process cannot reach what it needs: ledger, optuna or mlflow.",
    ["target"],
    registry=REGISTRY,
)
BULK_WRITER = Gauge(
    "tuner_bulk_writer",
    "1 while rows go into a target's tables in bulk, 0 through its library, which is slower.",
    ["target"],
    registry=REGISTRY,
)
LOOP_TURNED = Gauge(
    "tuner_loop_turned_timestamp_seconds",
    "When a loop of this process last turned, waiting for a database included.",
    ["loop"],
    registry=REGISTRY,
)
LOOP_ERRORS = Counter(
    "tuner_loop_errors",
    "Unexpected errors that a loop of this process survived.",
    ["loop"],
    registry=REGISTRY,
)
_turned: dict[str, float] = {}  # by loop, in the monotonic clock


@contextmanager
def looping(loop: str) -> Iterator[None]:
    """Expect heartbeats of a loop while the body runs, every few minutes even in an outage."""
    is_inner = loop in _turned  # the outer of two loops with one name continues
    _turned[loop] = time.monotonic()
    try:
        yield
    finally:
        if is_inner:
            turned(loop)
        else:
            _turned.pop(loop, None)
            with suppress(KeyError):  # there was no heartbeat
                LOOP_TURNED.remove(loop)


def turned(loop: str) -> None:
    """Record a heartbeat of a loop."""
    if loop in _turned:  # the same work may be done outside a loop
        _turned[loop] = time.monotonic()
    LOOP_TURNED.labels(loop).set_to_current_time()


def stuck(seconds: float, clock: Callable[[], float] = time.monotonic) -> list[str]:
    """Return the names of the loops without a heartbeat for `seconds`."""
    now = clock()
    return sorted(loop for loop, at in dict(_turned).items() if now - at > seconds)


def reached(target: str, *, away: bool = False) -> None:
    """Record whether a target could be reached."""
    OUTAGE.labels(target).set(float(away))
