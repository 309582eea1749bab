"""The plot layer of report, compare and docs: plain data in, a picture out.

What a picture shows is made once (`figures`, of the plain data in `picture`) and drawn by either
backend: matplotlib for files (`still`), plotly for pages (`web`). The functions here draw with
matplotlib at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tuner.report.charts import figures, still
from tuner.report.charts.paths import path_on_function
from tuner.report.charts.picture import OUTCOME_STYLES, POINTS, SERIES, Line, Points
from tuner.report.charts.still import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "OUTCOME_STYLES",
    "POINTS",
    "SERIES",
    "Line",
    "Points",
    "comparison",
    "loss_curves",
    "path_on_function",
    "rates_as_applied",
    "save",
    "value_by_rate",
]


def loss_curves(*args: Any, **kwargs: Any) -> Figure:
    """Draw `figures.loss_curves`."""
    return still.draw(figures.loss_curves(*args, **kwargs))


def comparison(*args: Any, **kwargs: Any) -> Figure:
    """Draw `figures.comparison`."""
    return still.draw(figures.comparison(*args, **kwargs))


def value_by_rate(*args: Any, **kwargs: Any) -> Figure:
    """Draw `figures.value_by_rate`."""
    return still.draw(figures.value_by_rate(*args, **kwargs))


def rates_as_applied(*args: Any, **kwargs: Any) -> Figure:
    """Draw `figures.rates_as_applied`."""
    return still.draw(figures.rates_as_applied(*args, **kwargs))
