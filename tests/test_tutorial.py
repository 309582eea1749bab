"""The tutorial's commands run, its claims hold, and its numbers are those that they print now."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "tutorial"
PAGE = (TUTORIAL / "README.md").read_text()
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")

# Another processor, or another Python's help, trains to other digits, and a search goes elsewhere.
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the tutorial in an empty folder; it fails where a claim does not hold."""
    folder = tmp_path_factory.mktemp("tutorial")
    done = subprocess.run(
        [sys.executable, str(TUTORIAL / "make.py"), "--into", str(folder)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def without_searches(page: str) -> str:
    return re.sub(r"<!-- searched -->.*?<!-- /searched -->", "", page, flags=re.DOTALL)


@pytest.mark.nightly
@pytest.mark.timeout(900)  # all of its studies, one after another, beside other tests
def test_the_numbers_of_the_page_are_those_of_its_commands(made: Path) -> None:
    then, now = without_searches(PAGE), without_searches((made / "README.md").read_text())
    assert NUMBER.sub("#", then) == NUMBER.sub("#", now)
    for said, measured in zip(NUMBER.findall(then), NUMBER.findall(now), strict=True):
        said_value, value = (float(text.replace(",", "")) for text in (said, measured))
        assert value == pytest.approx(said_value, rel=TOLERANCE), f"said {said}, got {measured}"


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_the_pictures_of_the_page_are_made_by_it(made: Path) -> None:
    named = set(re.findall(r"\]\((images/[^)]+)\)", PAGE))
    assert named == {f"images/{path.name}" for path in (made / "images").iterdir()}
    assert named == {f"images/{path.name}" for path in (TUTORIAL / "images").iterdir()}
    assert sum(path.stat().st_size for path in (made / "images").iterdir()) < 1_000_000


def test_the_page_is_the_text_with_numbers_in_it() -> None:
    pieces = re.split(r"@[a-z][\w.]*\w@", (TUTORIAL / "text.md").read_text())
    place = 0
    for piece in pieces:
        place = PAGE.find(piece, place)
        assert place >= 0, f"`make tutorial` was not run after this changed: {piece[:200]!r}"
        place += len(piece)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", PAGE):
        assert (TUTORIAL / target).exists(), target
