"""The command that clears away what is old: gc."""

from __future__ import annotations

from dataclasses import asdict

import click

from tuner.cli.base import cli, print_json, with_json
from tuner.operations import context
from tuner.report import terminal


@cli.command()
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    required=True,
    metavar="DAYS",
    help="Studies in which nothing has happened for so many days.",
)
@click.option(
    "--keep-newest",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Keep the N studies in which something happened last.",
)
@click.option("--keep", multiple=True, metavar="NAME", help="Keep this study; repeatable.")
@click.option("--yes", is_flag=True, help="Remove them; without it, only say which.")
@with_json
def gc(
    older_than: float, keep_newest: int, keep: tuple[str, ...], yes: bool, as_json: bool
) -> None:
    """Remove old studies from ledger, Optuna and MLflow, with files; never a champion's."""
    from tuner.operations import retention

    ledger, places = context.ledger(), context.places()
    made = retention.plan(ledger, places, older_than=older_than, keep_newest=keep_newest, keep=keep)
    purged, problem = retention.collect(ledger, places, made) if yes else ([], None)
    if as_json:
        print_json({**asdict(made), "removed": yes, "purged": purged, "problem": problem})
        return
    for name in made.remove:
        terminal.echo(f"{'removed' if yes else 'would be removed'}: {name}")
    for one in made.kept:
        terminal.echo(f"kept: {one.study}, since {one.reason}")
    if made.remove and not yes:
        terminal.echo("Nothing has been removed; --yes does.")
    if problem:
        terminal.echo(problem, err=True)
