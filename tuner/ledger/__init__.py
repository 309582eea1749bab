"""The ledger, the truth about studies and trials: `Ledger` and the records that it gives."""

from tuner.ledger.reading import Reader
from tuner.ledger.records import (
    OPEN,
    OUT_OF_MEMORY,
    PAUSED,
    STOPPED,
    AttemptRecord,
    Changes,
    CheckpointRecord,
    Claim,
    Lease,
    Report,
    Searched,
    SearchedTrial,
    StudyRecord,
    TrialRecord,
)
from tuner.ledger.renewing import renewing
from tuner.ledger.writing import LEASE_SECONDS, STALE_RETRIES, Ledger

__all__ = [
    "LEASE_SECONDS",
    "OPEN",
    "OUT_OF_MEMORY",
    "PAUSED",
    "STALE_RETRIES",
    "STOPPED",
    "AttemptRecord",
    "Changes",
    "CheckpointRecord",
    "Claim",
    "Lease",
    "Ledger",
    "Reader",
    "Report",
    "Searched",
    "SearchedTrial",
    "StudyRecord",
    "TrialRecord",
    "renewing",
]
