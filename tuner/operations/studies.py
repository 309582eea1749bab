"""All studies of a database."""

from __future__ import annotations

from typing import Any

from tuner.ledger import Reader
from tuner.operations import status


def studies(ledger: Reader) -> list[dict[str, Any]]:
    """Return the states of all studies, oldest first, then those that cannot be read."""
    unreadable = [status.unreadable(one) for one in ledger.unreadable_studies()]
    return status.statuses(ledger, ledger.studies()) + unreadable
