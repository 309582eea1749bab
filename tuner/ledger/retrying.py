"""Retries after a lost connection, for calls that are idempotent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from tuner.core.errors import ConnectionLostError

RETRY_SECONDS = 3.0
"""Default retry timeout: it bridges a cut connection, not an outage."""
FIRST_SECONDS, LONGEST_SECONDS = 0.05, 2.0
"""Upper bounds of the random pause before the first retry and before any; doubled each time."""

P = ParamSpec("P")
R = TypeVar("R")


class HasRetryTimeout(Protocol):
    """An object whose methods are retried for `retry_timeout` seconds."""

    retry_timeout: float


S = TypeVar("S", bound=HasRetryTimeout)


def retry_on_disconnect(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Retry a call that lost its connection, until the first argument's `retry_timeout` is over.

    The transaction of the lost connection may have been committed, so the call must be idempotent.
    Pauses are random, so that many workers do not reconnect at the same moment.
    """

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        retrying = Retrying(
            retry=retry_if_exception_type(ConnectionLostError),
            wait=wait_random_exponential(multiplier=FIRST_SECONDS, max=LONGEST_SECONDS),
            stop=stop_after_delay(self.retry_timeout),
            reraise=True,
        )
        return retrying(method, self, *args, **kwargs)

    return call
