"""Tables of trials for a terminal, and a study's ranking."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from tuner.analysis import ranking
from tuner.analysis.verdicts import Verdict
from tuner.core.curves import Chunk
from tuner.core.outcome import CANCELLED, COMPLETED, DIVERGED, FAILED, PRUNED, RUNNING
from tuner.core.text import printable
from tuner.ledger import StudyRecord, TrialRecord

STYLES = {
    COMPLETED: "green",
    PRUNED: "yellow",
    DIVERGED: "red",
    FAILED: "magenta",
    CANCELLED: "magenta",
    RUNNING: "cyan",
}
STOPPED = (PRUNED, DIVERGED, FAILED, CANCELLED)
ROWS = 10
"""Trials of a ranking that are shown."""
WHY, WITH, VERDICT, TRAINING_LOSS = "why", "with", "verdict", "training loss"
"""The columns that are dropped in a narrow terminal, in this order."""
WHY_WIDTH = 30
"""Minimum width of the column of reasons; a narrower one would be useless."""
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH, NARROW_WIDTH = 24, 13  # characters of a curve
WIDE = 100
"""Width of a terminal from which on curves have `WIDTH` characters."""
BROKEN = "×"  # a non-finite part of a curve


def sparkline(chunk: Chunk, width: int = WIDTH) -> str:
    """Return the training loss as one line of text, on a log scale if it is positive."""
    losses = chunk.columns.get("train_loss", np.empty(0))[chunk.reported]
    if not len(losses):
        return ""
    pieces = np.array_split(losses, min(width, len(losses)))
    means = np.array([piece.mean() for piece in pieces])
    finite = np.isfinite(means)
    if not finite.any():
        return BROKEN * len(means)
    heights = np.full(len(means), np.nan)
    positive = (means[finite] > 0).all()
    heights[finite] = np.log(means[finite]) if positive else means[finite]
    low, high = np.nanmin(heights), np.nanmax(heights)
    span = high - low if high > low else 1.0
    scale = (len(BLOCKS) - 1) / span
    return "".join(
        BLOCKS[round((height - low) * scale)] if math.isfinite(height) else BROKEN
        for height in heights
    )


def trial_row(
    study: StudyRecord,
    trial: TrialRecord,
    curve: Chunk,
    verdict: Verdict | None = None,
    width: int = WIDTH,
) -> list[RenderableType]:
    """Return a trial's cells: number, parameters, steps, curve, value, state, verdict and why."""
    params = trial.params or {}
    rate = f"{float(params['lr']):.3g}" if params else ""
    others = ", ".join(ranking.others_in_short(params))
    metric = curve.metrics.get(study.spec.study.metric, np.empty(0))
    value = trial.value if trial.value is not None else (metric[-1] if len(metric) else None)
    # a running trial's record is as old as its last report; its curve is newer
    steps = f"{max(trial.steps, curve.next_step)}/{study.horizon(trial.params)}"
    return [
        str(trial.number),
        rate,
        Text(printable(str(params.get("schedule", "")))),
        Text(printable(str(params.get("optimizer", "")))),
        *([Text(printable(others))] if study.spec.space.others else []),
        steps,
        sparkline(curve, width),
        "" if value is None else f"{value:.4g}",
        Text(f"{trial.state}, imported" if trial.imported else trial.state, STYLES[trial.state]),
        str(verdict or ""),
        Text(printable(trial.reason or "")),
    ]


def trial_table(study: StudyRecord, title: str | None = None) -> Table:
    """Return an empty table for the cells of `trial_row`."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, expand=False)
    fixed: dict[str, Any] = {"no_wrap": True}
    table.add_column("trial", justify="right", style="bold", **fixed)
    table.add_column("lr", justify="right", **fixed)
    table.add_column("schedule", **fixed)
    table.add_column("optimizer", **fixed)
    if study.spec.space.others:
        table.add_column(WITH, **fixed)
    table.add_column("steps", justify="right", **fixed)
    table.add_column(TRAINING_LOSS, **fixed)
    table.add_column(Text(printable(study.spec.study.metric)), justify="right", **fixed)
    table.add_column("outcome", **fixed)
    table.add_column(VERDICT, **fixed)
    table.add_column(WHY)  # the only column that wraps in a narrow terminal
    return table


def fit_to_console(table: Table, console: Console) -> Table:
    """Return a trial table without its least important columns, so that the others fit uncut."""
    widths = {index: _width(column, console) for index, column in enumerate(table.columns)}
    named = {str(column.header): index for index, column in enumerate(table.columns)}
    why, verdict = named[WHY], named[VERDICT]
    widths[why] = min(widths[why], WHY_WIDTH)
    narrow = sum(widths.values()) + 2 * (len(widths) - 1) > console.width
    gap = 1 if narrow else 2
    for index in [named[name] for name in (WHY, WITH, VERDICT, TRAINING_LOSS) if name in named]:
        if sum(widths.values()) + gap * (len(widths) - 1) > console.width:
            del widths[index]
    if verdict in widths and not any(table.columns[verdict].cells):
        del widths[verdict]
    columns = [table.columns[index] for index in widths]
    fresh = Table(
        *(column.copy() for column in columns),
        title=table.title,
        title_justify=table.title_justify,
        box=None,
        pad_edge=False,
        collapse_padding=narrow,
    )
    for row in zip(*(column.cells for column in columns), strict=True):
        fresh.add_row(*row)
    return fresh


def curve_width(console: Console) -> int:
    """Return the number of characters for a curve."""
    return WIDTH if console.width >= WIDE else NARROW_WIDTH


def _width(column: Column, console: Console) -> int:
    unlimited = console.options.update(max_width=sys.maxsize)
    cells = (column.header, *column.cells)
    return max(Measurement.get(console, unlimited, cell).maximum for cell in cells)


def ranking_table(
    study: StudyRecord,
    trials: Sequence[TrialRecord],
    curves: Mapping[int, Chunk],
    verdicts: Mapping[int, Verdict] | None = None,
    rows: int = ROWS,
    width: int = WIDTH,
    count: int | None = None,
) -> Table:
    """Return a table of the best trials, best first; `curves` and `verdicts` by trial number.

    `count` is the number of all trials, if these are only the first ones.
    """
    shown = ranking.ranked(study, trials)[:rows]
    count = len(trials) if count is None else count
    more = f", the first {rows} of {count}" if count > rows else ""
    table = trial_table(study, f"Ranking{more}")
    if ranking.has_better_below(study, shown):
        table.caption = ranking.WHY_BELOW
        table.caption_justify = "left"
    for trial in shown:
        verdict = (verdicts or {}).get(trial.number)
        table.add_row(*trial_row(study, trial, curves[trial.number], verdict, width))
    return table


def stopped_trials(first: Mapping[str, Sequence[TrialRecord]], counts: Mapping[str, int]) -> Group:
    """Return the numbers of stopped trials by outcome, each with the first of them."""
    lines: list[RenderableType] = []
    for kind in STOPPED:
        if counts[kind]:
            lines.append(Text(f"{counts[kind]} {kind}", style=STYLES[kind]))
            for trial in first[kind]:
                short = ranking.in_short(trial.params)
                lines.append(Text(printable(f"  trial {trial.number} ({short}): {trial.reason}")))
            if counts[kind] > len(first[kind]) > 0:
                lines.append(Text(f"  … and {counts[kind] - len(first[kind])} more"))
    return Group(*lines)
