"""A person looks at a study in MLflow's UI: what a real browser draws from a real server."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from browser import Watched, launched, opened
from helpers import completed, diverged, rows, spec
from playwright.sync_api import Browser, expect
from processes import environment, prepare, reader, train_here, tuner
from team import mlflow_server
from test_bulk import ADAMW, SPACE, WORKLOAD, take

from tuner.core.outcome import FAILED, Outcome
from tuner.ledger import Ledger, StudyRecord, database
from tuner.operations import links
from tuner.tracking.mlflow import views
from tuner.tracking.mlflow.links import SIDE
from tuner.tracking.recorder import Recorder

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

PATIENCE = 60_000
"""How long a page may take on a busy machine, in milliseconds."""
OF_MLFLOW = ("ajax-api/2.0/mlflow/users/current", "ResizeObserver loop completed")
"""Errors of MLflow's own pages: who is logged in, where nobody has to, and a chart's size."""
ODD_NAMES = {
    "quotes": """a "quoted" name, isn't it / 50% <b>bold</b> | `code` [link](x) ÄÖ""",
    "emoji": "\N{ROCKET} \N{CHART WITH DOWNWARDS TREND} sweep",
    "long": "\N{ROCKET}'a / b\"" * 31 + "nn",
}
TRIALS = 12


@dataclass(frozen=True)
class Shown:
    """A server with studies, and a browser before it."""

    folder: Path
    address: str
    browser: Browser

    def pages(self, name: str) -> dict[str, str]:
        """Give the pages of a study by what they show."""
        ledger = reader(self.folder)
        places = database.addresses({}, self.folder)
        found = links.pages(ledger, ledger.study(name), places, self.address)
        ledger.engine.dispose()
        return found


def odd_study(ledger: Ledger, name: str, losses: dict[int, list[float]]) -> StudyRecord:
    """Put a study with given curves into a ledger, by trial; finite ones have completed."""
    made = spec(study={"name": name}, space=SPACE, budget={"trials": len(losses)})
    study, _ = ledger.submit(made, limit=len(losses), workload=WORKLOAD)
    for index, curve in losses.items():
        held = take(ledger, study, **ADAMW, lr=0.1 / (1 + index))
        chunk = rows(0, len(curve), losses=curve)
        finite = all(map(math.isfinite, curve))
        ledger.finish(
            held.lease, completed(curve[-1]) if finite else diverged(len(curve) - 1), chunk=chunk
        )
    return study


