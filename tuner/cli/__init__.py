"""The command line: parses, calls one function, prints.

Libraries that take long to import (torch, optuna, mlflow, pandas) are imported in the commands
that need them, so that `tuner --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

# One thread for the numerical libraries of samplers, before anything imports them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import click

from tuner import logs
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
from tuner.errors import TunerError

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


def main() -> NoReturn:
    """Run the command line; every error of ours becomes a message and an exit code."""
    logs.plain()
    try:
        code = cli.main(prog_name="tuner", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        code = EXIT_INTERRUPTED
    except TunerError as error:
        click.echo(f"Error: {error}", err=True)
        code = error.exit_code
    sys.exit(code if isinstance(code, int) else 0)
