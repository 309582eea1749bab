"""The best trial of a study."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tuner.ledger import Reader, StudyRecord
from tuner.ledger.summaries import summaries


def best(ledger: Reader, study: StudyRecord) -> dict[str, Any] | None:
    """Return number, value, params and run_id of the best completed trial, or None."""
    found = summaries(ledger, [study])[study.id].best
    return None if found is None else asdict(found)
