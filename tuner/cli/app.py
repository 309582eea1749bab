"""All commands, and their errors as messages and exit codes.

Libraries that take long to import (torch, optuna, mlflow, pandas) are imported in the commands
that need them, so that `tuner --help` answers at once.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import NoReturn

import click

from tuner.cli import administration, look, retraining, start, team
from tuner.cli.base import EXIT_INTERRUPTED, cli
from tuner.core.errors import NotFoundError, OutputError, TunerError, UsageError
from tuner.observability import logs
from tuner.report import terminal

__all__ = ["administration", "cli", "look", "retraining", "run", "start", "team"]

CANNOT_WRITE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EPIPE})
"""Errors of a full or read-only disk, and of output whose reader has ended."""


def run() -> NoReturn:
    """Run the command line; print every error of ours as a message and exit with its code."""
    logs.plain()
    try:
        code = cli.main(prog_name="tuner", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        message = io.StringIO()
        error.show(message)
        terminal.echo(message.getvalue().rstrip(), err=True, lines=True)
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
    """Return whether the line ends in an error's message are our own: a list of mistakes."""
    return isinstance(error, UsageError) and not isinstance(error, NotFoundError)


def _cannot_write(error: OSError) -> int:
    """Report that output cannot be written. Return the exit code."""
    # the interpreter would try to write the rest of the buffer again when it ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:  # the reader, such as `head`, has ended
        return OutputError.exit_code
    where = error.filename or "the output"
    terminal.echo(
        f"Error: cannot write {where}: {error.strerror}; free some space and run the command "
        "again. Committed trials are safe in the ledger.",
        err=True,
    )
    return OutputError.exit_code
