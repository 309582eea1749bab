"""Commands about the database and study files: db, schema."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tuner.cli.base import (
    cli,
    print_json,
    with_json,
)
from tuner.config import reading
from tuner.core.errors import UsageError
from tuner.ledger import database
from tuner.operations import context
from tuner.report import terminal


@cli.group()
def db() -> None:
    """Care for the database."""


@db.command()
@click.option(
    "--worker",
    "workers",
    multiple=True,
    metavar="NAME=FILE",
    help="Let the login NAME work, with the password in FILE; repeatable, PostgreSQL only.",
)
@with_json
def upgrade(workers: tuple[str, ...], as_json: bool) -> None:
    """Bring the tables of tuner, Optuna and MLflow to this version's schema."""
    places = context.places()
    left = database.upgrade(places, dict(_login(worker) for worker in workers))
    if left:
        terminal.echo(f"The tables are there, but {left}.", err=True)
    if as_json:
        print_json({"upgraded": places.shown(), "left": left})
    else:
        terminal.echo(f"{places.shown()['optuna']} is up to date.")


def _login(given: str) -> tuple[str, str]:
    """Read NAME=FILE and the password in that file."""
    name, _, file = given.partition("=")
    if not (name and file):
        raise UsageError(f"--worker: expected NAME=FILE, got {given!r}")
    try:
        password = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--worker: cannot read a password from {file}: {error}") from error
    if not password:
        raise UsageError(f"--worker: expected a password in {file}, got nothing")
    return name, password


@db.command()
@with_json
def urls(as_json: bool) -> None:
    """Print which address to give to which tool."""
    shown = context.places().shown()
    if as_json:
        print_json(shown)
        return
    for tool, url in shown.items():
        terminal.echo(f"{tool:12}{url}")


@cli.command()
@with_json
def schema(as_json: bool) -> None:
    """Print the JSON Schema of study files."""
    indent = None if as_json else 2
    terminal.echo(json.dumps(reading.json_schema(), indent=indent), lines=True)
