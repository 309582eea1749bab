"""Keeping leases alive while trials train, and reaping those that others have lost."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner import metrics
from tuner.environment import is_gone
from tuner.errors import UnavailableError
from tuner.ledger import Lease, Ledger
from tuner.logs import logger

RETRY_SECONDS = 1.0
"""How long until a renewal is tried again that did not reach the database."""

log = logger(__name__)


class Keeper:
    """Renews the leases that this process holds, in a thread of its own.

    Renewing survives lost connections: what counts is whether an attempt was reaped, not whether
    its lease had run out. So after an outage everybody renews before anybody reaps: who was out of
    touch with the database reaps again only after the time that a lease lasts.
    """

    def __init__(self, ledger: Ledger, checkpoints: Path) -> None:
        self._ledger = ledger
        self._checkpoints = checkpoints
        self._held: set[Lease] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._in_touch_since = -float("inf")
        self._thread = threading.Thread(target=self._keep, name="leases", daemon=True)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Renew and reap while the body runs."""
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()

    def hold(self, lease: Lease) -> None:
        """Renew a lease from now on."""
        with self._lock:
            self._held.add(lease)

    def let_go(self, lease: Lease) -> None:
        """Renew a lease no more."""
        with self._lock:
            self._held.discard(lease)

    def reap(self) -> int:
        """Reap what others have lost, and remove checkpoints that nobody needs; count attempts."""
        if time.monotonic() - self._in_touch_since < self._ledger.lease_seconds:
            return 0
        reaped = self._ledger.reap(is_gone)
        if reaped:
            metrics.ATTEMPTS_REAPED.inc(reaped)
            log.info("attempts reaped", attempts=reaped)
            for path in self._ledger.forget_checkpoints():
                (self._checkpoints / path).unlink(missing_ok=True)
        return reaped

    def _keep(self) -> None:
        pause = self._ledger.lease_seconds / 3
        while not self._ended.wait(pause):
            try:
                self._renew()
                self.reap()
                metrics.reached("ledger")
                pause = self._ledger.lease_seconds / 3
            except UnavailableError as error:
                metrics.reached("ledger", away=True)
                if self._in_touch_since != float("inf"):
                    log.warning(f"leases cannot be renewed for now: {error}")
                self._in_touch_since = float("inf")  # until a renewal succeeds
                pause = RETRY_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - no secret

    def _renew(self) -> None:
        with self._lock:
            held = frozenset(self._held)
        lost = self._ledger.renew(held) if held else frozenset()
        for lease in lost:  # its next commit finds out, in the thread that can act on it
            self.let_go(lease)
        if self._in_touch_since == float("inf"):
            self._in_touch_since = time.monotonic()
