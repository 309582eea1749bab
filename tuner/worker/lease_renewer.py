"""Keeping leases alive while trials train, and reaping those that others have lost."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

from tuner.core.environment import is_gone
from tuner.core.errors import UnavailableError
from tuner.ledger import Lease, Ledger
from tuner.observability import metrics
from tuner.observability.logs import logger
from tuner.observability.repeating import repeating

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
        self._in_touch_since = -float("inf")

    def working(self) -> AbstractContextManager[None]:
        """Renew and reap while the body runs."""
        return repeating("leases", self._keep, self._ledger.lease_seconds / 3)

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
                self._remove(path)
        return reaped

    def _remove(self, path: str) -> None:
        """Remove a checkpoint; one that stays takes room and does no other harm."""
        try:
            (self._checkpoints / path).unlink(missing_ok=True)
        except OSError as error:
            log.warning(f"a checkpoint that nobody needs cannot be removed: {error}")

    def _keep(self) -> None:
        try:
            self._renew()
            self.reap()
        except Exception as error:
            self._in_touch_since = float("inf")  # until a renewal succeeds
            if isinstance(error, UnavailableError):
                metrics.set_outage("ledger", active=True)
            raise
        metrics.set_outage("ledger", active=False)

    def _renew(self) -> None:
        with self._lock:
            held = frozenset(self._held)
        lost = self._ledger.renew(held) if held else frozenset()
        for lease in lost:  # its next commit finds out, in the thread that can act on it
            self.let_go(lease)
        if self._in_touch_since == float("inf"):
            self._in_touch_since = time.monotonic()
