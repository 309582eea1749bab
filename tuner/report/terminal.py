"""What a person sees of us: a console of the right width, and what to type next."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tuner.core.redaction import redacted
from tuner.core.text import is_readable, printable, printable_lines

PLAIN_WIDTH = 240  # what the widest table needs


class SafeConsole(Console):
    """A console that escapes what a terminal would obey in any text, however it is rendered.

    Markup and emoji codes in strings are not interpreted.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Yield printable segments, and the console's own movements of the cursor."""
        for segment in super().render(renderable, options):
            if segment.control or is_readable(segment.text):
                yield segment
            else:
                yield Segment(printable_lines(segment.text), segment.style)


def console(*, stderr: bool = False) -> Console:
    """Make a console; where nobody says how wide a line is, tables get what they need."""
    made = SafeConsole(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PLAIN_WIDTH
    return made


def echo(text: str, *, err: bool = False, lines: bool = False) -> None:
    """Print a line on standard output or standard error, printable and without secrets.

    A line end in it is escaped, as it may come from a name, unless `lines` says that it is ours.
    """
    escape = printable_lines if lines else printable
    click.echo(escape(redacted(text)), err=err)


def program() -> str:
    """Say what to type for this program, which need not be on the path."""
    if shutil.which("tuner"):
        return "tuner"
    script = Path(sys.argv[0])
    return os.path.relpath(script) if script.name == "tuner" else f"{sys.executable} -m tuner"


def say(console: Console, text: str, style: str = "") -> None:
    """Print a line as `echo` does, with a style; the terminal alone breaks it."""
    console.print(printable(redacted(text)), style=style, markup=False, soft_wrap=True)
