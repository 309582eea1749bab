"""All studies of a database."""

from __future__ import annotations

from typing import Any

from tuner.ledger import Reader
from tuner.operations import status


def studies(ledger: Reader) -> list[dict[str, Any]]:
    """Return the states of all studies, oldest first."""
    return status.statuses(ledger, ledger.studies())
