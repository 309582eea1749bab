"""The generated parts of docs/chaos.md, each between two markers."""

from __future__ import annotations

import re
from pathlib import Path

from tuner.core.failpoints import PLACES

PAGE = Path(__file__).parents[2] / "docs" / "chaos.md"


def failpoints() -> str:
    """Give the table of failpoints."""
    lines = [f"| `{place}` | {what} |" for place, what in PLACES.items()]
    return "\n".join(["| place | then |", "|---|---|", *lines])


def read(part: str) -> str:
    """Give a part of the page."""
    begin, end = f"<!-- {part} -->\n", f"\n<!-- end of {part} -->"
    return PAGE.read_text().partition(begin)[2].partition(end)[0]


def write(part: str, content: str) -> None:
    """Replace a part of the page."""
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    text, count = pattern.subn(lambda _: f"{begin}\n{content}\n{end}", PAGE.read_text())
    assert count == 1, f"{PAGE}: expected {begin} ... {end} once, found it {count} times"
    PAGE.write_text(text)
