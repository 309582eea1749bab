"""Commands that draw: report, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from tuner.cli.base import cli, print_json, with_json
from tuner.operations import context
from tuner.report import terminal


@cli.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--to", type=click.Path(path_type=Path), metavar="FOLDER", help="Where to write it.")
@click.option("--ui", metavar="URL", help="Where the MLflow UI is, for links to runs.")
@click.option(
    "--tracked/--not-tracked",
    default=True,
    help="Link to runs, and put the report beside the study's parent run.",
)
@with_json
def report(
    names: tuple[str, ...], to: Path | None, ui: str | None, tracked: bool, as_json: bool
) -> None:
    """Write the report of the study NAME as one page of HTML, and its pictures.

    Several names: side by side on one page.
    """
    from tuner.operations import report as reporting

    ledger = context.ledger()
    studies = [ledger.study(name) for name in names]
    done = reporting.report(ledger, studies, context.places(), to=to, ui=ui, tracked=tracked)
    if as_json:
        pictures = [str(path) for path in done.written.pictures]
        found = {"studies": list(names), "report": str(done.written.page), "pictures": pictures}
        print_json(found | {"in_mlflow": done.in_mlflow})
    else:
        terminal.echo(f"Report: {done.written.page}")
    if done.problem:
        terminal.echo(f"The report was not uploaded to MLflow: {done.problem}", err=True)


@cli.command()
@click.argument("trials", nargs=-1, required=True, metavar="STUDY:TRIAL...")
@click.option("--metric", default="train_loss", show_default=True, help="What is drawn.")
@click.option(
    "--by",
    type=click.Choice(["step", "time", "fraction"]),
    default="step",
    show_default=True,
    help="What curves are aligned by; a fraction is of the horizon.",
)
@click.option("--to", type=click.Path(path_type=Path), metavar="FOLDER", help="Where to write it.")
@with_json
def compare(
    trials: tuple[str, ...],
    metric: str,
    by: Literal["step", "time", "fraction"],
    to: Path | None,
    as_json: bool,
) -> None:
    """Draw the curves of any trials together, every point of them, as HTML and PNG.

    A TRIAL is a number, a range such as 0-9, `best` or `all`.
    """
    from tuner.report import comparing

    written = comparing.write(comparing.choose(context.ledger(), trials), metric, by, to)
    if as_json:
        pictures = [str(path) for path in written.pictures]
        print_json({"page": str(written.page), "pictures": pictures})
    else:
        terminal.echo(f"Comparison: {written.page}")
