"""Curves of any trials on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuner.ledger import Reader
from tuner.report import comparison
from tuner.report.comparison import Alignment
from tuner.report.page import Written


def compare(
    ledger: Reader, trials: Sequence[str], metric: str, by: Alignment, to: Path | None = None
) -> Written:
    """Write the page that compares trials named as STUDY:TRIAL.

    Raise `UsageError`, `NotFoundError` or `OutputError`.
    """
    return comparison.write(comparison.choose(ledger, trials), metric, by, to)
