"""Reports for people: tables on a terminal (`tables`), and pages with pictures (`writing`)."""

from __future__ import annotations

from tuner.report.tables import (
    STYLES,
    curve_width,
    fitted,
    ranking,
    sparkline,
    stopped,
    trial_row,
    trial_table,
)

__all__ = [
    "STYLES",
    "curve_width",
    "fitted",
    "ranking",
    "sparkline",
    "stopped",
    "trial_row",
    "trial_table",
]
