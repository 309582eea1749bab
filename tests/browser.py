"""A real Chromium for tests: where it is, its pages in any width and theme, and what they did."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

PROGRAM = "TUNER_TEST_CHROMIUM"
"""The environment variable that names a Chromium."""
ON_PATH = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ("--no-sandbox", "--disable-gpu")
"""Tests run as root in containers, where the sandbox does not start, and without a display."""
NO_ASSISTANT = """
try { localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true") } catch { }
"""
"""MLflow's panel for chatting opens by itself at a first visit, and takes a third of the page."""
SHOTS = Path(os.environ.get("TUNER_TEST_SCREENSHOTS", Path(__file__).parents[1] / "screenshots"))
"""Where tests leave pictures of pages."""
HEIGHT = 900
"""Of the windows, in pixels of a page."""


@dataclass(frozen=True)
class Watched:
    """A page, and what it has done since it was opened."""

    page: Page
    errors: list[str] = field(default_factory=list)  # of its console, and exceptions
    requests: list[str] = field(default_factory=list)  # every address that it asked for

    def keep(self, name: str) -> None:
        """Leave a picture of the page among the screenshots."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png")

    def asked_elsewhere(self, of_itself: str) -> list[str]:
        """Give the addresses that do not begin with `of_itself`; data in a page are none."""
        own = (of_itself, "data:", "blob:", "about:")
        return [url for url in self.requests if not url.startswith(own)]


def program(own: Path) -> Path:
    """Find Chromium: the one that is named, one on the path, or Playwright's `own`."""
    named = os.environ.get(PROGRAM)
    if named:
        assert Path(named).is_file(), f"{PROGRAM} names no file: {named}"
        return Path(named)
    for name in ON_PATH:
        found = shutil.which(name)
        if found:
            return Path(found)
    assert own.is_file(), (
        f"no Chromium: {PROGRAM} is not set, none of {', '.join(ON_PATH)} is on the path, and "
        "Playwright has installed none; `apt-get install chromium`, or else `playwright install "
        "chromium`, brings one"
    )
    return own


@contextmanager
def launched() -> Iterator[Browser]:
    """Start a browser without a window."""
    with sync_playwright() as playwright:
        found = program(Path(playwright.chromium.executable_path))
        browser = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Browser,
    url: str = "about:blank",
    *,
    width: int = 1280,
    dark: bool = False,
    login: tuple[str, str] | None = None,
) -> Iterator[Watched]:
    """Open a page in a profile of its own, so that nothing of another one is remembered."""
    context = browser.new_context(
        viewport={"width": width, "height": HEIGHT},
        color_scheme="dark" if dark else "light",
        accept_downloads=True,
        http_credentials=None if login is None else {"username": login[0], "password": login[1]},
    )
    try:
        watched = Watched(context.new_page())

        def note(message: ConsoleMessage) -> None:
            if message.type == "error":
                watched.errors.append(f"{message.text} ({message.location.get('url', '')})")

        watched.page.on("console", note)
        watched.page.on("pageerror", lambda error: watched.errors.append(str(error)))
        watched.page.on("request", lambda request: watched.requests.append(request.url))
        watched.page.add_init_script(NO_ASSISTANT)
        watched.page.goto(url)
        yield watched
    finally:
        context.close()
