"""The report and the comparison in a real browser, wide and narrow, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from browser import Watched, opened
from playwright.sync_api import Browser
from processes import ROOT, prepare, tuner, until
from test_report import NASTY, falling, fill, trial

from tuner.ledger import Ledger
from tuner.report import comparison, page
from tuner.report.findings import gather

pytestmark = pytest.mark.slow


def drawn(seen: Watched) -> None:
    """Wait until every figure is drawn."""
    seen.page.wait_for_selector("html[data-drawn]")
    figures = seen.page.locator("[data-figure]")
    assert seen.page.locator("[data-figure]:has(.trace)").count() == figures.count() > 0


def becomes(seen: Watched, condition: str) -> None:
    """Wait for a condition; Playwright's own way evaluates text in the page, which forbids that."""
    until(lambda: seen.page.evaluate(condition), condition)


def assert_quiet(seen: Watched, file: Path) -> None:
    assert seen.errors == []
    assert seen.asked_elsewhere(file.as_uri()) == []


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory, new_ledger: Callable[[], Ledger]
) -> dict[str, Path]:
    """A report, one of two studies, and a comparison; names and reasons are people's."""
    folder, ledger = tmp_path_factory.mktemp("pages"), new_ledger()
    one, two = fill(ledger, NASTY[:150]), fill(ledger, "plain")
    found = [gather(ledger, study) for study in (one, two)]
    chosen = comparison.choose(ledger, [f"{one.name}:all", "plain:0-3"])
    made = {
        "report": page.write_study(found[0], folder / "report"),
        "beside": page.write_studies(found, folder / "beside"),
        "compare": comparison.write(chosen, "train_loss", "step", folder / "compare"),
    }
    ledger.engine.dispose()
    return {name: one.page for name, one in made.items()}


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["report", "beside", "compare"])
@pytest.mark.parametrize(
    ("width", "dark"),
    [
        (1280, False),
        pytest.param(1280, True, marks=pytest.mark.nightly),
        pytest.param(390, False, marks=pytest.mark.nightly),
        (390, True),
    ],
)
def test_a_page_needs_nothing_and_complains_of_nothing(
    browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    with opened(browser, pages[name].as_uri(), width=width, dark=dark) as seen:
        drawn(seen)
        assert_quiet(seen, pages[name])
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        ground, ink = (
            seen.page.evaluate(f"getComputedStyle(document.body).{what}")
            for what in ("backgroundColor", "color")
        )
        assert (brightness(ground) < brightness(ink)) == dark
        assert contrast(ground, ink) > 7  # WCAG 2.2, level AAA
        text = seen.page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill")
        assert contrast(ground, text) > 7


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["report", "compare"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_toolbar_covers_no_legend(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    with opened(browser, pages[name].as_uri(), width=width) as seen:
        drawn(seen)
        for figure in seen.page.locator("[data-figure]:has(.legend)").all():
            figure.hover()
            bar = figure.locator(".modebar").bounding_box()
            legend = figure.locator(".legend").bounding_box()
            assert bar is not None
            assert legend is not None
            assert bar["y"] + bar["height"] <= legend["y"]
        seen.keep(f"toolbar-{name}-{width}")


def brightness(colour: str) -> float:
    """The relative luminance of rgb(r, g, b), by WCAG 2.2."""
    parts = [int(part) / 255 for part in colour.strip("rgb()").split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((brightness(one), brightness(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.nightly
def test_what_is_drawn_follows_the_theme(browser: Browser, pages: dict[str, Path]) -> None:
    stroke = "getComputedStyle(document.querySelector('[data-figure=curves] .js-line')).stroke"
    with opened(browser, pages["report"].as_uri()) as seen:
        drawn(seen)
        light = seen.page.evaluate(stroke)
        seen.page.emulate_media(color_scheme="dark")
        becomes(seen, f"{stroke} !== '{light}'")
        assert_quiet(seen, pages["report"])


def test_the_axis_and_the_table_do_as_they_are_told(
    browser: Browser, pages: dict[str, Path]
) -> None:
    kind = "document.querySelector('[data-figure=curves]').layout.yaxis.type"
    numbers = "[...document.querySelectorAll('table:last-of-type')].at(-1).tBodies[0].rows"
    with opened(browser, pages["report"].as_uri()) as seen:
        drawn(seen)
        before = seen.page.evaluate(kind)
        seen.page.click("button[data-log=curves]")
        becomes(seen, f"{kind} !== '{before}'")
        seen.page.click("th button:text-is('trial')")
        sorted_ones = seen.page.evaluate(f"[...{numbers}].map((row) => +row.cells[0].textContent)")
        assert sorted_ones == sorted(sorted_ones)
        assert len(sorted_ones) == 13
        assert_quiet(seen, pages["report"])


@pytest.mark.nightly
def test_two_hundred_trials_show_every_point_where_one_looks(
    browser: Browser, tmp_path: Path, ledger: Ledger
) -> None:
    study = fill(ledger)
    for n in range(12):
        losses = falling(0.5 + n / 30, 1000)
        losses[500] = 30.0 + n  # one point of a thousand, and it is seen
        trial(ledger, study, 0.01, losses)
    chosen = comparison.choose(ledger, ["small:all"])
    written = comparison.write(chosen, "train_loss", "step", tmp_path)
    heights = "document.querySelector('[data-figure]').data.map((one) => Math.max(...one.y))"
    with opened(browser, written.page.as_uri()) as seen:
        drawn(seen)
        assert 41.0 in [round(one, 3) for one in seen.page.evaluate(heights) if one]
        seen.page.evaluate(
            "Plotly.relayout(document.querySelector('[data-figure]'),"
            " {'xaxis.range[0]': 490.5, 'xaxis.range[1]': 510.5})"
        )
        counts = "document.querySelector('[data-figure]').data.map((one) => one.x.length)"
        becomes(seen, f"Math.max(...{counts}) < 30")
        shown = "document.querySelector('[data-figure]').data.at(-1).x"
        assert seen.page.evaluate(f"[...{shown}]") == list(range(490, 512))
        seen.page.click("button[data-of=best]")
        rises = "[...one.y].some((y, n) => n && y > one.y[n - 1])"
        rising = f"document.querySelector('[data-figure]').data.some((one) => {rises})"
        becomes(seen, f"!({rising})")
        assert_quiet(seen, written.page)


def test_house_prices_are_told_as_they_are(tmp_path: Path) -> None:
    """0.1 is not too high: it falls at every step and is the best of the three."""
    study = (ROOT / "studies/house_prices.toml").read_text()
    prepare(tmp_path, study, lr="[1e-4, 1e-2, 1e-1, 0.15]", trials="4")
    run = tuner(tmp_path, "run", "study.toml", "--json")
    assert run.code == 0, run.err
    file = tmp_path / run.json["report"]
    html = file.read_text()
    for said in (
        "Learning rate 0.1, constant, sgd: val_loss 86.18, trial 2.",
        "the training loss fell at every step",
        "parameters alternate",
        "converging, not converged, at 3.3 times the best",
        "Too low for sgd: val_loss 2.316e+05 after 50 steps",
        f"its loss growing by a factor of {(1 - 0.15 * 15.369875) ** 2:.4f} a step",
    ):
        assert said in html, said
    assert "1 too low, 2 good, 1 diverged" in html
    assert {one.name for one in file.parent.glob("*.png")} >= {"curves.png", "convergence.png"}
    again = tuner(tmp_path, "report", "house-prices", "--json", "--to", "elsewhere")
    assert again.json["in_mlflow"]
    assert (tmp_path / "elsewhere" / "report.html").read_text() == html
    shown = tuner(tmp_path, "status", "house-prices").out
    assert "Verdicts on rates: with sgd 1 too low, 2 good, 1 diverged." in shown
