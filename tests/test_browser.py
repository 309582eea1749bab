"""What the browser of the tests sees: a page's requests and errors, its width and its theme."""

from pathlib import Path

import pytest
from browser import PROGRAM, opened, program
from playwright.sync_api import Browser

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

PAGE = """<!doctype html><title>a page</title>
<script src="http://127.0.0.1:9/missing.js"></script>
<script>console.error("told"); throw new Error("thrown")</script>"""


def test_what_a_page_asks_for_and_complains_of_is_seen(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGE)
    with opened(browser, file.as_uri()) as seen:
        assert seen.page.title() == "a page"
    assert seen.asked_elsewhere(file.as_uri()) == ["http://127.0.0.1:9/missing.js"]
    assert {error.split(" (")[0] for error in seen.errors} >= {"told", "thrown"}


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_page_has_the_width_and_the_theme_asked_for(
    browser: Browser, width: int, dark: bool
) -> None:
    with opened(browser, width=width, dark=dark) as seen:
        assert seen.page.evaluate("innerWidth") == width
        assert seen.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == dark


@pytest.mark.parametrize(
    ("named", "on_path", "own", "found"),
    [
        ("named", "google-chrome", "own", "named"),
        (None, "google-chrome", "own", "google-chrome"),
        (None, "chromium", None, "chromium"),
        (None, None, "own", "own"),
        ("absent", "chromium", "own", "TUNER_TEST_CHROMIUM names no file: .*absent"),
        (None, None, None, "no Chromium: .*playwright install"),
    ],
)
def test_chromium_is_found_or_it_is_said_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    named: str | None,
    on_path: str | None,
    own: str | None,
    found: str,
) -> None:
    for name in (named, on_path, own):
        if name and name != "absent":
            (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(PROGRAM, str(tmp_path / named) if named else "")
    fallback = tmp_path / (own or "nothing")
    if (tmp_path / found).is_file():
        assert program(fallback) == tmp_path / found
    else:
        with pytest.raises(AssertionError, match=found):
            program(fallback)
