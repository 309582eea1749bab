"""Commands that check results, and take them away: confirm, rerun, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuner.analysis import ranking
from tuner.cli.base import cli, print_json, with_allow, with_json
from tuner.cli.tuning import exit_code
from tuner.operations import context
from tuner.report import terminal

if TYPE_CHECKING:
    from tuner.operations.confirm import Confirmation


@cli.command()
@click.argument("name")
@click.option(
    "--top", type=click.IntRange(2), default=3, show_default=True, help="How many trials."
)
@click.option(
    "--seeds", type=click.IntRange(1), default=5, show_default=True, help="Trials of each."
)
@with_allow
@with_json
def confirm(name: str, top: int, seeds: int, prefixes: tuple[str, ...], as_json: bool) -> int:
    """Train the best trials of the study NAME again, to see whether the winner is the winner.

    Under new seeds, as trials of the study "NAME confirm". Interrupted and run again, it goes on.
    """
    from tuner.operations import confirm as confirming
    from tuner.operations import run
    from tuner.report import progress

    ledger, places = context.ledger(), context.places()
    study = ledger.study(name)
    again = confirming.submit(ledger, study, top=top, seeds=seeds)
    console = terminal.console(stderr=as_json)
    with progress.shown(console, ledger, again):
        todo = run.Work(names=(again.name,), prefixes=prefixes, until_idle=True)
        ended = run.train(ledger, places, todo, recorder=True)
    found = confirming.compare(ledger, study, ledger.study(again.name), seeds)
    left = confirming.unfinished(ledger, again)
    if as_json:
        print_json(found.as_json() | {"unfinished": left})
    else:
        _print(found)
        if left:
            terminal.echo(f"{left} trials are not done yet; the same command goes on.", err=True)
    return exit_code(ended, completed=any(one.completed for one in found.candidates))


def _print(found: Confirmation) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("trial", "parameters", "found", "mean", "seeds", "worse than the winner by"):
        table.add_column(title, justify="left" if title == "parameters" else "right")
    for one in found.candidates:
        worse = one.worse
        said = "" if worse is None else f"{worse.mean:.3g} [{worse.low:.3g}, {worse.high:.3g}]"
        mean = "" if one.mean is None else f"{one.mean:.4g}"
        seeds = f"{len(one.completed)}/{len(one.values)}"
        short = ranking.in_short(one.params)
        row = (str(one.trial), short, f"{one.found:.4g}", mean, seeds, said)
        table.add_row(*row)
    console = terminal.console()
    console.print(table)
    terminal.say(console, found.sentence, style="bold")


@cli.command()
@click.argument("name")
@click.argument("trial", type=click.IntRange(0))
@with_allow
@with_json
def rerun(name: str, trial: int, prefixes: tuple[str, ...], as_json: bool) -> int:
    """Train one TRIAL of the study NAME again and compare it with its curve, bit by bit.

    Nothing is written. Exit code 0 when all is equal, 1 when not.
    """
    from tuner.operations import rerun as rerunning

    ledger = context.ledger()
    found = rerunning.rerun(ledger, ledger.study(name), trial, prefixes)
    if as_json:
        print_json(found.as_json())
    else:
        terminal.echo(found.sentence)
    return 0 if found.equal else 1


@cli.command()
@click.argument("name")
@click.option(
    "--to",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder to write to.",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "parquet"]),
    default="csv",
    show_default=True,
    help="The format of the files.",
)
@with_json
def export(name: str, folder: Path, file_format: str, as_json: bool) -> None:
    """Write the trials and the curves of the study NAME as two tables into a folder.

    A row of curves is one measured value: trial, step, metric, value, time.
    """
    from tuner.operations import export as exporting

    ledger = context.ledger()
    files = exporting.export(ledger, ledger.study(name), folder, file_format)
    if as_json:
        print_json({"study": name, "files": {what: str(file) for what, file in files.items()}})
    else:
        for file in files.values():
            terminal.echo(str(file))
