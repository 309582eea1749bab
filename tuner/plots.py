"""The plot layer of report, compare and docs: plain data in, a figure out; only `save` writes.

Colours are Okabe and Ito's, which people with any colour vision can tell apart ("Color Universal
Design", 2008); where a colour says something, a line style, a marker or a label says it too.
matplotlib is imported in the functions, since it takes most of a second, and its pyplot never,
since that keeps figures alive and wants a display.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from tuner.outcome import CANCELLED, COMPLETED, DIVERGED, FAILED, PRUNED, RUNNING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Asked = ParamSpec("Asked")
Drawn = TypeVar("Drawn")

BLUE, ORANGE, GREEN, PINK = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
SKY, AMBER, INK, FAINT = "#56b4e9", "#e69f00", "#222222", "#8a8a8a"

SERIES = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY, INK)
"""Colours of series that differ in kind only."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))

OUTCOME_STYLES: Mapping[str, tuple[str, Any, str]] = {
    COMPLETED: (BLUE, "-", "o"),
    PRUNED: (FAINT, "-", "."),
    DIVERGED: (ORANGE, "--", "x"),
    FAILED: (PINK, ":", "v"),
    CANCELLED: (PINK, ":", "^"),
    RUNNING: (SKY, "-.", "."),
}
"""Colour, line style and marker of each outcome."""

DECADES = 1.0
"""A log axis where the positive values span at least so many powers of ten."""

POINTS = 1000
"""A line is drawn with about as many points at most; a picture has fewer pixels than that."""

FEW = 30
"""So many steps at most are drawn as stairs; more would only blur the line."""

SIZE = (7.0, 4.2)  # inches
RESOLUTION = 110  # dots an inch

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "tuner",  # the same picture is the same file
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """One curve: what it is called, and its points."""

    label: str
    x: np.ndarray  # [point]: steps, as a rule
    y: np.ndarray  # [point]; may hold nan and inf
    outcome: str = COMPLETED


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """One series of trials: a value for each learning rate."""

    label: str
    rates: np.ndarray  # [trial]
    values: np.ndarray  # [trial]; nan or inf where there is none


