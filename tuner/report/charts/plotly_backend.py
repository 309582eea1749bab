"""Plots as JSON for plotly.js in a page, without plotly's Python classes.

Numbers are base64 of float32 or int32 (plotly's `bdata`), a quarter of their size as text. Colours
are those of the light theme; the page maps each to its dark one.
"""

from __future__ import annotations

import base64
import functools
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tuner.report.charts.plot import INK, SKY, Axis, Mark, Plot, Series, thinned

DARK: Mapping[str, str] = {
    "#0072b2": "#4ea8e6",
    "#d55e00": "#ff8a3d",
    "#009e73": "#2fc79a",
    "#cc79a7": "#e39cc5",
    "#222222": "#ececec",
    "#8a8a8a": "#9a9a9a",
}
"""Dark-theme colours by light-theme colour; others are the same in both."""
SYMBOLS = {
    "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down",
    "P": "cross", "X": "x", "x": "x-thin", ".": "circle",
}  # fmt: skip
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
LARGEST = 3e38
"""The largest float32, about."""


@functools.cache
def library() -> str:
    """Return the source of plotly.js."""
    from plotly.offline import get_plotlyjs  # noqa: PLC0415

    return str(get_plotlyjs())


def figure(plot: Plot, *, points: int | None = None) -> dict[str, Any]:
    """Return a plot as a plotly figure; with `points`, about that many points in all at most.

    Series of a group with the same look become one trace with gaps, since plotly takes a
    millisecond for each trace. Without `points`, the figure has every point, and the page thins
    them to draw.
    """
    lines = [one for one in plot.series if one.look.dash]
    each = None if points is None else max(16, points // max(1, len(lines)))
    groups: dict[tuple[Any, ...], list[Series]] = {}
    for one in plot.series:
        merged = one.group if points is not None and not one.stairs else id(one)
        key = (merged, one.look, one.at_edge, one.in_front)
        groups.setdefault(key, []).append(one)
    named: set[str] = set()
    traces = []
    shown = {key.label for key in plot.legend}
    for members in sorted(groups.values(), key=lambda some: some[0].in_front):
        group = members[0].group
        in_legend = group in shown and group not in named
        named.add(group)
        traces.append(_trace(members, each, in_legend=in_legend))
    return {"data": traces, "layout": _layout(plot), "full": points is None}


def _trace(members: Sequence[Series], points: int | None, *, in_legend: bool) -> dict[str, Any]:
    one, look = members[0], members[0].look
    parts = []
    for member in members:
        kept = np.arange(len(member.y))
        if points is not None and look.dash:
            kept = thinned(member.y, points)
        trials = member.trials if member.trials is not None else np.full(len(member.x), -1)
        parts.append((member.x[kept], member.y[kept], trials[kept]))
    x, y, trials = (_with_gaps([part[k] for part in parts]) for k in range(3))
    trial = "trial %{customdata}<br>" if one.trials is not None else ""
    label = html.escape(one.label if len(members) == 1 and one.label else one.group)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "+".join(["lines"] * bool(look.dash) + ["markers"] * bool(look.marker)),
        "name": html.escape(one.group or one.label),
        "legendgroup": html.escape(one.group or one.label),
        "showlegend": in_legend,
        "x": packed(x),
        "y": packed(y),
        "opacity": look.alpha,
        "line": {
            "color": look.colour,
            "width": look.width,
            "dash": DASHES.get(look.dash or "-") or _lengths(look.dash or "-"),
            "shape": "hv" if one.stairs else "linear",
        },
        "hovertemplate": f"{trial}%{{x:.6~g}}: %{{y:.5~g}}<extra>{label}</extra>",
    }
    if look.marker:
        symbol = SYMBOLS[look.marker]
        trace["marker"] = {"color": look.colour, "size": look.size + 2, "symbol": symbol}
        if symbol.endswith("thin"):
            trace["marker"]["line"] = {"color": look.colour, "width": 2}
    if one.trials is not None:
        trace["customdata"] = packed(np.nan_to_num(trials, nan=-1).astype(np.int32))
    if one.at_edge:
        trace["yaxis"] = "y2"
    return trace


def _with_gaps(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the concatenation of arrays, with a nan between each two."""
    pieces = [piece for part in parts for piece in (part, [np.nan])][:-1]
    return np.concatenate(pieces) if pieces else np.empty(0)


def packed(values: np.ndarray) -> dict[str, Any]:
    """Return an array in plotly.js's base64 form; infinities become gaps."""
    if values.dtype.kind in "iu":
        kind, array = "i4", values.astype("<i4")
    else:
        finite = values[np.isfinite(values)]
        small = np.abs(finite).max(initial=0.0) < LARGEST
        kind = "f4" if small and not _needs_doubles(finite) else "f8"
        array = np.where(np.isfinite(values), values, np.nan).astype(f"<{kind}")
    return {"dtype": kind, "bdata": base64.b64encode(array.tobytes()).decode("ascii")}


def _needs_doubles(values: np.ndarray) -> bool:
    """Return whether float32 would lose visible detail: tiny numbers, or close large ones."""
    sizes = np.abs(values[values != 0])
    if not len(sizes):
        return False
    spread = float(np.ptp(values))
    return bool(sizes.min() < 1e-37 or 0 < spread < 1e-4 * sizes.max())


def _lengths(dash: str) -> str:
    """Return lengths of lines and gaps in pixels, from line widths."""
    return ",".join(f"{2 * int(length)}px" for length in dash.split(","))


def _layout(plot: Plot) -> dict[str, Any]:
    shapes, notes = [], []
    for mark in plot.marks:
        shape, note = _mark(mark)
        shapes.append(shape)
        notes.append(note)
    return {
        "xaxis": _axis(plot.x),
        "yaxis": _axis(plot.y),
        "yaxis2": {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
        "shapes": shapes,
        "annotations": notes,
    }


def _axis(axis: Axis) -> dict[str, Any]:
    made: dict[str, Any] = {
        "title": {"text": html.escape(axis.title)},
        "type": "log" if axis.log else "linear",
    }
    if axis.names:
        rows = list(range(len(axis.names)))
        made |= {"tickvals": rows, "showgrid": False, "zeroline": False, "automargin": True}
        made["ticktext"] = [html.escape(name) for name in axis.names]
    if axis.low is not None and axis.high is not None:
        made["range"] = [float(_scaled(axis, end)) for end in (axis.low, axis.high)]
    elif axis.low is not None:
        made["rangemode"] = "tozero"
    return made


def _scaled(axis: Axis, value: float) -> float:
    return float(np.log10(value)) if axis.log else value


def _mark(mark: Mark) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the shape of a vertical line or interval, and the annotation with its label."""
    high = mark.low if mark.high is None else mark.high
    shape: dict[str, Any] = {"xref": "x", "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    if mark.high is None:
        shape |= {"type": "line", "line": {"color": INK, "width": 1.2, "dash": "dot"}}
    else:
        shape |= {"type": "rect", "fillcolor": SKY, "opacity": 0.2, "line": {"width": 0}}
    shape |= {"x0": mark.low, "x1": high}
    note = {
        "x": float(np.log10(np.sqrt(mark.low * high))),  # plotly's coordinate on a log axis
        "xref": "x",
        "y": 1.0,
        "yref": "paper",
        "yanchor": "top",
        "showarrow": False,
        "text": html.escape(mark.label),
    }
    return shape, note
