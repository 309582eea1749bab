"""A thread that does something again and again, and survives whatever that raises."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tuner.core.errors import UnavailableError
from tuner.observability import metrics
from tuner.observability.logs import logger

RETRY_SECONDS = 1.0
"""About how long after an error the next turn comes."""

MOST_SECONDS = 60.0
"""The longest time between two turns, so that health checks see each loop turn."""

log = logger(__name__)


@contextmanager
def repeating(loop: str, turn: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function every so many seconds, in a thread of its own, while the body runs.

    At least once a minute, and a second after an error.

    Whatever it raises is logged, once until a call succeeds or raises something else, and the next
    call comes all the same. Health checks see the loop: a database that is away is no fault of
    ours, but a loop whose every call raises anything else counts as stuck.
    """
    ended = threading.Event()

    def run() -> None:
        said, pause = "", min(seconds, MOST_SECONDS)
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
                if what != said:
                    log.warning(f"{loop}: {what}; trying again", exc_info=not is_away)
                said = what
                pause = RETRY_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
            else:
                metrics.turned(loop)
                said, pause = "", min(seconds, MOST_SECONDS)

    thread = threading.Thread(target=run, name=loop, daemon=True)
    with metrics.looping(loop):
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
