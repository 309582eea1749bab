"""Trying again where a connection was lost, for calls that may be made twice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from tuner.core.errors import ConnectionLostError

PATIENCE_SECONDS = 3.0
"""How long a call is repeated by default: over a cut connection, not over an outage."""
FIRST_SECONDS, LONGEST_SECONDS = 0.05, 2.0
"""The longest random pause before the first repetition, and before any: doubled each time."""

P = ParamSpec("P")
R = TypeVar("R")


class Patient(Protocol):
    """Who has a patience."""

    patience: float  # seconds


S = TypeVar("S", bound=Patient)


def again(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Repeat a call while its connection is lost, as long as its first argument is patient.

    What the lost connection had begun may have been committed, so it must bear to be made
    twice. Pauses are random, so that many workers do not come back at once.
    """

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        retrying = Retrying(
            retry=retry_if_exception_type(ConnectionLostError),
            wait=wait_random_exponential(multiplier=FIRST_SECONDS, max=LONGEST_SECONDS),
            stop=stop_after_delay(self.patience),
            reraise=True,
        )
        return retrying(method, self, *args, **kwargs)

    return call
