"""The charts of a report, made from findings, in the order of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from tuner.analysis import ranking
from tuner.analysis.verdicts import DIVERGING, GOOD_RATE, TOO_HIGH, TOO_LOW
from tuner.core.curves import Chunk
from tuner.core.outcome import COMPLETED, DIVERGED, KINDS, PRUNED
from tuner.ledger import TrialRecord
from tuner.report.charts import front_chart, optuna_plots, plot_builders, plotly_backend
from tuner.report.charts.plot import NO_VERDICT, Line, Mark, Plot, Points
from tuner.report.findings import Findings

PAGE_POINTS = 60_000
"""Points of a chart in a page: more than a screen shows, and few enough to be drawn at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Chart:
    """A chart of a report: a plot of ours, or a figure that Optuna made."""

    name: str  # of its element in the page, and of its PNG file
    title: str
    text: str  # how to read it
    plot: Plot | None = None  # None: a figure of Optuna, which is drawn in the page only
    optuna: Mapping[str, Any] | None = None
    shape: Literal["", "low", "wide"] = ""
    log_switch: bool = False  # a button switches the y axis between logarithmic and linear

    def in_page(self) -> Mapping[str, Any]:
        """Return the figure that plotly.js draws."""
        if self.plot is not None:
            return plotly_backend.figure(self.plot, points=PAGE_POINTS)
        assert self.optuna is not None, "a chart has a plot or a figure"
        return self.optuna


def of_study(found: Findings) -> list[Chart]:
    """Return the charts of one study."""
    study = optuna_plots.in_memory(found.study, found.trials)
    charts = [
        _every_trial(found),
        _convergence(found),
        _value_by_rate(found, _limits(found)),
        _schedules(found),
        _importance(optuna_plots.importances(study)),
        _steps(found),
        *_search(found),
        _front(found),
        *_of_optuna(optuna_plots.plots(study)),
    ]
    return [one for one in charts if one is not None]


def of_studies(studies: Sequence[Findings]) -> tuple[list[Chart], list[list[Chart]]]:
    """Return the charts that compare several studies, and for each study its own charts."""
    shared = [one for one in (_best_of_each(studies), _values_of_all(studies)) if one is not None]
    own = [
        [
            replace(one, name=f"{one.name}{index}")
            for one in (_every_trial(found), _value_by_rate(found))
            if one is not None
        ]
        for index, found in enumerate(studies)
    ]
    return shared, own


# --- charts of one study


def _every_trial(found: Findings) -> Chart | None:
    lines = [loss_line(found, one) for one in found.trials if one.number in found.curves]
    if not lines:
        return None
    best = next((n for n, one in enumerate(lines) if _is_best(found, one)), None)
    return Chart(
        name="curves",
        title="Every trial",
        text="Training loss of every trial at every step; a cross marks where a curve broke off.",
        plot=plot_builders.loss_curves(lines, best=best, ylabel="training loss", by="verdict"),
        log_switch=True,
    )


def _convergence(found: Findings) -> Chart | None:
    lines = representatives(found)
    if not lines:
        return None
    return Chart(
        name="convergence",
        title="Effect of the learning rate on convergence",
        text="One trial of each verdict, as in textbooks.",
        plot=plot_builders.comparison(lines, title="", ylabel="training loss"),
    )


def _value_by_rate(found: Findings, marks: Sequence[Mark] = ()) -> Chart:
    metric = found.study.spec.study.metric
    return Chart(
        name="values",
        title="Value by learning rate",
        text=f"Last {metric} of every trial; a cross at the upper edge is a trial without a value.",
        plot=plot_builders.value_by_rate(by_schedule(found), ylabel=metric, marks=marks),
        log_switch=True,
    )


def _limits(found: Findings) -> list[Mark]:
    """Return a mark where a probe bracketed each optimizer's largest stable rate."""
    return [
        Mark(label=f"probe: {name} breaks here", low=low, high=high)
        for name, (low, high) in found.stable_limits.items()
    ]


def _schedules(found: Findings) -> Chart | None:
    lines = as_applied(found)
    if not lines:
        return None
    return Chart(
        name="schedules",
        title="Schedules as applied",
        text="The rate that the optimizer used, for the best trial of each schedule.",
        plot=plot_builders.rates_as_applied(lines, title=""),
    )


