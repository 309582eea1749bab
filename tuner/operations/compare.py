"""Curves of any trials on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuner.ledger import Reader
from tuner.report import comparing
from tuner.report.comparing import By
from tuner.report.writing import Written


def compare(
    ledger: Reader, trials: Sequence[str], metric: str, by: By, to: Path | None = None
) -> Written:
    """Write the page that compares trials named as STUDY:TRIAL.

    Raise `UsageError`, `NotFoundError` or `OutputError`.
    """
    return comparing.write(comparing.choose(ledger, trials), metric, by, to)
