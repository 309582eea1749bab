"""Commands that govern a study: pause, resume, stop, delete."""

from __future__ import annotations

import click

from tuner.cli.base import cli, print_json, with_json
from tuner.operations import context
from tuner.report import terminal


@cli.command()
@click.argument("name")
@with_json
def pause(name: str, as_json: bool) -> None:
    """Let no more trials of the study NAME be taken up; running ones go on to their end."""
    from tuner.operations import manage

    _tell(manage.pause(context.ledger(), name), as_json)


@cli.command()
@click.argument("name")
@with_json
def resume(name: str, as_json: bool) -> None:
    """Open the study NAME again after a pause or a stop; cancelled trials stay so."""
    from tuner.operations import manage

    _tell(manage.resume(context.ledger(), name), as_json)


@cli.command()
@click.argument("name")
@click.option("--reason", default="", help="Why, for whoever reads about it later.")
@with_json
def stop(name: str, reason: str, as_json: bool) -> None:
    """Cancel the running and waiting trials of the study NAME, and take up no more."""
    from tuner.operations import manage

    _tell(manage.stop(context.ledger(), context.places(), name, reason), as_json)


@cli.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also while its trials are being trained.")
@with_json
def delete(name: str, yes: bool, force: bool, as_json: bool) -> None:
    """Delete the study NAME from ledger, Optuna, MLflow, and its checkpoints.

    Interrupted, it may be run again. MLflow keeps deleted runs until its own `mlflow gc`.
    """
    from tuner.operations import manage

    ledger = context.ledger()
    trials = len(ledger.trials(ledger.study(name).id))
    if not yes:
        click.confirm(f"Delete study {name!r} with {trials} trials?", abort=True, err=True)
    manage.delete(ledger, context.places(), name, force=force)
    if as_json:
        print_json({"study": name, "deleted": True, "trials": trials})
    else:
        terminal.echo(f"Study {name!r} and its {trials} trials are deleted.")


def _tell(status: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(status)
    else:
        reason = f": {status['reason']}" if status["reason"] else "."
        terminal.echo(f"Study {status['study']!r} is {status['state']}{reason}")
