"""Commands that retrain: retrain, rollback, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tuner.cli.base import EXIT_NOTHING_COMPLETED, cli, print_json, with_allow, with_json
from tuner.operations import context
from tuner.report import terminal

EXIT_KEPT = 10


@cli.command()
@click.argument("name")
@click.option(
    "--run-key",
    metavar="KEY",
    help="What this retraining is of, such as a date; with one that is known its result is given. "
    "By default the time in UTC.",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Wait for another process that is at this retraining, or at another one of the model.",
)
@click.option("--exit-code", "tells", is_flag=True, help="End with 10 when the champion is kept.")
@click.option("--history", is_flag=True, help="Train nothing; show the retrainings so far.")
@with_allow
@with_json
def retrain(
    name: str,
    run_key: str | None,
    wait: bool,
    tells: bool,
    history: bool,
    prefixes: tuple[str, ...],
    as_json: bool,
) -> int:
    """Train the successor of the study NAME's champion, and promote it if it wins. Once a key.

    Killed in the middle, the next call with that key goes on.
    """
    from tuner.operations import retrain as retraining

    ledger = context.ledger()
    if history:
        _show_history(name, as_json)
        return 0
    from tuner.core.cron import key_of
    from tuner.core.processes import told_to_stop
    from tuner.ledger import Retrainings
    from tuner.ledger.retrainings import FAILED, KEPT

    with told_to_stop("the retraining can be gone on with") as stop:
        found = retraining.retrain(
            ledger,
            context.places(),
            name,
            run_key or key_of(Retrainings(ledger).now()),
            prefixes=prefixes,
            wait=wait,
            stop=stop,
        )
    if as_json:
        print_json(found)
    else:
        version = "" if found["version"] is None else f", version {found['version']}"
        terminal.echo(f"{found['model']}{version}: {found['outcome']}. {found['reason']}")
    if found["outcome"] == FAILED:
        return EXIT_NOTHING_COMPLETED
    return EXIT_KEPT if tells and found["outcome"] == KEPT else 0


def _show_history(name: str, as_json: bool) -> None:
    from tuner.analysis import drift
    from tuner.core.cron import key_of
    from tuner.ledger import Retrainings

    ledger = context.ledger()
    steps = drift.steps(Retrainings(ledger).history(ledger.study(name).name))
    if as_json:
        print_json({"study": name, "retrainings": [one.as_json() for one in steps]})
        return
    for one in steps:
        champion = "no champion" if one.champion is None else f"champion at {one.champion:.4g}"
        low, high = one.lr_range
        terminal.echo(
            f"{key_of(one.ended_at)} {one.run_key}: {one.outcome}, {champion}, lr {one.lr:.3g} of "
            f"{low:.3g} to {high:.3g}. {one.reason}"
        )
    if not steps:
        terminal.echo(f"No retrainings yet; `tuner retrain {name}` makes one.")


@cli.command()
@click.argument("name")
@click.option("--to", type=click.IntRange(1), help="This version instead of the one before.")
@with_json
def rollback(name: str, to: int | None, as_json: bool) -> None:
    """Make the champion before this one the champion of the study NAME's model again."""
    from tuner.operations import retrain as retraining

    done = retraining.rollback(context.ledger(), context.places(), name, to)
    if as_json:
        print_json({"study": name, **vars(done)})
    else:
        terminal.echo(f"{done.model}: version {done.now} is the champion again.")


@cli.command()
@click.argument("name")
@click.option(
    "--input",
    "inputs",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Rows of numbers, as .npy or .csv.",
)
@with_json
def predict(name: str, inputs: Path, as_json: bool) -> None:
    """Let the champion of the study NAME's model predict the rows of a file."""
    from tuner.operations import retrain as retraining

    found = retraining.predict(context.ledger(), context.places(), name, inputs)
    if not found.exact:
        terminal.echo(
            "The model does not predict to the last bit what it did when it was trained; this "
            "machine or its libraries round differently.",
            err=True,
        )
    outputs: list[Any] = found.outputs.tolist()
    if as_json:
        about = {"model": found.model, "version": found.version, "exact": found.exact}
        print_json({"study": name, **about, "outputs": outputs})
    else:
        for row in found.outputs.reshape(len(found.outputs), -1).tolist():
            terminal.echo(",".join(map(repr, row)))
