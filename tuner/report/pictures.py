"""Which pictures a report has: curves, values, schedules, importances, savings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tuner.analysis import ranking
from tuner.analysis.verdicts import DIVERGING, GOOD_RATE, TOO_HIGH, TOO_LOW
from tuner.core.curves import Chunk
from tuner.core.outcome import COMPLETED, DIVERGED, KINDS
from tuner.ledger import TrialRecord
from tuner.report.charts import figures
from tuner.report.charts.picture import UNTOLD, Line, Picture, Points
from tuner.report.findings import Findings


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A picture in a report."""

    name: str  # of its file
    title: str
    text: str  # what to see in it
    picture: Picture


def of_study(found: Findings, importances: Mapping[str, float]) -> Iterator[Shown]:
    """Give the pictures of one study, in the order of the report."""
    metric = found.study.spec.study.metric
    lines = [loss_line(found, one) for one in found.trials if one.number in found.curves]
    if lines:
        best = next((n for n, one in enumerate(lines) if _is_best(found, one)), None)
        picture = figures.loss_curves(lines, best=best, ylabel="training loss", by="verdict")
        text = "Training loss of every trial at every step; a cross is where a curve broke off."
        yield Shown(name="curves", title="Every trial", text=text, picture=picture)
    chosen = representatives(found)
    if chosen:
        picture = figures.comparison(chosen, title="", ylabel="training loss")
        title = "Effect of the learning rate on convergence"
        text = "One trial of each kind, as textbooks draw it."
        yield Shown(name="convergence", title=title, text=text, picture=picture)
    picture = figures.value_by_rate(by_choice(found), ylabel=metric, marks=found.marks)
    text = f"Last {metric} of every trial; a cross at the upper edge is a trial that has none."
    yield Shown(name="values", title="Value by learning rate", text=text, picture=picture)
    applied = as_applied(found)
    if applied:
        picture = figures.rates_as_applied(applied, title="")
        text = "The rate that the optimiser was given: of each schedule, its best trial's."
        title = "Schedules as applied"
        yield Shown(name="schedules", title=title, text=text, picture=picture)
    if importances:
        picture = figures.bars({"share": importances}, xlabel="share of the variance explained")
        text = "How much each parameter explains of the differences between completed trials."
        yield Shown(name="importance", title="What matters", text=text, picture=picture)
    yield Shown(
        name="steps",
        title="Steps trained and saved",
        text="A trial that is stopped early saves the rest of its steps.",
        picture=figures.bars(steps(found), xlabel="steps"),
    )


def of_many(studies: Sequence[Findings]) -> Iterator[Shown]:
    """Give the pictures that put several studies beside each other."""
    lines = [
        _line(one.study.title, one.best, one.curves[one.best.number], GOOD_RATE)
        for one in studies
        if one.best is not None and one.best.number in one.curves
    ]
    if lines:
        picture = figures.comparison(lines, title="", ylabel="training loss")
        text = "Training loss of each study's best trial."
        yield Shown(name="best", title="The best of each", text=text, picture=picture)
    points = [_points(one.study.title, one, one.trials) for one in studies]
    metrics = " or ".join(dict.fromkeys(one.study.spec.study.metric for one in studies))
    yield Shown(
        name="values",
        title="Value by learning rate",
        text="Last value of every trial, a series a study.",
        picture=figures.value_by_rate(points, ylabel=metrics),
    )


def loss_line(found: Findings, trial: TrialRecord) -> Line:
    """Give a trial's training loss as a line."""
    verdict = found.verdicts.get(trial.number)
    label = f"trial {trial.number}, {ranking.in_short(trial.params)}"
    return _line(label, trial, found.curves[trial.number], verdict.kind if verdict else UNTOLD)


def _line(label: str, trial: TrialRecord, curve: Chunk, verdict: str) -> Line:
    losses = curve.columns.get("train_loss", np.empty(0))
    return Line(
        label=label,
        x=np.arange(curve.first_step, curve.first_step + len(losses)),
        y=losses,
        outcome=trial.state,
        verdict=verdict,
        trial=trial.number,
    )


def _is_best(found: Findings, line: Line) -> bool:
    return found.best is not None and line.trial == found.best.number


def representatives(found: Findings) -> list[Line]:
    """Choose about three trials that show what the rate does: of each verdict the middle rate.

    The best stands for the good ones. Where there are fewer kinds than three, good ones at the
    ends of the range fill up.
    """
    if found.best is None:
        return []
    chosen: dict[int, str] = {found.best.number: "good"}
    for kind in (TOO_LOW, TOO_HIGH, DIVERGING):
        own = sorted(
            (one for one in found.evidence if found.verdicts[one.number].kind == kind),
            key=lambda one: (one.outcome != COMPLETED and kind != DIVERGING, one.rate),
        )
        whole = [one for one in own if one.outcome == COMPLETED] or own
        if own:
            chosen[whole[len(whole) // 2].number] = kind
    good = sorted(
        (one for one in found.evidence if found.verdicts[one.number].kind == GOOD_RATE),
        key=lambda one: one.rate,
    )
    for one in (*good[:1], *good[-1:]):
        if len(chosen) < 3:
            chosen.setdefault(one.number, "good too")
    lines = []
    for number, name in chosen.items():
        trial = found.trial(number)
        if number in found.curves:
            label = f"{name}: lr {float((trial.params or {})['lr']):.3g}"
            lines.append(_line(label, trial, found.curves[number], UNTOLD))
    return lines


def by_choice(found: Findings) -> list[Points]:
    """Give values by rate, one series a schedule."""
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
    """Give the rates of each schedule's best trial with a curve."""
    best: dict[str, TrialRecord] = {}
    for trial in ranking.ranked(found.study, found.trials):
        if trial.params is not None and trial.number in found.curves and trial.steps:
            best.setdefault(str(trial.params["schedule"]), trial)
    lines = []
    for name, trial in sorted(best.items()):
        curve = found.curves[trial.number]
        rates = curve.columns.get("lr", np.empty(0))
        steps = np.arange(curve.first_step, curve.first_step + len(rates))
        lines.append(Line(label=f"{name} (trial {trial.number})", x=steps, y=rates))
    return lines


def steps(found: Findings) -> dict[str, dict[str, float]]:
    """Count the steps that were trained and those that were saved, by outcome."""
    horizon = found.study.spec.training.steps
    trained: dict[str, float] = {}
    saved: dict[str, float] = {}
    for one in found.trials:
        if one.state in KINDS and not one.imported:
            trained[one.state] = trained.get(one.state, 0.0) + one.steps
            stopped = one.state in ("pruned", DIVERGED)
            saved[one.state] = saved.get(one.state, 0.0) + (horizon - one.steps) * stopped
    return {"trained": trained, "saved": saved}
