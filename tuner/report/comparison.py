"""Comparison of any trials with every point, by step, time or fraction of the horizon."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tuner.analysis import ranking
from tuner.core.curves import Chunk
from tuner.core.errors import NotFoundError, UsageError
from tuner.ledger import Reader, StudyRecord, TrialRecord
from tuner.report import markup
from tuner.report import page as pages
from tuner.report.charts import plot_builders, plotly_backend
from tuner.report.charts.plot import Axis, Line, Plot
from tuner.report.findings import read_curves
from tuner.report.markup import Cell
from tuner.report.page import Written

Alignment = Literal["step", "time", "fraction"]
AXES: Mapping[Alignment, str] = {
    "step": "step",
    "time": "seconds since the trial's first step",
    "fraction": "fraction of the horizon",
}
NAMED = 7
"""Up to this many curves have a colour each; more are coloured by outcome."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """A trial to compare, with its study and curve."""

    study: StudyRecord
    trial: TrialRecord
    curve: Chunk

    @property
    def label(self) -> str:
        """Its name in a legend."""
        return f"{self.study.title}:{self.trial.number}, {ranking.in_short(self.trial.params)}"


def choose(ledger: Reader, wanted: Sequence[str]) -> list[Chosen]:
    """Return the trials named as STUDY:TRIAL, where TRIAL is a number, a range, `best` or `all`.

    Each study and each curve is read once. Raise `UsageError` if a name has another form, and
    `NotFoundError` if there is no such study or trial.
    """
    names: dict[str, list[str]] = {}
    for one in wanted:
        name, colon, which = one.rpartition(":")
        if not colon or not re.fullmatch(r"\d+(-\d+)?|best|all", which):
            raise UsageError(
                f"expected STUDY:TRIAL, where TRIAL is a number, a range such as 0-9, `best` or "
                f"`all`, got {one!r}"
            )
        names.setdefault(name, []).append(which)
    return [one for name, which in names.items() for one in _of_study(ledger, name, which)]


def _of_study(ledger: Reader, name: str, wanted: Sequence[str]) -> list[Chosen]:
    study = ledger.study(name)
    by_number = {one.number: one for one in ledger.trials(study.id)}
    numbers: dict[int, None] = {}
    for which in wanted:
        if which == "all":
            numbers |= dict.fromkeys(n for n, one in by_number.items() if one.steps)
        elif which == "best":
            best = ledger.best(study)
            if best is None:
                raise NotFoundError(f"no trial of {name!r} has completed, so none is the best")
            numbers[best.number] = None
        else:
            first, _, last = which.partition("-")
            numbers |= dict.fromkeys(range(int(first), int(last or first) + 1))
    missing = [n for n in numbers if n not in by_number]
    if missing:
        known = f"0 to {max(by_number)}" if by_number else "none yet"
        raise NotFoundError(f"{name!r} has no trial {missing[0]}; its trials: {known}")
    curves = read_curves(ledger, [by_number[n] for n in numbers])
    return [
        Chosen(study=study, trial=by_number[n], curve=curves[n]) for n in numbers if n in curves
    ]


def lines(chosen: Sequence[Chosen], metric: str, by: Alignment) -> list[Line]:
    """Return each trial's aligned values of a metric. Raise `UsageError` if no trial has it."""
    found = []
    for one in chosen:
        curve = one.curve
        if metric in curve.columns:
            kept = curve.reported
            steps, times = np.arange(curve.first_step, curve.next_step)[kept], curve.times[kept]
            values = curve.columns[metric][kept]
        elif metric in curve.metrics:
            steps, times, values = curve.eval_steps, curve.eval_times, curve.metrics[metric]
        else:
            continue
        x = {
            "step": steps,
            "time": times - curve.times[:1].sum(),  # of the first step, if there is one
            "fraction": steps / one.study.horizon(one.trial.params),
        }[by]
        trial = one.trial
        found.append(Line(label=one.label, x=x, y=values, outcome=trial.state, trial=trial.number))
    if not found:
        known = {name for one in chosen for name in (*one.curve.columns, *one.curve.metrics)}
        names = ", ".join(sorted(known))
        raise UsageError(f"none of these trials has {metric!r}; they have: {names}")
    return found


def best_so_far(line: Line, sign: float) -> Line:
    """Return the best value up to each point; `sign` is -1 if higher is better."""
    part = line.finite()
    return replace(part, y=sign * np.minimum.accumulate(sign * part.y))


def write(chosen: Sequence[Chosen], metric: str, by: Alignment, folder: Path | None) -> Written:
    """Write the page of a comparison, with every point, and its PNG files. Raise `OutputError`."""
    measured = lines(chosen, metric, by)
    signs = {one.label: _sign(one, metric) for one in chosen}
    best = [best_so_far(line, signs[line.label]) for line in measured]
    plots = {"measured": _plot(measured, metric, by), "best": _plot(best, metric, by)}
    figures = {name: plotly_backend.figure(plot) for name, plot in plots.items()}
    figure: dict[str, Any] = figures["measured"] | {"of": "measured"}
    figure["data"] = [
        {**trace, "of": name} for name, one in figures.items() for trace in one["data"]
    ]
    titles = list(dict.fromkeys(one.study.title for one in chosen))
    switches = "".join(
        f'<button data-name="compare" data-of="{name}" aria-pressed="{str(first).lower()}">'
        f"{label}</button>"
        for name, label, first in (
            ("measured", "as measured", True),
            ("best", "best so far", False),
        )
    )
    log = markup.log_switch("compare", log=plots["measured"].y.log)
    about = f"{len(measured)} trials, every point; zoom in to see more of them."
    title = f"{metric} of {', '.join(titles)}"
    body = [
        f"<h1>{escape(title)}</h1>",
        markup.figure("compare", f"By {AXES[by]}", about, kind="tall", tools=switches + log),
        _table(chosen, metric, best),
    ]
    to = folder or Path("reports") / f"compare-{pages.folder_name(titles)}"
    text = markup.page(title, body, {"compare": figure})
    return pages.write(to / "compare.html", text, plots)


def _sign(one: Chosen, metric: str) -> float:
    study = one.study.spec.study
    return -1.0 if metric == study.metric and study.direction == "maximize" else 1.0


def _plot(measured: Sequence[Line], metric: str, by: Alignment) -> Plot:
    if len(measured) <= NAMED:
        plot = plot_builders.comparison(measured, title="", ylabel=metric)
    else:
        plot = plot_builders.loss_curves(measured, ylabel=metric)
    return replace(plot, x=Axis(title=AXES[by]))


def _table(chosen: Sequence[Chosen], metric: str, best: Sequence[Line]) -> str:
    lowest = {line.label: float(line.y[-1]) for line in best if len(line.y)}
    rows = []
    for one in chosen:
        value, rate = lowest.get(one.label), float((one.trial.params or {}).get("lr", np.nan))
        rows.append(
            [
                Cell(text=one.study.title),
                Cell(text=str(one.trial.number), number=one.trial.number),
                Cell(text=f"{rate:.3g}", number=rate),
                Cell(text=ranking.in_short(one.trial.params).partition(", ")[2]),
                Cell(text=str(one.trial.steps), number=one.trial.steps),
                Cell(text="" if value is None else f"{value:.4g}", number=value),
                Cell(text=one.trial.state),
                Cell(text=one.trial.reason or "", kind="why"),
            ]
        )
    head = ("study", "trial", "lr", "with", "steps", f"best {metric}", "outcome", "why")
    return f"<h2>Trials</h2>{markup.table(head, rows)}"
