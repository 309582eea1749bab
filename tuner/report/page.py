"""The page of a report, made from findings and charts, and written with its PNG files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tuner.analysis import ranking
from tuner.config import CHOSEN, written
from tuner.core.outputs import replacing, writing_into
from tuner.ledger import TrialRecord
from tuner.report import forecasts, markup, sentences
from tuner.report.charts import matplotlib_backend, report_charts
from tuner.report.charts.plot import Plot
from tuner.report.charts.report_charts import Chart
from tuner.report.findings import Findings
from tuner.report.markup import Cell

FOLDER = "reports"
ROWS = 500
"""Maximum number of trials in the table of a page."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """The files of a report."""

    page: Path
    pictures: tuple[Path, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """The page and its pictures."""
        return (self.page, *self.pictures)


def folder_name(titles: Sequence[str]) -> str:
    """Return a safe folder name for studies with these titles."""
    whole = "+".join(titles)
    plain = re.sub(r"[^\w.+-]+", "_", whole, flags=re.ASCII).strip("._")[:80]
    if plain == whole:
        return plain
    return f"{plain}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}".lstrip("-")


def write_study(found: Findings, folder: Path) -> Written:
    """Write the report of one study. Raise `OutputError`."""
    outlook, metric = forecasts.outlook(found), found.study.spec.study.metric
    forecast = forecasts.chart(outlook, metric)
    charts = [*report_charts.of_study(found), *([] if forecast is None else [forecast])]
    verdicts = f"Verdicts on rates: {sentences.verdicts(found)}."
    body = [
        f"<h1>{escape(found.study.title)}</h1>",
        markup.paragraphs([found.study.spec.study.description]),
        _answer(found),
        f'<p class="soft">{escape(f"{verdicts} {sentences.savings(found)}")}</p>',
        f'<p class="soft">{escape(sentences.origin(found))}</p>',
        *(_section(one) for one in charts if one.plot is not None),
        _predictions(forecasts.sentences(outlook, metric)),
        _good_rates(found),
        _sensitivities(found),
        *(_section(one) for one in charts if one.plot is None),
        _trials(found),
        _retrainings(found),
    ]
    return _render(folder, found.study.title, body, charts)


def write_studies(studies: Sequence[Findings], folder: Path) -> Written:
    """Write one report of several studies, side by side. Raise `OutputError`."""
    shared, own = report_charts.of_studies(studies)
    columns = [
        f"<div><h2>{escape(one.study.title)}</h2>{_answer(one)}{''.join(map(_section, charts))}"
        "</div>"
        for one, charts in zip(studies, own, strict=True)
    ]
    title = " beside ".join(one.study.title for one in studies)
    body = [
        f"<h1>{escape(title)}</h1>",
        _studies(studies),
        *map(_section, shared),
        f'<div class="columns">{"".join(columns)}</div>',
    ]
    only_in_page = [one for charts in own for one in charts]
    return _render(folder, title, body, shared, only_in_page)


def _render(
    folder: Path,
    title: str,
    body: Sequence[str],
    charts: Sequence[Chart],
    only_in_page: Sequence[Chart] = (),
) -> Written:
    figures = {one.name: one.in_page() for one in (*charts, *only_in_page)}
    plots = {one.name: one.plot for one in charts if one.plot is not None}
    return write(folder / "report.html", markup.page(title, body, figures), plots)


def write(file: Path, text: str, plots: Mapping[str, Plot]) -> Written:
    """Write a page, and each plot as a PNG file beside it. Raise `OutputError`."""
    pictures = []
    with writing_into(file.parent):
        with replacing(file) as partial:
            partial.write_text(text, encoding="utf-8")
        for name, plot in plots.items():
            pictures.append(file.with_name(f"{name}.png"))
            with replacing(pictures[-1]) as partial:
                matplotlib_backend.save(matplotlib_backend.draw(plot), partial)
    return Written(page=file, pictures=tuple(pictures))


def _answer(found: Findings) -> str:
    return markup.answer(sentences.answer(found), sentences.advice(found))


def _section(one: Chart) -> str:
    tools = ""
    if one.log_switch and one.plot is not None:
        tools = markup.log_switch(one.name, log=one.plot.y.log)
    return markup.figure(one.name, one.title, one.text, kind=one.shape, tools=tools)


def _predictions(lines: Sequence[str]) -> str:
    return f"<h2>Predictions</h2>{markup.paragraphs(lines)}" if lines else ""


def _good_rates(found: Findings) -> str:
    """Return the table of good rates by schedule and by optimizer."""
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
    text = "The range of good rates, and the nearest tried rates outside that were not good."
    return (
        f'<h2>Good rates</h2><p class="soft">{text}</p>{markup.table(head, rows)}' if rows else ""
    )


def _sensitivities(found: Findings) -> str:
    """Return the table of what rates near the best one cost, by optimizer and schedule."""
    if not found.sensitivities:
        return ""
    rows = [
        [
            Cell(text=one.optimizer),
            Cell(text=one.schedule),
            Cell(text=f"{one.best:.3g}", number=one.best),
            Cell(text=f"{one.low:.3g} to {one.high:.3g}"),
            Cell(text=f"{one.cost:.2g}", number=one.cost),
            Cell(text=f"{one.least:.2g} to {one.most:.2g}"),
            Cell(text=str(one.trials), number=one.trials),
        ]
        for one in found.sensitivities
    ]
    metric = found.study.spec.study.metric
    head = ("optimizer", "schedule", "best rate", "rates", "mean cost", "90 % interval", "trials")
    text = (
        f"How much worse {metric} is on average at rates near the best, over the rates of the "
        "fourth column: small where the rate hardly matters. A trial that diverged counts as "
        "untrained, and one that was stopped with its last value."
    )
    return (
        f'<h2>Sensitivity to the rate</h2><p class="soft">{escape(text)}</p>'
        f"{markup.table(head, rows)}"
    )


def _studies(studies: Sequence[Findings]) -> str:
    """Return the table of several studies: best trial, good rates and verdicts."""
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
                Cell(text=sentences.verdicts(one)),
            ]
        )
    head = ("study", "metric", "best", "with", "good rates", "trials", "verdicts")
    return markup.table(head, rows)


def _trials(found: Findings) -> str:
    ranked = ranking.ranked(found.study, found.trials)
    metric = found.study.spec.study.metric
    head = ("trial", *CHOSEN, "steps", metric, "verdict", "outcome", "why")
    names = found.varied()
    rows = [_row(found, one, names) for one in ranked[:ROWS]]
    text = ""
    if len(ranked) > ROWS:
        text = f"The best {ROWS} of {len(ranked)}; `tuner export` writes all. "
    links = "Numbers link to MLflow runs." if found.links else ""
    if ranking.has_better_below(found.study, ranked[:ROWS]):
        text += f"{ranking.WHY_BELOW} "
    whole = markup.table((*head, "other parameters"), rows)
    return f'<h2>Trials</h2><p class="soft">{escape(text + links)}</p>{whole}'


def _retrainings(found: Findings) -> str:
    """Return the table of the study's retrainings; empty if there are none."""
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
    text = "The searched range and the result of each retraining, oldest first."
    return f'<h2>Retrainings</h2><p class="soft">{text}</p>{markup.table(head, rows)}'


def _row(found: Findings, trial: TrialRecord, names: Sequence[str]) -> list[Cell]:
    params, verdict = trial.params or {}, found.verdicts.get(trial.number)
    rate = float(params["lr"]) if params else None
    value = found.value(trial)
    known = value == value  # noqa: PLR0124 - not nan
    others = ", ".join(f"{name} {_shown(params[name])}" for name in names if name in params)
    return [
        Cell(text=str(trial.number), number=trial.number, link=found.links.get(trial.number)),
        Cell(text=_shown(rate), number=rate),
        *(Cell(text=_shown(params.get(name))) for name in CHOSEN if name != "lr"),
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
    return f"{value:.3g}" if isinstance(value, float) else written(value)
