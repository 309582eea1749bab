"""Functions that build plots of studies from curves and values, for every backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from tuner.core.outcome import COMPLETED, DIVERGED, FAILED
from tuner.report.charts.plot import (
    DASHES,
    DRAWN,
    INK,
    MARKERS,
    OUTCOME_STYLES,
    SERIES,
    VERDICT_STYLES,
    Axis,
    Key,
    Line,
    Look,
    Mark,
    Plot,
    Points,
    Series,
)

DECADES = 1.0
"""An axis is logarithmic if its positive values span at least this many powers of ten."""
FEW = 30
"""Up to this many steps are drawn as stairs; more would blur the line."""


def loss_curves(
    lines: Sequence[Line],
    *,
    best: int | None = None,
    title: str = "",
    xlabel: str = "step",
    ylabel: str = "loss",
    by: Literal["outcome", "verdict"] = "outcome",
) -> Plot:
    """Return a plot of many curves, coloured by outcome or verdict, with `best` (an index) on top.

    A curve ends before its first non-finite value, with a cross. The y axis ends a decade above the
    trials that did not diverge, so that a diverging loss does not flatten the other curves.
    """
    styles: Mapping[str, tuple[str, str, str]]
    styles = OUTCOME_STYLES if by == "outcome" else VERDICT_STYLES
    kinds = [getattr(line, by) for line in lines]
    alpha = 0.85 if len(lines) <= 8 else 0.55
    series: list[Series] = []
    named = {kind: f"{kind} ({kinds.count(kind)})" for kind in dict.fromkeys(kinds)}
    for index, (line, kind) in enumerate(zip(lines, kinds, strict=True)):
        if index != best:
            look = Look(colour=styles[kind][0], dash=styles[kind][1], width=1.1, alpha=alpha)
            series.extend(_curve(line, look, named[kind]))
    legend = []
    if best is not None:
        top = Look(colour=INK, dash="-", width=2.6)
        name = f"best: {lines[best].label}"
        series.extend(_curve(lines[best], top, name, in_front=True))
        legend.append(Key(label=name, look=top))
    ordered = sorted(named, key=list(styles).index) if by == "verdict" else list(named)
    for kind in ordered:
        others = kinds.count(kind) - (best is not None and kinds[best] == kind)
        if others:
            look = Look(colour=styles[kind][0], dash=styles[kind][1], width=1.8)
            legend.append(Key(label=named[kind], look=look))
    return Plot(
        title=title,
        x=Axis(title=xlabel),
        y=_height(ylabel, lines),
        series=series,
        legend=legend,
    )


def comparison(
    lines: Sequence[Line],
    *,
    title: str = "Effect of the learning rate on convergence",
    xlabel: str = "step",
    ylabel: str = "loss",
) -> Plot:
    """Return a plot of a few curves, each with its own colour, line style and label.

    A curve of a diverged or failed trial ends with a cross. A label includes the outcome of a trial
    that did not complete.
    """
    series: list[Series] = []
    legend = []
    for index, line in enumerate(lines):
        look = _look(index)
        name = line.label + ("" if line.outcome == COMPLETED else f" ({line.outcome})")
        series.extend(_curve(line, look, name))
        legend.append(Key(label=name, look=look))
    return Plot(
        title=title, x=Axis(title=xlabel), y=_height(ylabel, lines), series=series, legend=legend
    )


def value_by_rate(
    series: Sequence[Points],
    *,
    title: str = "",
    ylabel: str = "val_loss",
    limit: float | None = None,
    joined: bool = False,
    marks: Sequence[Mark] = (),
) -> Plot:
    """Return a plot of values by learning rate on a log axis, one series per schedule or optimizer.

    Trials without a finite value are crosses at the upper edge, which show the rates at which
    training breaks. `limit` marks the largest stable rate, and `marks` other rates or ranges.
    `joined` connects the points of a series, for grids in which only the rate differs.
    """
    drawn, legend = [], []
    for index, one in enumerate(series):
        colour, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
        known = np.isfinite(one.values)
        order = np.flatnonzero(known)[np.argsort(one.rates[known])]
        look = Look(colour=colour, marker=marker, dash="-" if joined else None, width=1.0)
        drawn.append(_places(one, order, one.values[order], one.label, look))
        legend.append(Key(label=one.label, look=Look(colour=colour, marker=marker)))
        if not known.all():
            lost = np.flatnonzero(~known)
            cross = Look(colour=colour, marker="x", alpha=0.85)
            name = f"{one.label}: no value"
            drawn.append(_places(one, lost, np.full(len(lost), 0.97), name, cross, at_edge=True))
    if any(one.at_edge for one in drawn):
        legend.append(Key(label="no value: diverged or failed", look=Look(colour=INK, marker="x")))
    marks = list(marks)
    if limit is not None:
        marks.append(Mark(label=f"stable limit {limit:.4g}", low=limit))
    finite = np.concatenate([one.values[np.isfinite(one.values)] for one in series] or [[]])
    return Plot(
        title=title,
        x=Axis(title="learning rate", log=True),
        y=Axis(title=ylabel, log=is_wide(finite)),
        series=drawn,
        legend=legend,
        marks=marks,
    )


def rates_as_applied(lines: Sequence[Line], *, title: str = "Schedules as applied") -> Plot:
    """Return a plot of the learning rates that the optimizer used, by step.

    The axis is logarithmic, from two decades below the lowest peak, if peaks differ by a decade.
    """
    peaks = np.array([line.y.max() for line in lines if len(line.y)])
    log = is_wide(peaks)
    height = Axis(title="learning rate", low=peaks.min() / 100 if log else 0.0, log=log)
    if log:
        height = replace(height, high=peaks.max() * 2)
    series = [
        Series(
            label=line.label,
            x=part.x,
            y=part.y,
            look=replace(_look(index), width=1.8),
            group=line.label,
            stairs=len(line.x) <= FEW,
        )
        for index, line in enumerate(lines)
        for part in (line.finite(),)
    ]
    return Plot(
        title=title,
        x=Axis(title="step"),
        y=height,
        series=series,
        legend=[Key(label=one.label, look=one.look) for one in series],
    )


def bands(
    lines: Sequence[Line],
    predicted: Sequence[tuple[np.ndarray, np.ndarray]],  # each: [point], [mean low high, point]
    *,
    title: str = "",
    ylabel: str = "loss",
) -> Plot:
    """Return a plot of curves so far, and of what is predicted for each with its interval."""
    series: list[Series] = []
    legend = []
    for index, (line, (steps, losses)) in enumerate(zip(lines, predicted, strict=True)):
        look = replace(_look(index), dash="-")
        series.extend(_curve(line, look, line.label))
        legend.append(Key(label=line.label, look=look))
        for kind, values in zip(("predicted", "lowest", "highest"), losses, strict=True):
            dash, width = ("--", 1.6) if kind == "predicted" else (":", 1.0)
            series.append(
                Series(
                    label=f"{line.label}, {kind}",
                    x=steps,
                    y=values,
                    look=replace(look, dash=dash, width=width),
                    group=line.label,
                )
            )
    every = [Line(label="", x=one.x, y=one.y) for one in series]
    return Plot(
        title=title, x=Axis(title="step"), y=_height(ylabel, every), series=series, legend=legend
    )


def bars(shares: Mapping[str, Mapping[str, float]], *, title: str = "", xlabel: str = "") -> Plot:
    """Return a stem plot of numbers, one row for each name; `shares` maps series, then names."""
    names = tuple(dict.fromkeys(name for own in shares.values() for name in own))[::-1]
    series, legend = [], []
    for index, (label, own) in enumerate(shares.items()):
        look = Look(colour=SERIES[index % len(SERIES)], dash="-", marker=MARKERS[index], width=3.0)
        offset = 0.12 * (index - (len(shares) - 1) / 2)
        stems = [(0.0, number, np.nan) for number in own.values()]
        heights = [(names.index(name) + offset,) * 2 + (np.nan,) for name in own]
        series.append(
            Series(
                label=label,
                x=np.array(stems).reshape(-1),
                y=np.array(heights).reshape(-1),
                look=look,
                group=label,
            )
        )
        legend.append(Key(label=label, look=look))
    return Plot(
        title=title,
        x=Axis(title=xlabel, low=0.0),
        y=Axis(title="", low=-0.6, high=len(names) - 0.4, names=names),
        series=series,
        legend=legend if len(legend) > 1 else (),
    )


# --- parts


def _look(index: int) -> Look:
    return Look(colour=SERIES[index % len(SERIES)], dash=DASHES[index % len(DASHES)])


def _curve(line: Line, look: Look, group: str, *, in_front: bool = False) -> Iterator[Series]:
    """Yield a curve up to its first non-finite value, and a cross at its end if it broke off."""
    part = line.finite()
    if not len(part.x):
        return
    trials = None if line.trial is None else np.full(len(part.x), line.trial)
    yield Series(
        label=line.label,
        x=part.x,
        y=part.y,
        look=look,
        group=group,
        in_front=in_front,
        trials=trials,
    )
    if line.outcome in {DIVERGED, FAILED}:
        cross = Look(colour=look.colour, marker="x", size=6.0)
        yield Series(label="", x=part.x[-1:], y=part.y[-1:], look=cross, group=group)


def _places(
    one: Points,
    chosen: np.ndarray,  # int64 [point]
    heights: np.ndarray,  # [point]
    label: str,
    look: Look,
    *,
    at_edge: bool = False,
) -> Series:
    return Series(
        label=label,
        x=one.rates[chosen],
        y=heights,
        look=look,
        group=label,
        at_edge=at_edge,
        trials=None if one.trials is None else one.trials[chosen],
    )


def _height(title: str, lines: Sequence[Line]) -> Axis:
    """Return the y axis: logarithmic if suitable, and not stretched by diverging losses."""
    parts = [line.finite().y for line in lines]
    calm = [y for y, line in zip(parts, lines, strict=True) if line.outcome != DIVERGED]
    values = np.concatenate(calm if any(len(y) for y in calm) else parts or [np.empty(0)])
    if not len(values):
        return Axis(title=title)
    low, high = float(values.min()), float(values.max())
    above = len(calm) < len(parts)
    if is_wide(values, share=0.5):
        # a log axis cannot show zero, and rounding noise is of no interest
        bottom = max(float(values[values > 0].min()), high * 1e-12)
        top = min(high * (10 if above else 2), DRAWN)
        return Axis(title=title, log=True, low=bottom / 2, high=top)
    room = 0.06 * min(high - low or abs(high) or 1.0, DRAWN)
    top = min(high + room * (3 if above else 1), DRAWN)
    return Axis(title=title, low=max(low - room, -DRAWN), high=top)


def is_wide(values: np.ndarray, share: float = 1.0) -> bool:
    """Return whether a log axis fits: no negative value, a `share` positive, decades apart."""
    positive = values[values > 0]
    if not len(positive) or (values < 0).any() or len(positive) < share * len(values):
        return False
    return bool(np.log10(positive.max() / positive.min()) >= DECADES)