def _importance(shares: Mapping[str, float]) -> Chart | None:
    if not shares:
        return None
    return Chart(
        name="importance",
        title="What matters",
        text="How much of the differences between completed trials each parameter explains.",
        plot=plot_builders.bars({"share": shares}, xlabel="share of the variance explained"),
        shape="low",
    )


def _steps(found: Findings) -> Chart:
    return Chart(
        name="steps",
        title="Steps trained and saved",
        text="A trial that stops early saves the rest of its steps.",
        plot=plot_builders.bars(steps(found), xlabel="steps"),
        shape="low",
    )


def _search(found: Findings) -> Iterator[Chart]:
    """Yield the best value so far, by trials and by steps, beside that of random search."""
    ended = best_so_far(found)
    if ended is None:
        return
    trials, steps, values = ended
    horizon = max(found.study.horizon(one.params) for one in found.trials if not one.imported)
    text = "The best value of the trials that had ended so far."
    if found.outlook is not None:
        text += f" {RANDOM}"
    for name, title, x, each in (
        ("search", "The search by trials", trials, 1),
        ("search-steps", "The search by steps", steps, horizon),
    ):
        lines = [Line(label="this search", x=x, y=values)]
        lines += random_search(found, len(trials), each)
        yield Chart(
            name=name,
            title=title,
            text=text,
            plot=plot_builders.comparison(
                lines,
                title="",
                xlabel="trials" if each == 1 else "steps",
                ylabel=f"best {found.study.spec.study.metric}",
            ),
            log_switch=True,
        )


RANDOM = (
    "What random search would have had is drawn from a Gaussian process on all trials of this "
    "study: its mean, and the interval of 80 % of searches, each trial to its horizon. It is "
    "optimistic where the search has hardly been."
)


def best_so_far(found: Findings) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the numbers of ended trials, their steps together, and the best value by then.

    From the first value on, each [trial]; None without a value, and for several objectives.
    """
    if found.study.spec.study.objectives:
        return None
    own = [one for one in found.trials if one.ended_at is not None and not one.imported]
    own.sort(key=lambda one: (one.ended_at or 0.0, one.number))
    sign = 1.0 if found.study.spec.study.direction == "minimize" else -1.0
    losses = np.array([
        sign * one.value
        if one.state == COMPLETED and one.value is not None and not one.infeasible
        else np.inf
        for one in own
    ])  # fmt: skip
    best = np.minimum.accumulate(losses) if len(losses) else losses
    known = np.isfinite(best)
    if not known.any():
        return None
    steps = np.cumsum([one.steps for one in own])
    return np.arange(1, len(own) + 1)[known], steps[known], sign * best[known]


def random_search(found: Findings, most: int, each: int) -> list[Line]:
    """Return the best value of random search so far, for `most` trials of `each` so many steps."""
    one = found.outlook
    if one is None:
        return []
    x = each * np.arange(1, min(most, len(one.expected)) + 1)
    named = {
        "random, expected": one.expected,
        "random, a tenth is lower": one.low,
        "random, a tenth is higher": one.high,
    }
    return [Line(label=label, x=x, y=values[: len(x)]) for label, values in named.items()]


def _front(found: Findings) -> Chart | None:
    figure = front_chart.figure(found.study, found.trials)
    if figure is None:
        return None
    more = "" if len(found.study.spec.study.objectives) == 2 else ", here by the first two of them"
    return Chart(
        name="front",
        title="Front",
        text=f"Trials that no other one is better than in every objective{more}.",
        optuna=figure,
    )


def _of_optuna(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[Chart]:
    titles = {"slices": "Value by each parameter", "parallel": "Parallel coordinates"}
    text = "Completed trials, drawn by Optuna."
    for name, figure in figures.items():
        yield Chart(name=name, title=titles[name], text=text, optuna=figure, shape="wide")


# --- charts of several studies


def _best_of_each(studies: Sequence[Findings]) -> Chart | None:
    lines = [
        _line(one.study.title, one.best, one.curves[one.best.number], GOOD_RATE)
        for one in studies
        if one.best is not None and one.best.number in one.curves
    ]
    if not lines:
        return None
    return Chart(
        name="best",
        title="The best of each",
        text="Training loss of each study's best trial.",
        plot=plot_builders.comparison(lines, title="", ylabel="training loss"),
    )


def _values_of_all(studies: Sequence[Findings]) -> Chart:
    points = [_points(one.study.title, one, one.trials) for one in studies]
    metrics = " or ".join(dict.fromkeys(one.study.spec.study.metric for one in studies))
    return Chart(
        name="values",
        title="Value by learning rate",
        text="Last value of every trial, one series for each study.",
        plot=plot_builders.value_by_rate(points, ylabel=metrics),
        log_switch=True,
    )


# --- series of charts


def loss_line(found: Findings, trial: TrialRecord) -> Line:
    """Return a trial's training loss as a line."""
    verdict = found.verdicts.get(trial.number)
    label = f"trial {trial.number}, {ranking.in_short(trial.params)}"
    kind = verdict.kind if verdict else NO_VERDICT
    return _line(label, trial, found.curves[trial.number], kind)


