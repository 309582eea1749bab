"""Writing reports: a page and its pictures in a folder, of one study or of several side by side."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tuner.analysis import ranking
from tuner.core.outputs import replacing, writing_into
from tuner.ledger import TrialRecord
from tuner.report import page, pictures, words
from tuner.report.charts import search, still, web
from tuner.report.charts.picture import Picture
from tuner.report.findings import Findings
from tuner.report.page import Cell
from tuner.report.pictures import Shown

FOLDER = "reports"
POINTS = 60_000
"""Points of an overview in a page: more than a screen has, and few enough to be drawn at once."""
ROWS = 500
"""Trials in the table of a page."""
LOW = ("importance", "steps")
"""Pictures that are as high as they have rows."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """The files of a report."""

    page: Path
    pictures: tuple[Path, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.page, *self.pictures)


def folder_name(titles: Sequence[str]) -> str:
    """Name a folder after studies, whatever characters their names have."""
    whole = "+".join(titles)
    plain = re.sub(r"[^\w.+-]+", "_", whole, flags=re.ASCII).strip("._")[:80]
    if plain == whole:
        return plain
    return f"{plain}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}".lstrip("-")


def of_study(found: Findings, folder: Path) -> Written:
    """Write the report of one study."""
    study = search.in_memory(found.study, found.trials)
    shown = list(pictures.of_study(found, search.importances(study)))
    figures: dict[str, dict[str, Any]] = {
        one.name: web.figure(one.picture, points=POINTS) for one in shown
    }
    said = f"Verdicts on rates: {words.verdicts(found)}."
    body = [
        f"<h1>{escape(found.study.title)}</h1>",
        page.paragraphs([found.study.spec.study.description]),
        page.answer(words.answer(found), words.advice(found)),
        f'<p class="soft">{escape(f"{said} {words.savings(found)}")}</p>',
        *map(_section, shown),
        _ranges(found),
    ]
    titles = {"slices": "Value by each parameter", "parallel": "Parallel coordinates"}
    for name, figure in search.plots(study).items():
        figures[name] = figure
        text = "Completed trials, as Optuna draws them."
        body.append(page.figure(name, titles[name], text, kind="wide"))
    body += [_trials(found), _drift(found)]
    return _written(folder, found.study.title, body, figures, shown)


def of_many(studies: Sequence[Findings], folder: Path) -> Written:
    """Write one report of several studies, side by side."""
    shown = list(pictures.of_many(studies))
    figures = {one.name: web.figure(one.picture, points=POINTS) for one in shown}
    columns = []
    for index, one in enumerate(studies):
        own = [
            Shown(
                name=f"{each.name}{index}", title=each.title, text=each.text, picture=each.picture
            )
            for each in pictures.of_study(one, {})
            if each.name in ("curves", "values")
        ]
        figures |= {each.name: web.figure(each.picture, points=POINTS) for each in own}
        head = (
            f"<h2>{escape(one.study.title)}</h2>{page.answer(words.answer(one), words.advice(one))}"
        )
        columns.append(f"<div>{head}{''.join(map(_section, own))}</div>")
    title = " beside ".join(one.study.title for one in studies)
    body = [
        f"<h1>{escape(title)}</h1>",
        _beside(studies),
        *map(_section, shown),
        f'<div class="columns">{"".join(columns)}</div>',
    ]
    return _written(folder, title, body, figures, shown)


def _written(
    folder: Path,
    title: str,
    body: Sequence[str],
    figures: Mapping[str, Mapping[str, Any]],
    shown: Sequence[Shown],
) -> Written:
    text = page.page(title, body, figures)
    return write(folder / "report.html", text, {one.name: one.picture for one in shown})


def write(file: Path, text: str, pictures: Mapping[str, Picture]) -> Written:
    """Write a page and its pictures into its folder. Raises `OutputError`."""
    drawn = []
    with writing_into(file.parent):
        with replacing(file) as partial:
            partial.write_text(text, encoding="utf-8")
        for name, picture in pictures.items():
            drawn.append(file.with_name(f"{name}.png"))
            with replacing(drawn[-1]) as partial:
                still.save(still.draw(picture), partial)
    return Written(page=file, pictures=tuple(drawn))


def _section(one: Shown) -> str:
    base = one.name.rstrip("0123456789")
    tools = page.log_switch(one.name, log=one.picture.y.log) if base in ("curves", "values") else ""
    return page.figure(one.name, one.title, one.text, kind="low" * (base in LOW), tools=tools)


def _ranges(found: Findings) -> str:
    """Tabulate the good rates of schedules and optimisers."""
    rows = [
        [
            Cell(text=kind),
            Cell(text=one.name),
            Cell(text=f"{one.low.rate:.3g}", number=one.low.rate),
            Cell(text=f"{one.high.rate:.3g}", number=one.high.rate),
            Cell(text=f"{one.factor:.3g}", number=one.factor),
            Cell(text=f"{one.trials} of {one.of}"),
            Cell(text=_shown(one.low.beyond)),
            Cell(text=_shown(one.high.beyond)),
        ]
        for kind, ranges in (("schedule", found.by_schedule), ("optimizer", found.by_optimizer))
        for one in ranges
    ]
    head = ("by", "name", "from", "to", "factor", "good", "not good below", "not good above")
    text = "The rates that were good, and the nearest ones beyond that were not."
    return f'<h2>Good rates</h2><p class="soft">{text}</p>{page.table(head, rows)}' if rows else ""


def _beside(studies: Sequence[Findings]) -> str:
    """Tabulate what each of several studies found."""
    rows = []
    for one in studies:
        best = one.best.value if one.best is not None else None
        good = f"{one.rates.low.rate:.3g} to {one.rates.high.rate:.3g}" if one.rates else "none"
        rows.append(
            [
                Cell(text=one.study.title),
                Cell(text=one.study.spec.study.metric),
                Cell(text=_shown(best), number=best),
                Cell(text=ranking.in_short(one.best.params) if one.best else ""),
                Cell(text=good),
                Cell(text=str(len(one.trials)), number=len(one.trials)),
                Cell(text=words.verdicts(one)),
            ]
        )
    head = ("study", "metric", "best", "with", "good rates", "trials", "verdicts")
    return page.table(head, rows)


def _trials(found: Findings) -> str:
    ranked = ranking.ranked(found.study, found.trials)
    metric = found.study.spec.study.metric
    head = ("trial", "lr", "schedule", "optimizer", "steps", metric, "verdict", "outcome", "why")
    names = found.varied()
    rows = [_row(found, one, names) for one in ranked[:ROWS]]
    more = len(ranked) - ROWS
    said = f"The best {ROWS} of {len(ranked)}; `tuner export` gives all. " if more > 0 else ""
    links = "Numbers lead to MLflow's runs." if found.links else ""
    if ranking.has_better_below(found.study, ranked[:ROWS]):
        said += f"{ranking.WHY_BELOW} "
    whole = page.table((*head, "other parameters"), rows)
    return f'<h2>Trials</h2><p class="soft">{escape(said + links)}</p>{whole}'


def _drift(found: Findings) -> str:
    """Tabulate the study's retrainings, if there were any."""
    if not found.drift:
        return ""
    rows = [
        [
            Cell(text=one.run_key),
            Cell(text=one.outcome),
            Cell(text=f"{one.lr:.3g}", number=one.lr),
            Cell(text="{:.3g} to {:.3g}".format(*one.lr_range)),
            Cell(text="" if one.champion is None else f"{one.champion:.4g}", number=one.champion),
            Cell(text=one.reason),
        ]
        for one in found.drift
    ]
    head = ("run key", "outcome", "lr", "searched", "the champion's metric", "why")
    said = "What each retraining was given and made of it, oldest first."
    return f'<h2>Retrainings</h2><p class="soft">{said}</p>{page.table(head, rows)}'


def _row(found: Findings, trial: TrialRecord, names: Sequence[str]) -> list[Cell]:
    params, verdict = trial.params or {}, found.verdicts.get(trial.number)
    rate = float(params["lr"]) if params else None
    value = found.value(trial)
    known = value == value  # noqa: PLR0124 - not nan
    others = ", ".join(f"{name} {_shown(params[name])}" for name in names if name in params)
    return [
        Cell(text=str(trial.number), number=trial.number, link=found.links.get(trial.number)),
        Cell(text=_shown(rate), number=rate),
        Cell(text=_shown(params.get("schedule"))),
        Cell(text=_shown(params.get("optimizer"))),
        Cell(text=str(trial.steps), number=trial.steps),
        Cell(text=f"{value:.4g}" if known else "", number=value if known else None),
        Cell(text=str(verdict or "")),
        Cell(text=f"{trial.state}, imported" if trial.imported else trial.state),
        Cell(text=(verdict.reason if verdict else trial.reason) or "", kind="why"),
        Cell(text=others, kind="wide"),
    ]


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