ODD = {
    0: [1.0, math.nan],
    1: [1.0, 2.0, math.inf],
    2: [0.5],
    3: list(1.0 / np.arange(1, 100_001)),
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = prepare(tmp_path_factory.mktemp("ui"), trials=str(TRIALS))
    train_here(folder)
    places = database.addresses({}, folder)
    ledger = Ledger(database.ledger_engine(places.ledger))
    odd_study(ledger, "odd", ODD)
    for name in ODD_NAMES.values():
        odd_study(ledger, name, {0: [2.0, 1.0, 0.5]})
    nothing = ledger.submit(
        spec(study={"name": "nothing"}, space=SPACE), limit=1, workload=WORKLOAD
    )[0]
    held = take(ledger, nothing, **ADAMW)
    ledger.finish(held.lease, Outcome(kind=FAILED, reason="It raised."))
    recorder = Recorder(ledger.engine, places)
    recorder.publish()
    recorder.close()
    ledger.engine.dispose()
    assert tuner(folder, "report", "small").code == 0
    with mlflow_server(folder, places.tracking) as address, launched() as browser:
        yield Shown(folder, address, browser)


def look(shown: Shown, url: str, says: str, shot: str | None = None) -> Iterator[Watched]:
    """Open a page, wait for what it says, and keep a picture of it."""
    with opened(shown.browser, "about:blank", width=1700) as watched:
        watched.page.set_default_timeout(PATIENCE)
        watched.page.goto(url)
        expect(watched.page.get_by_text(says).first).to_be_visible(timeout=PATIENCE)
        yield watched
        if shot:
            watched.keep(shot)
        assert [one for one in watched.errors if not any(its in one for its in OF_MLFLOW)] == []


def curves(watched: Watched, chart: int = 0) -> list[tuple[str, str]]:
    """Give the path and the colour of each curve that a chart has drawn."""
    lines = watched.page.locator(".js-plotly-plot").nth(chart).locator("path.js-line")
    found = lines.evaluate_all("all => all.map(one => [one.getAttribute('d'), one.style.stroke])")
    return [(path, colour) for path, colour in found if path]


def rgb(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgb({red}, {green}, {blue})"


def test_the_curves_of_all_trials_are_drawn_each_in_the_colour_of_its_outcome(shown):
    ledger = reader(shown.folder)
    study = ledger.study("small")
    trials, best = ledger.trials(study.id), ledger.best(study)
    ledger.engine.dispose()
    longer = [one for one in trials if one.steps >= study.spec.training.evaluate_every]
    for watched in look(shown, shown.pages("small")["loss curves"], "Loss curves", "curves"):
        watched.page.wait_for_function(
            "n => { const chart = document.querySelector('.js-plotly-plot');"
            " return chart && [...chart.querySelectorAll('path.js-line')]"
            "   .filter(one => one.getAttribute('d')).length >= n }",
            arg=len(longer),
            timeout=PATIENCE,
        )
        drawn = curves(watched)
        assert len({path for path, _ in drawn}) >= len(longer)
        others = {views.COLOURS[one.state] for one in longer if one.number != best.number}
        assert {colour for _, colour in drawn} >= {rgb(colour) for colour in others}
        assert rgb(views.BEST) in {colour for _, colour in drawn}


def test_the_table_has_every_trial_the_best_first_and_its_columns(shown):
    ledger = reader(shown.folder)
    best = ledger.best(ledger.study("small"))
    ledger.engine.dispose()
    for watched in look(shown, shown.pages("small")["table of trials"], "matching runs", "table"):
        page = watched.page
        expect(page.get_by_text(f"{TRIALS} matching runs")).to_be_visible(timeout=PATIENCE)
        first = page.locator(".ag-center-cols-container [row-index='0']")
        expect(page.locator("[row-index='0']").get_by_role("link").first).to_have_text(
            re.compile(rf"^{best.number}: lr"), timeout=PATIENCE
        )
        expect(first.get_by_text("completed").first).to_be_visible()
        heads = page.locator(".ag-header-cell-text, [role=columnheader]").all_inner_texts()
        for name in ("lr", "schedule", "optimizer", "tuner.outcome", "tuner.verdict"):
            assert any(name == head.strip() for head in heads), (name, heads)


def test_runs_nest_under_their_study(shown):
    url = f"{shown.pages('small')['table of trials'].partition('/runs')[0]}/runs?{SIDE}"
    for watched in look(shown, url, "matching runs", "nested"):
        page = watched.page
        expect(page.get_by_text(f"{TRIALS + 1} matching runs")).to_be_visible(timeout=PATIENCE)
        expect(page.get_by_role("link", name="small", exact=True).last).to_be_visible()
        page.locator(".ag-row button, .ag-row [role=button]").first.click()
        expect(page.get_by_role("link", name=re.compile(r"^\d+: lr")).first).to_be_visible()


def test_a_diverged_run_says_why(shown):
    ledger = reader(shown.folder)
    trials = ledger.trials(ledger.study("small").id)
    ledger.engine.dispose()
    gone = [one for one in trials if one.state == "diverged"]
    assert gone
    for watched in look(shown, shown.pages("small")["diverged trials"], "matching run"):
        page = watched.page
        expect(page.get_by_text(f"{len(gone)} matching run")).to_be_visible(timeout=PATIENCE)
        page.get_by_role("link", name=re.compile(rf"^{gone[0].number}: lr")).first.click()
        expect(page.get_by_text(gone[0].reason[:40]).first).to_be_visible(timeout=PATIENCE)
        watched.keep("diverged")


HEADINGS = {
    "summary": "About this run",
    "loss curves": "1 Loss curves",
    "table of trials": "4 Table of trials",
    "best trial": "About this run",
    "best 3": "7 The best trials",
    "best 3 compared": "Comparing 3 Runs",
    "diverged trials": "5 Diverged trials",
}


def test_every_page_that_status_prints_opens_what_it_names(shown):
    done = tuner(shown.folder, "status", "small", env={"MLFLOW_TRACKING_URI": shown.address})
    assert done.code == 0, done.err
    printed = dict(line.split(": ", 1) for line in done.out.splitlines() if shown.address in line)
    assert set(printed) == set(HEADINGS)
    for what, url in printed.items():
        for _ in look(shown, url, HEADINGS[what], what.replace(" ", "-")):
            pass


def test_the_summary_has_the_answer_a_picture_and_links_that_lead_on(shown):
    for watched in look(shown, shown.pages("small")["summary"], "Best: val_loss", "summary"):
        page = watched.page
        page.wait_for_function(
            "() => [...document.images].some("
            "  one => one.src.includes('get-artifact') && one.naturalWidth > 100)",
            timeout=PATIENCE,
        )
        leads = page.get_by_role("link", name="schedules as applied")
        page.goto(leads.evaluate("one => one.href"))
        expect(page.get_by_text("3 Schedules as applied").first).to_be_visible(timeout=PATIENCE)


def test_a_run_shows_its_data(shown):
    for watched in look(shown, shown.pages("small")["best trial"], "Datasets"):
        ledger = reader(shown.folder)
        workload = ledger.study("small").workload
        ledger.engine.dispose()
        expect(watched.page.get_by_text(workload["data"][:8]).first).to_be_visible()


@pytest.mark.parametrize("name", ["odd", "nothing", *ODD_NAMES.values()], ids=lambda name: name[:9])
def test_odd_data_and_names_break_no_page(shown, name):
    for what, url in shown.pages(name).items():
        if what in ("summary", "loss curves") or (name == "odd" and what == "table of trials"):
            for watched in look(shown, url, HEADINGS[what]):
                if what == "loss curves" and name != "nothing":
                    expect(watched.page.locator(".js-plotly-plot").first).to_be_visible(
                        timeout=PATIENCE
                    )


def test_the_ui_opens_the_study_that_is_named_on_a_free_port(shown, tmp_path):
    opens = tmp_path / "opens"
    opens.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/page\n')
    opens.chmod(0o755)
    env = {"BROWSER": str(opens), "MLFLOW_TRACKING_URI": shown.address}
    assert "BROWSER" not in environment(shown.folder)
    opening = {"loss curves": ["ui", "small"], "best trial": ["best", "small", "--open"]}
    for what, arguments in opening.items():
        done = tuner(shown.folder, *arguments, env=env)
        assert done.code == 0, done.err
        assert (tmp_path / "page").read_text().strip() == shown.pages("small")[what]


def test_studies_are_compared_by_their_trials_the_best_first(shown, tmp_path):
    opens = tmp_path / "opens"
    opens.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/page\n')
    opens.chmod(0o755)
    env = {"BROWSER": str(opens), "MLFLOW_TRACKING_URI": shown.address}
    assert tuner(shown.folder, "ui", "odd", "small", env=env).code == 0
    page = (tmp_path / "page").read_text().strip()
    for watched in look(shown, page, "Displaying Runs from 2 Experiments", "studies-compared"):
        for study in ("odd", "small"):
            of_trials = watched.page.get_by_text(f"({study})")  # as in "2: lr 0.5, … (small)"
            expect(of_trials.first).to_be_visible(timeout=PATIENCE)
