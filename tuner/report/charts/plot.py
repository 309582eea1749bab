"""A plot as plain data: series, looks, axes and legend; drawn by two backends.

Colours are those of Okabe and Ito, distinguishable with any colour vision ("Color Universal
Design", 2008). What a colour means is also shown by a line style, a marker or a label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from tuner.analysis.verdicts import DIVERGING, GOOD_RATE, TOO_HIGH, TOO_LOW, UNCLEAR
from tuner.core.outcome import CANCELLED, COMPLETED, DIVERGED, FAILED, PRUNED, RUNNING

BLUE, ORANGE, GREEN, PINK = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
SKY, AMBER, INK, FAINT = "#56b4e9", "#e69f00", "#222222", "#8a8a8a"

SERIES = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY, INK)
"""Colours of series without an order."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", "5,1", "3,1,1,1", "1,1")
"""Line styles: matplotlib's four, and lengths of line and gap in line widths."""

OUTCOME_STYLES: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        COMPLETED: (BLUE, "-", "o"),
        PRUNED: (FAINT, "-", "."),
        DIVERGED: (ORANGE, "--", "x"),
        FAILED: (PINK, ":", "v"),
        CANCELLED: (PINK, ":", "^"),
        RUNNING: (SKY, "-.", "."),
    }
)
"""Colour, line style and marker of each outcome."""

NO_VERDICT = "no verdict"
"""Label of trials that are running, failed or cancelled."""
VERDICT_STYLES: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        GOOD_RATE: (GREEN, "-", "o"),
        TOO_LOW: (BLUE, "--", "v"),
        TOO_HIGH: (AMBER, "-.", "^"),
        DIVERGING: (ORANGE, ":", "x"),
        UNCLEAR: (PINK, "-", "."),
        NO_VERDICT: (FAINT, "-", "."),
    }
)
"""Colour, line style and marker of each verdict."""

POINTS = 1000
"""Maximum number of points of a drawn line, about; a plot has fewer pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """One curve: its label and points."""

    label: str
    x: np.ndarray  # [point]: usually steps
    y: np.ndarray  # [point]; may hold nan and inf
    outcome: str = COMPLETED
    verdict: str = NO_VERDICT
    trial: int | None = None  # its number

    def finite(self) -> Line:
        """Return the points before the first non-finite one."""
        broken = np.flatnonzero(~np.isfinite(self.y))
        end = int(broken[0]) if len(broken) else len(self.y)
        return Line(
            label=self.label,
            x=self.x[:end],
            y=self.y[:end],
            outcome=self.outcome,
            verdict=self.verdict,
            trial=self.trial,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """One series of trials: a value for each learning rate."""

    label: str
    rates: np.ndarray  # [trial]
    values: np.ndarray  # [trial]; nan or inf: no value
    trials: np.ndarray | None = None  # [trial], their numbers


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a series looks."""

    colour: str
    dash: str | None = None  # one of DASHES; None: no line
    marker: str | None = None
    width: float = 1.6
    size: float = 5.0  # of a marker
    alpha: float = 1.0


DRAWN = 1e300
"""Larger numbers are drawn as this one: margins and widths must not overflow."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """Points with the same look."""

    label: str
    x: np.ndarray  # [point]
    y: np.ndarray  # [point], finite; fractions of the height if `at_edge`
    look: Look
    group: str = ""  # series of a group are shown and hidden together
    stairs: bool = False
    at_edge: bool = False
    in_front: bool = False
    trials: np.ndarray | None = None  # int64 [point]

    def __post_init__(self) -> None:
        object.__setattr__(self, "y", np.clip(self.y, -DRAWN, DRAWN))


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Title, scale and limits of an axis."""

    title: str
    log: bool = False
    low: float | None = None  # None: fitted to the points
    high: float | None = None
    names: tuple[str, ...] = ()  # labels of 0, 1, … on a categorical axis


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A value on the x axis, or an interval of it."""

    label: str
    low: float
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Key:
    """An entry of the legend."""

    label: str
    look: Look


@dataclass(frozen=True, kw_only=True, eq=False)
class Plot:
    """The content of a plot."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    legend: Sequence[Key] = ()
    marks: Sequence[Mark] = ()


def thinned(y: np.ndarray, points: int) -> np.ndarray:  # y: [point]
    """Return the sorted indices of about `points` points: the extremes of each stretch.

    A line through them looks like one through all points. The first and last are included.
    """
    if len(y) <= points:
        return np.arange(len(y))
    stretches = max(1, points // 2)
    edges = np.linspace(0, len(y), stretches + 1).astype(np.int64)
    width = int(np.diff(edges).max())
    at = np.minimum(edges[:-1, None] + np.arange(width), edges[1:, None] - 1)  # [stretch, point]
    values = y[at]
    rows = np.arange(stretches)
    kept = [at[rows, values.argmin(axis=1)], at[rows, values.argmax(axis=1)], [0, len(y) - 1]]
    return np.unique(np.concatenate(kept))
