"""Plots drawn by matplotlib, as PNG and SVG files.

matplotlib is imported inside functions, since it takes most of a second. pyplot is never imported:
it keeps figures alive and needs a display.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from tuner.report.charts.plot import (
    INK,
    POINTS,
    SKY,
    Axis,
    Key,
    Look,
    Mark,
    Plot,
    Series,
    thinned,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Params = ParamSpec("Params")
Result = TypeVar("Result")

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
    "svg.hashsalt": "tuner",  # the same plot gives the same bytes
}


def styled(draw: Callable[Params, Result]) -> Callable[Params, Result]:
    """Decorate a function so that it draws in our style; restore matplotlib's settings after it."""

    @functools.wraps(draw)
    def drawn(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        import matplotlib as mpl  # noqa: PLC0415

        with mpl.rc_context(_STYLE), warnings.catch_warnings():
            # names may contain characters missing from the font; they are drawn as boxes
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
            # all points may be at one place; the axis is expanded
            warnings.filterwarnings("ignore", "Attempting to set identical low", UserWarning)
            return draw(*args, **kwargs)

    return drawn


@styled
def draw(plot: Plot) -> Figure:
    """Return a figure of a plot; long series are thinned to visible points."""
    figure, (axes,) = grid(1, 1, SIZE)
    titles = {"title": plot.title, "xlabel": plot.x.title, "ylabel": plot.y.title}
    axes.set(**{name: plain(text) for name, text in titles.items()})
    if plot.x.log:
        axes.set_xscale("log")
    for one in plot.series:
        _draw(axes, one)
    _set_height(axes, plot)
    handles = [handle(key) for key in plot.legend]
    handles.extend([_mark(axes, mark) for mark in plot.marks])
    if handles:
        columns = min(3, len(handles))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


@styled
def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by suffix; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, dpi=RESOLUTION, metadata=metadata)


def grid(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, which share their axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure as MadeFigure  # noqa: PLC0415

    figure = MadeFigure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    return figure, list(panels.flat)


def handle(key: Key) -> Any:
    """Return the legend entry of a key."""
    from matplotlib.lines import Line2D  # noqa: PLC0415

    return Line2D([], [], label=plain(key.label), **_look(key.look))


def plain(text: str) -> str:
    """Escape dollar signs: names are not formulas."""
    return text.replace("$", r"\$")


def _look(look: Look) -> dict[str, Any]:
    dash: Any = look.dash or "none"
    if look.dash is not None and look.dash[0].isdigit():
        dash = (0, tuple(map(int, look.dash.split(","))))
    return {
        "color": look.colour,
        "linestyle": dash,
        "linewidth": look.width,
        "marker": look.marker,
        "markersize": look.size,
        "alpha": look.alpha,
    }


def _draw(axes: Axes, one: Series) -> None:
    kept = thinned(one.y, POINTS) if one.look.dash else np.arange(len(one.x))
    placed: dict[str, Any] = {"transform": axes.get_xaxis_transform()} if one.at_edge else {}
    axes.plot(
        one.x[kept],
        one.y[kept],
        label=one.label or "_cross",
        drawstyle="steps-post" if one.stairs else "default",
        zorder=5 if one.in_front else 2,
        **_look(one.look),
        **placed,
    )


def _mark(axes: Axes, mark: Mark) -> Any:
    if mark.high is None:
        axes.axvline(mark.low, color=INK, linestyle=":", linewidth=1.2)
        return handle(Key(label=mark.label, look=Look(colour=INK, dash=":", width=1.8)))
    axes.axvspan(mark.low, mark.high, color=SKY, alpha=0.2, linewidth=0)
    return handle(Key(label=mark.label, look=Look(colour=SKY, dash="-", width=6.0, alpha=0.4)))


def _set_height(axes: Axes, plot: Plot) -> None:
    """Scale the y axis; numbers within a few decades are written without exponents."""
    height: Axis = plot.y
    if height.names:
        axes.set_yticks(range(len(height.names)), list(map(plain, height.names)))
        axes.grid(visible=False, axis="y")
    if height.log:
        from matplotlib.ticker import LogLocator  # noqa: PLC0415

        axes.set_yscale("log", nonpositive="clip")
        values = np.concatenate([one.y[one.y > 0] for one in plot.series if not one.at_edge])
        low, high = values.min(), values.max()
        if height.high is not None:
            high = min(high, height.high)
        if low > 1e-3 and high < 1e3:
            axes.yaxis.set_major_formatter("{x:g}")
            if high / low < 30:
                axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
                axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_ylim(height.low, height.high)
    if plot.x.low is not None:
        axes.set_xlim(left=plot.x.low)
