"""Renewing the leases that this process holds, and reaping the attempts that others have lost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tuner.core.environment import is_gone
from tuner.core.errors import TunerError, UnavailableError
from tuner.core.file_stores import FileStore
from tuner.ledger import INTERRUPTED, AttemptLease, Lease, Ledger
from tuner.ledger.checkpoint_files import remove_file
from tuner.observability import metrics
from tuner.observability.logs import logger
from tuner.observability.repeating import repeating

LEAVING_SHARE = 0.2
"""Part of a grace that is kept for releasing what could not be saved."""

log = logger(__name__)


class LeaseRenewer:
    """Renews leases of any kind in one thread of this process, and reaps attempts there.

    Renewal survives lost connections: an expired lease that was not taken over can be renewed.
    After an outage all leases have expired, so every process renews before any process reaps: a
    process that could not reach the database reaps again only after as long as a lease lasts.
    """

    def __init__(self, ledger: Ledger, checkpoints: FileStore) -> None:
        self._ledger = ledger
        self._checkpoints = checkpoints
        self._held: set[Lease] = set()
        self._lock = threading.RLock()  # a finalizer may drop a lease while this thread has it
        self._in_touch_since = -float("inf")
        self._is_running = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Renew and reap while the body runs; nested calls share the thread of the outer one."""
        if self._is_running:
            yield
            return
        self._is_running = True
        try:
            with repeating("leases", self._renew_and_reap, self._ledger.lease_seconds / 3):
                yield
        finally:
            self._is_running = False

    def hold(self, lease: Lease) -> None:
        """Renew a lease from now on."""
        with self._lock:
            self._held.add(lease)

    def drop(self, lease: Lease) -> None:
        """Stop renewing a lease."""
        with self._lock:
            self._held.discard(lease)

    def holds(self, lease: Lease) -> bool:
        """Return whether a lease is being renewed: False once it is let go or known to be lost."""
        with self._lock:
            return lease in self._held

    @contextmanager
    def holding(self, lease: Lease) -> Iterator[None]:
        """Renew a lease while the body runs."""
        self.hold(lease)
        try:
            yield
        finally:
            self.drop(lease)

    def leave_within(self, seconds: float, stop: threading.Event, code: int = 0) -> None:
        """End this process within `seconds` after `stop` is set, whatever it is doing then.

        Attempts that could not be saved by then are released, so that another worker resumes them
        at once from their last checkpoints. What this process still commits is refused. It exits
        with `code`.
        """

        def leave() -> None:
            stop.wait()
            time.sleep((1.0 - LEAVING_SHARE) * seconds)
            with self._lock:
                held = [one for one in self._held if isinstance(one, AttemptLease)]
            log.warning(
                "the grace is over; trials go on from their last checkpoints", trials=len(held)
            )
            try:
                for lease in held:
                    self._ledger.release(lease, INTERRUPTED, "not saved within the grace")
            except TunerError as error:
                log.warning(f"a trial waits until its lease expires: {error}")
            finally:
                os._exit(code)

        threading.Thread(target=leave, name="grace", daemon=True).start()

    def reap(self) -> int:
        """End lost attempts and remove checkpoints no longer needed; return the attempts ended."""
        if time.monotonic() - self._in_touch_since < self._ledger.lease_seconds:
            return 0
        reaped = self._ledger.reap(is_gone)
        if reaped:
            metrics.ATTEMPTS_REAPED.inc(reaped)
            log.info("attempts reaped", attempts=reaped)
            for record in self._ledger.forget_checkpoints():
                remove_file(self._checkpoints, record)
        return reaped

    def _renew_and_reap(self) -> None:
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
        for lease in lost:  # the next commit of its holder is refused, in the holder's thread
            self.drop(lease)
        if self._in_touch_since == float("inf"):
            self._in_touch_since = time.monotonic()
