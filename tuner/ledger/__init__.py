"""The ledger, the truth about studies and trials: `Ledger` and the records that it gives."""

from tuner.ledger.leasing import LEASE_SECONDS
from tuner.ledger.reading import Reader
from tuner.ledger.records import (
    ENDED,
    INTERRUPTED,
    OPEN,
    OUT_OF_MEMORY,
    PAUSED,
    RAISED,
    STALE,
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
from tuner.ledger.retrainings import Retraining, Retrainings
from tuner.ledger.writing import Ledger

__all__ = [
    "ENDED",
    "INTERRUPTED",
    "LEASE_SECONDS",
    "OPEN",
    "OUT_OF_MEMORY",
    "PAUSED",
    "RAISED",
    "STALE",
    "STOPPED",
    "AttemptRecord",
    "Changes",
    "CheckpointRecord",
    "Claim",
    "Lease",
    "Ledger",
    "Reader",
    "Report",
    "Retraining",
    "Retrainings",
    "Searched",
    "SearchedTrial",
    "StudyRecord",
    "TrialRecord",
]
