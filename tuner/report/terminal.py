"""Output to a terminal: a console of suitable width, plain lines, and the program's name."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from tuner.core.redaction import redacted
from tuner.core.text import printable, printable_lines

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 240  # what the widest table needs


def console(*, stderr: bool = False) -> Console:
    """Return a console; without a terminal or COLUMNS, it is wide enough for every table."""
    from tuner.report.safe_console import SafeConsole

    # FORCE_COLOR is for logs that somebody watches
    plain = False if is_file(sys.stderr if stderr else sys.stdout) else None
    made = SafeConsole(
        stderr=stderr, highlight=False, markup=False, emoji=False, force_terminal=plain
    )
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PLAIN_WIDTH
    return made


def is_file(stream: TextIO) -> bool:
    """Return whether a stream writes into a file, where colour codes would be in the way."""
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):  # it has no descriptor
        return False


def echo(text: str, *, err: bool = False, lines: bool = False) -> None:
    """Print a line on standard output or standard error, printable and without secrets.

    Line ends are escaped too, since they may come from a name, unless `lines` is true.
    """
    escape = printable_lines if lines else printable
    click.echo(escape(redacted(text)), err=err)


def program() -> str:
    """Return the command that starts this program, which may not be on the path."""
    if shutil.which("tuner"):
        return "tuner"
    script = Path(sys.argv[0])
    return os.path.relpath(script) if script.name == "tuner" else f"{sys.executable} -m tuner"


def print_text(console: Console, text: str, style: str = "") -> None:
    """Print a line as `echo` does, with a style; only the terminal wraps it."""
    console.print(printable(redacted(text)), style=style, markup=False, soft_wrap=True)
