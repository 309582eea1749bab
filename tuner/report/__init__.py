"""Reports for people: tables on a terminal (`tables`), and pages with pictures (`writing`)."""

from __future__ import annotations

from tuner.report.tables import STYLES, ranking, sparkline, stopped, trial_row, trial_table

__all__ = ["STYLES", "ranking", "sparkline", "stopped", "trial_row", "trial_table"]
