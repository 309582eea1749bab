"""The command line: parses, calls one function, prints.

Libraries that take long to import (torch, optuna, mlflow, pandas) are imported in the commands
that need them, so that `tuner --help` answers at once.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import NoReturn

# One thread for the numerical libraries of samplers, before anything imports them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import click

from tuner.cli import (
    checking,
    cleaning,
    database,
    governing,
    looking,
    probing,
    reporting,
    retraining,
    starting,
    timetables,
    tuning,
)
from tuner.cli.base import EXIT_INTERRUPTED, cli
from tuner.core.errors import NotFoundError, OutputError, TunerError, UsageError
from tuner.observability import logs
from tuner.report import terminal

__all__ = [
    "checking",
    "cleaning",
    "cli",
    "database",
    "governing",
    "looking",
    "main",
    "probing",
    "reporting",
    "retraining",
    "starting",
    "timetables",
    "tuning",
]


CANNOT_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EPIPE})
"""Errors of a disk that is full or read-only, and of output that nobody reads."""


def main() -> NoReturn:
    """Run the command line; every error of ours becomes a message and an exit code."""
    logs.plain()
    try:
        code = cli.main(prog_name="tuner", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        said = io.StringIO()
        error.show(said)
        terminal.echo(said.getvalue().rstrip(), err=True, lines=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        terminal.echo("interrupted", err=True)
        code = EXIT_INTERRUPTED
    except TunerError as error:
        terminal.echo(f"Error: {error}", err=True, lines=_has_lines(error))
        code = error.exit_code
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        code = _cannot_write(error)
    sys.exit(code if isinstance(code, int) else 0)


def _has_lines(error: TunerError) -> bool:
    """Return whether the line ends in an error's message are ours: mistakes in a list."""
    return isinstance(error, UsageError) and not isinstance(error, NotFoundError)


def _cannot_write(error: OSError) -> int:
    """Say that output cannot be written; give the exit code."""
    # what is left in the buffer would be written, and fail, once more at the interpreter's end
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:  # whoever read it, such as `head`, has seen enough
        return OutputError.exit_code
    where = error.filename or "the output"
    terminal.echo(
        f"Error: cannot write {where}: {error.strerror}; make room and run the command again. What "
        "is committed of the trials is safe in the ledger.",
        err=True,
    )
    return OutputError.exit_code
