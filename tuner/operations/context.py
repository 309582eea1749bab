"""The addresses and the ledger that this process's folder and environment name."""

from __future__ import annotations

import os
from pathlib import Path

from tuner.ledger import LEASE_SECONDS, Ledger, database
from tuner.ledger.database import Addresses

PREFIXES = ("tuner.", "studies.")
"""Modules whose names begin so may be imported as workloads, unless others are named."""


def places() -> Addresses:
    """Find the addresses."""
    return database.addresses(os.environ, Path.cwd())


def ledger(*, create: bool = False) -> Ledger:
    """Open the ledger; make it first where there is none and `create` allows it."""
    lease = float(os.environ.get("TUNER_LEASE_SECONDS", LEASE_SECONDS))
    return Ledger(database.open_ledger(places(), create=create), lease)
