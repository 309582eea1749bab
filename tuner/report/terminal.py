"""Output to a terminal: a console of suitable width, plain lines, and the program's name."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from rich.console import Console

from tuner.core.text import printable

PLAIN_WIDTH = 240  # what the widest table needs


def console(*, stderr: bool = False) -> Console:
    """Return a console; without a terminal or COLUMNS, it is wide enough for every table."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PLAIN_WIDTH
    return made


def program() -> str:
    """Return the command that starts this program, which may not be on the path."""
    if shutil.which("tuner"):
        return "tuner"
    script = Path(sys.argv[0])
    return os.path.relpath(script) if script.name == "tuner" else f"{sys.executable} -m tuner"


def print_text(console: Console, text: str, style: str = "") -> None:
    """Print text without markup and control characters; only the terminal wraps it."""
    shown = "\n".join(printable(line) for line in text.split("\n"))
    console.print(shown, style=style, markup=False, soft_wrap=True)
