"""The addresses and the ledger that the working directory and the environment name."""

from __future__ import annotations

import os
from pathlib import Path

from tuner.core.environment import person
from tuner.ledger import LEASE_SECONDS, Ledger, database
from tuner.ledger.database import Addresses
from tuner.ledger.events import Act
from tuner.training.registration import ALLOWED_PREFIXES

PREFIXES = ALLOWED_PREFIXES
"""Prefixes of the modules that may be imported as workloads, unless others are named."""


def addresses() -> Addresses:
    """Return the addresses of the database, of MLflow and of the folders."""
    return database.addresses(os.environ, Path.cwd())


def acting(reason: str | None = None) -> Act:
    """Return what the user of this process asks for, and why, to be recorded in the ledger."""
    return Act(by=person(), reason=reason)


def open_ledger(*, create: bool = False) -> Ledger:
    """Open the ledger; with `create`, create a missing one. Raise `UnavailableError`."""
    lease = float(os.environ.get("TUNER_LEASE_SECONDS", LEASE_SECONDS))
    return Ledger(database.open_ledger(addresses(), create=create), lease)
