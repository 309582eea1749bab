"""Paths of gradient descent on a function of one number, for the tutorial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tuner.report.charts.matplotlib_backend import grid, handle, styled
from tuner.report.charts.plot import BLUE, FAINT, INK, ORANGE, Key, Line, Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
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
    figure, panels = grid(rows, columns, (3.1 * columns, 2.5 * rows))
    visited = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    low, high = span or (float(visited.min()), float(visited.max()))
    margin = 0.0 if span else 0.1 * (high - low or 1.0)
    x = np.linspace(low - margin, high + margin, 400)
    for panel, line in zip(panels, lines, strict=False):
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
    for index, panel in enumerate(panels):
        panel.set_visible(index < len(lines))
        if index % columns == 0:
            panel.set_ylabel(formula)
        if index + columns >= len(lines):
            panel.set_xlabel("x")
            panel.tick_params(labelbottom=True)  # also above a missing panel
    handles = [
        handle(Key(label="start", look=Look(colour=INK, marker="o"))),
        handle(Key(label="steps", look=Look(colour=BLUE, dash="-", marker="."))),
        handle(Key(label="end", look=Look(colour=ORANGE, marker="D"))),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure
