"""Commands about the database and study files: db, schema."""

from __future__ import annotations

import json

import click

from tuner import here, storage, studyfile
from tuner.cli.base import (
    cli,
    print_json,
    with_json,
)


@cli.group()
def db() -> None:
    """Care for the database."""


@db.command()
@with_json
def upgrade(as_json: bool) -> None:
    """Bring the tables of tuner, Optuna and MLflow to this version's schema."""
    places = here.places()
    left = storage.upgrade(places)
    if left:
        click.echo(f"The tables are there, but {left}.", err=True)
    if as_json:
        print_json({"upgraded": places.shown(), "left": left})
    else:
        click.echo(f"{places.shown()['optuna']} is up to date.")


@db.command()
@with_json
def urls(as_json: bool) -> None:
    """Print which address to give to which tool."""
    shown = here.places().shown()
    if as_json:
        print_json(shown)
        return
    for tool, url in shown.items():
        click.echo(f"{tool:12}{url}")


@cli.command()
@with_json
def schema(as_json: bool) -> None:
    """Print the JSON Schema of study files."""
    indent = None if as_json else 2
    click.echo(json.dumps(studyfile.json_schema(), indent=indent))
