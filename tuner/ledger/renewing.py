"""Keeping a lease alive while its trial trains."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tuner.errors import LeaseLost
from tuner.ledger.records import Lease
from tuner.ledger.writing import Ledger


@contextmanager
def renewing(ledger: Ledger, lease: Lease) -> Iterator[None]:
    """Renew a lease in the background, for steps that take longer than it lasts."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(ledger.lease_seconds / 3):
            try:
                ledger.renew(lease)
            except LeaseLost:
                return  # the next commit finds out, in the thread that can act on it

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
