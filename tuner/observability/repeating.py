"""A thread that calls a function periodically and survives its exceptions."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tuner.core.errors import UnavailableError
from tuner.observability import metrics
from tuner.observability.logs import logger

RETRY_SECONDS = 1.0
"""The mean time until the next call after an error."""

MOST_SECONDS = 60.0
"""The longest time between two calls, so that health checks see a heartbeat."""

log = logger(__name__)


@contextmanager
def repeating(loop: str, turn: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function every `seconds` in a thread while the body runs.

    It is called at least once a minute, and a second after an error. Every exception is logged,
    but not repeated until a call succeeds or raises something else. An unreachable database counts
    as a heartbeat; a loop whose calls all raise anything else counts as stuck.
    """
    ended = threading.Event()

    def run() -> None:
        logged, pause = "", min(seconds, MOST_SECONDS)
        while not ended.wait(pause):
            try:
                turn()
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                is_away = isinstance(error, UnavailableError)
                if is_away:
                    metrics.turned(loop)
                else:
                    metrics.LOOP_ERRORS.labels(loop).inc()
                if what != logged:
                    log.warning(f"{loop}: {what}; trying again", exc_info=not is_away)
                logged = what
                pause = RETRY_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
            else:
                metrics.turned(loop)
                logged, pause = "", min(seconds, MOST_SECONDS)

    thread = threading.Thread(target=run, name=loop, daemon=True)
    with metrics.looping(loop):
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