def _line(label: str, trial: TrialRecord, curve: Chunk, verdict: str) -> Line:
    losses = curve.columns.get("train_loss", np.empty(0))
    return Line(
        label=label,
        x=np.arange(curve.first_step, curve.first_step + len(losses))[curve.reported],
        y=losses[curve.reported],
        outcome=trial.state,
        verdict=verdict,
        trial=trial.number,
    )


def _is_best(found: Findings, line: Line) -> bool:
    return found.best is not None and line.trial == found.best.number


def representatives(found: Findings) -> list[Line]:
    """Return about three trials that show the effect of the rate: the middle one of each verdict.

    The best trial represents the good ones. With fewer than three verdicts, good trials at the
    ends of the range are added.
    """
    if found.best is None:
        return []
    chosen: dict[int, str] = {found.best.number: "good"}
    for kind in (TOO_LOW, TOO_HIGH, DIVERGING):
        own = sorted(
            (one for one in found.evidence if found.verdicts[one.number].kind == kind),
            key=lambda one: (one.outcome != COMPLETED and kind != DIVERGING, one.rate),
        )
        completed = [one for one in own if one.outcome == COMPLETED] or own
        if own:
            chosen[completed[len(completed) // 2].number] = kind
    good = sorted(
        (one for one in found.evidence if found.verdicts[one.number].kind == GOOD_RATE),
        key=lambda one: one.rate,
    )
    for one in (*good[:1], *good[-1:]):
        if len(chosen) < 3:
            chosen.setdefault(one.number, "also good")
    lines = []
    for number, name in chosen.items():
        trial = found.trial(number)
        if number in found.curves:
            label = f"{name}: lr {float((trial.params or {})['lr']):.3g}"
            lines.append(_line(label, trial, found.curves[number], NO_VERDICT))
    return lines


def by_schedule(found: Findings) -> list[Points]:
    """Return values by rate, one series for each schedule."""
    drawn = [one for one in found.trials if one.params is not None]
    names = sorted({str((one.params or {})["schedule"]) for one in drawn})
    return [
        _points(name, found, [one for one in drawn if (one.params or {})["schedule"] == name])
        for name in names
    ]


def _points(label: str, found: Findings, trials: Sequence[TrialRecord]) -> Points:
    drawn = [one for one in trials if one.params is not None]
    return Points(
        label=label,
        rates=np.array([float((one.params or {})["lr"]) for one in drawn]),
        values=np.array([found.value(one) for one in drawn]),
        trials=np.array([one.number for one in drawn], dtype=np.int64),
    )


def as_applied(found: Findings) -> list[Line]:
    """Return the rates at each step of each schedule's best trial that has a curve."""
    best: dict[str, TrialRecord] = {}
    for trial in ranking.ranked(found.study, found.trials):
        if trial.params is not None and trial.number in found.curves and trial.steps:
            best.setdefault(str(trial.params["schedule"]), trial)
    lines = []
    for name, trial in sorted(best.items()):
        curve = found.curves[trial.number]
        rates = curve.columns.get("lr", np.empty(0))
        at = np.arange(curve.first_step, curve.first_step + len(rates))
        kept = curve.reported
        lines.append(Line(label=f"{name} (trial {trial.number})", x=at[kept], y=rates[kept]))
    return lines


def steps(found: Findings) -> dict[str, dict[str, float]]:
    """Return the number of steps trained and saved, by outcome."""
    trained: dict[str, float] = {}
    saved: dict[str, float] = {}
    for one in found.trials:
        if one.state in KINDS and not one.imported:
            trained[one.state] = trained.get(one.state, 0.0) + one.steps
            left = found.study.horizon(one.params) - one.steps
            stopped = one.state in (PRUNED, DIVERGED)
            saved[one.state] = saved.get(one.state, 0.0) + left * stopped
    return {"trained": trained, "saved": saved}
