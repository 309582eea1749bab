"""A background thread that calls a function periodically and survives its exceptions."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tuner.core.errors import UnavailableError
from tuner.observability import metrics
from tuner.observability.logs import logger

RETRY_SECONDS = 1.0
"""Delay of the next call after an error, before jitter."""

MAX_SECONDS = 60.0
"""Upper limit of the interval, so that health checks see heartbeats."""

log = logger(__name__)


@contextmanager
def repeating(loop: str, call: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function every `seconds` in a background thread while the body runs.

    The interval is at most a minute, and about a second after an error.

    Exceptions are logged, once until a call succeeds or raises a different one, and the calls
    continue. An unreachable database (`UnavailableError`) still counts as a heartbeat; a loop
    whose every call raises something else counts as stuck.
    """
    ended = threading.Event()

    def run() -> None:
        logged, pause = "", min(seconds, MAX_SECONDS)
        while not ended.wait(pause):
            try:
                call()
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                is_outage = isinstance(error, UnavailableError)
                if is_outage:
                    metrics.heartbeat(loop)
                else:
                    metrics.LOOP_ERRORS.labels(loop).inc()
                if message != logged:
                    log.warning(f"{loop}: {message}; retrying", exc_info=not is_outage)
                logged = message
                pause = RETRY_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret
            else:
                metrics.heartbeat(loop)
                logged, pause = "", min(seconds, MAX_SECONDS)

    thread = threading.Thread(target=run, name=loop, daemon=True)
    with metrics.expect_heartbeats(loop):
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
