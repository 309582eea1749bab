"""What a person sees of us: a console of the right width, and what to type next."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from rich.console import Console

from tuner.core.text import printable

PLAIN_WIDTH = 240  # what the widest table needs


def console(*, stderr: bool = False) -> Console:
    """Make a console; where nobody says how wide a line is, tables get what they need."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PLAIN_WIDTH
    return made


def program() -> str:
    """Say what to type for this program, which need not be on the path."""
    if shutil.which("tuner"):
        return "tuner"
    script = Path(sys.argv[0])
    return os.path.relpath(script) if script.name == "tuner" else f"{sys.executable} -m tuner"


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line as it is: nothing in it is obeyed, and the terminal alone breaks it."""
    shown = "\n".join(printable(line) for line in text.split("\n"))
    console.print(shown, style=style, markup=False, soft_wrap=True)