def _styled(draw: Callable[Asked, Drawn]) -> Callable[Asked, Drawn]:
    """Let a function draw in our style, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def drawn(*args: Asked.args, **kwargs: Asked.kwargs) -> Drawn:
        import matplotlib as mpl  # noqa: PLC0415

        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


@_styled
def loss_curves(
    lines: Sequence[Line], *, best: int | None = None, title: str = "", ylabel: str = "loss"
) -> Figure:
    """Draw the curves of many trials, coloured by outcome, with the one at index `best` on top.

    A curve ends before its first value that is not finite, with a cross there. The vertical axis
    ends a decade above where the trials that did not diverge have been, so an explosion leaves
    the picture and not the others in it.
    """
    figure, axes = _started(title, "step", ylabel)
    shown: dict[str, int] = {}
    for index, line in enumerate(lines):
        shown[line.outcome] = shown.get(line.outcome, 0) + 1
        if index != best:
            colour, dashes, _ = OUTCOME_STYLES[line.outcome]
            alpha = 0.85 if len(lines) <= 8 else 0.45
            _draw(axes, line, color=colour, linestyle=dashes, alpha=alpha, linewidth=1.1)
    if best is not None:
        top = lines[best]
        _draw(axes, top, color=INK, linestyle="-", linewidth=2.6, zorder=5)
    _scale(axes, lines)
    handles = [
        _handle(f"{kind} ({count})", *OUTCOME_STYLES[kind][:2])
        for kind, count in shown.items()
        if count - (best is not None and lines[best].outcome == kind)
    ]
    if best is not None:
        handles.insert(0, _handle(f"best: {lines[best].label}", INK, "-", 2.6))
    _legend(axes, handles)
    return figure


@_styled
def comparison(
    lines: Sequence[Line],
    *,
    title: str = "Effect of the learning rate on convergence",
    ylabel: str = "loss",
) -> Figure:
    """Draw a few curves, each with a colour, a line style and a label of its own.

    A curve that ends early or is not finite ends with a cross; its label says its outcome unless
    it completed.
    """
    figure, axes = _started(title, "step", ylabel)
    handles = []
    for index, line in enumerate(lines):
        look = {"color": SERIES[index % len(SERIES)], "linestyle": DASHES[index % len(DASHES)]}
        _draw(axes, line, **look)
        end = "" if line.outcome == COMPLETED else f" ({line.outcome})"
        handles.append(_handle(line.label + end, look["color"], look["linestyle"]))
    _scale(axes, lines)
    _legend(axes, handles)
    return figure


@_styled
def value_by_rate(
    series: Sequence[Points],
    *,
    title: str = "",
    ylabel: str = "val_loss",
    limit: float | None = None,
    joined: bool = False,
) -> Figure:
    """Draw values against learning rates on a log axis, one series a schedule or optimiser.

    Trials without a finite value stand as crosses at the upper edge: where they are says where
    training breaks. `limit` marks a rate, as the largest stable one. `joined` draws lines between
    the points of a series, for grids in which nothing else differs.
    """
    figure, axes = _started(title, "learning rate", ylabel)
    axes.set_xscale("log")
    finite = np.concatenate([one.values[np.isfinite(one.values)] for one in series] or [[]])
    handles = []
    for index, one in enumerate(series):
        colour, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
        known = np.isfinite(one.values)
        order = np.argsort(one.rates[known])
        axes.plot(
            one.rates[known][order],
            one.values[known][order],
            color=colour,
            marker=marker,
            markersize=5,
            linestyle="-" if joined else "none",
            linewidth=1.0,
            alpha=0.85,
            label=one.label,
        )
        handles.append(_handle(one.label, colour, "none", marker=marker))
        if not known.all():
            axes.plot(
                one.rates[~known],
                np.full((~known).sum(), 0.97),
                color=colour,
                marker="x",
                linestyle="none",
                transform=axes.get_xaxis_transform(),
                label=f"{one.label}: no value",
            )
    if any(not np.isfinite(one.values).all() for one in series):
        handles.append(_handle("no value: diverged or failed", INK, "none", marker="x"))
    if _is_wide(finite):
        _logarithmic(axes, finite[finite > 0])
    if limit is not None:
        axes.axvline(limit, color=INK, linestyle=":", linewidth=1.2)
        handles.append(_handle(f"stable limit {limit:.4g}", INK, ":"))
    _legend(axes, handles)
    return figure


@_styled
def rates_as_applied(lines: Sequence[Line], *, title: str = "Schedules as applied") -> Figure:
    """Draw learning rates against steps: what the optimiser was given, not what was meant."""
    figure, axes = _started(title, "step", "learning rate")
    handles = []
    for index, line in enumerate(lines):
        look = {"color": SERIES[index % len(SERIES)], "linestyle": DASHES[index % len(DASHES)]}
        _draw(
            axes,
            line,
            **look,
            linewidth=1.8,
            drawstyle="steps-post" if len(line.x) <= FEW else "default",
        )
        handles.append(_handle(line.label, look["color"], look["linestyle"]))
    axes.set_ylim(bottom=0)
    _legend(axes, handles)
    return figure


@_styled
def path_on_function(
    function: Callable[[np.ndarray], np.ndarray],
    lines: Sequence[Line],
    *,
    title: str = "",
    formula: str = "f(x)",
    span: tuple[float, float] | None = None,
) -> Figure:
    """Draw paths over a function of one number, a panel a path; a line's `y` is x at each step.

    Panels share their axes. `span` is what part of x they show; all of the paths unless given.
    """
    columns, rows = min(3, len(lines)), -(-len(lines) // 3)
    figure, grid = _grid(rows, columns, (3.1 * columns, 2.5 * rows))
    visited = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    low, high = span or (float(visited.min()), float(visited.max()))
    margin = 0.0 if span else 0.1 * (high - low or 1.0)
    x = np.linspace(low - margin, high + margin, 400)
    for panel, line in zip(grid, lines, strict=False):
        path = line.y[np.isfinite(line.y)]
        panel.plot(x, function(x), color=FAINT, linewidth=1.2, label=formula)
        panel.plot(
            path, function(path), color=BLUE, marker="o", markersize=3, linewidth=0.8, label="path"
        )
        panel.plot(path[:1], function(path[:1]), color=INK, marker="o", label="start")
        panel.plot(
            path[-1:], function(path[-1:]), color=ORANGE, marker="D", label="end", linestyle="none"
        )
        panel.set_xlim(x[0], x[-1])
        heights, room = function(x), 0.08 * float(np.ptp(function(x)))
        panel.set_ylim(float(heights.min()) - room, float(heights.max()) + room)
        panel.set_title(line.label)
    for index, panel in enumerate(grid):
        panel.set_visible(index < len(lines))
        if index % columns == 0:
            panel.set_ylabel(formula)
        if index + columns >= len(lines):
            panel.set_xlabel("x")
            panel.tick_params(labelbottom=True)  # also above a missing panel
    handles = [
        _handle("start", INK, "none", marker="o"),
        _handle("steps", BLUE, "-", marker="."),
        _handle("end", ORANGE, "none", marker="D"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


@_styled
def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the name's ending; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, dpi=RESOLUTION, metadata=metadata)


# --- parts


def _started(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Begin a figure of one panel."""
    figure, (axes,) = _grid(1, 1, SIZE)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def _grid(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure as MadeFigure  # noqa: PLC0415

    figure = MadeFigure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    return figure, list(panels.flat)


def _draw(axes: Axes, line: Line, **look: Any) -> None:
    """Draw a curve up to its first value that is not finite, and a cross where it broke off."""
    x, y = _finite_part(line)
    if not len(x):
        return
    every = max(1, len(x) // POINTS)
    kept = np.unique(np.append(np.arange(0, len(x), every), len(x) - 1))
    axes.plot(x[kept], y[kept], label=line.label, **look)
    if line.outcome in {DIVERGED, FAILED}:
        axes.plot(x[-1:], y[-1:], color=look["color"], marker="x", linestyle="none")


def _finite_part(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Give the points before the first that is not finite."""
    broken = np.flatnonzero(~np.isfinite(line.y))
    end = int(broken[0]) if len(broken) else len(line.y)
    return line.x[:end], line.y[:end]


def _scale(axes: Axes, lines: Sequence[Line]) -> None:
    """Choose a log axis where it fits, and keep explosions from flattening the rest."""
    parts = [_finite_part(line)[1] for line in lines]
    calm = [y for y, line in zip(parts, lines, strict=True) if line.outcome != DIVERGED]
    values = np.concatenate(calm if any(len(y) for y in calm) else parts or [np.empty(0)])
    if not len(values):
        return
    low, high = float(values.min()), float(values.max())
    if _is_wide(values, share=0.5):
        positive = values[values > 0]
        # an exact zero has no place on a log axis, and rounding noise none of interest
        bottom = max(float(positive.min()), high * 1e-12)
        _logarithmic(axes, positive)
        axes.set_ylim(bottom / 2, high * (10 if len(calm) < len(parts) else 2))
    else:
        room = 0.06 * (high - low or abs(high) or 1.0)
        axes.set_ylim(low - room, high + room * (3 if len(calm) < len(parts) else 1))


def _logarithmic(axes: Axes, values: np.ndarray) -> None:
    """Make the vertical axis logarithmic; numbers within a few decades are written out."""
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    axes.set_yscale("log", nonpositive="clip")
    if values.min() > 1e-3 and values.max() < 1e3:
        axes.yaxis.set_major_formatter("{x:g}")
        if values.max() / values.min() < 30:
            axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
            axes.yaxis.set_minor_formatter("{x:g}")


def _is_wide(values: np.ndarray, share: float = 1.0) -> bool:
    """Tell whether a log axis fits: nothing negative, `share` above zero, and decades apart."""
    positive = values[values > 0]
    if not len(positive) or (values < 0).any() or len(positive) < share * len(values):
        return False
    return bool(np.log10(positive.max() / positive.min()) >= DECADES)


def _handle(
    label: str, colour: str, dashes: Any, width: float = 1.8, marker: str | None = None
) -> Any:
    from matplotlib.lines import Line2D  # noqa: PLC0415

    return Line2D(
        [], [], color=colour, linestyle=dashes, linewidth=width, marker=marker, label=label
    )


def _legend(axes: Axes, handles: Sequence[Any]) -> None:
    """Put the legend beside the axes, where it hides nothing."""
    if handles:
        axes.figure.legend(
            handles=list(handles), loc="outside lower center", ncols=min(3, len(handles))
        )
