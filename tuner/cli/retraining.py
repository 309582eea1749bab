"""The section Retraining: retrain, approve, reject, predict, rollback, timetable, scheduler."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.base import EXIT_NOTHING_COMPLETED, asking, cli, open_own, print_json
from tuner.cli.options import (
    Command,
    StudyName,
    with_allow,
    with_json,
    with_log,
    with_metrics,
    with_reason,
    with_yes,
)
from tuner.core.errors import NotFoundError, UsageError
from tuner.observability import logs
from tuner.operations import context
from tuner.report import terminal

if TYPE_CHECKING:
    from tuner.ledger import Ledger

EXIT_KEPT = 10
"""The exit code of `tuner retrain --exit-code` when the champion is kept."""
EXIT_FINAL = 20
"""The same when the call was refused or has failed, so that a retry ends in the same way."""


@cli.command()
@click.argument("name", type=StudyName())
@click.option(
    "--run-key",
    metavar="KEY",
    help="Idempotency key of this retraining, such as a date; a known key returns its result. "
    "By default the time in UTC, in the study's key format if it has one.",
)
@click.option(
    "--force", is_flag=True, help="Let a key older than the champion's replace it, if it wins."
)
@click.option(
    "--wait/--no-wait",
    default=True,
    show_default=True,
    help="Wait for another process that has this retraining, or another one of the model.",
)
@click.option(
    "--exit-code",
    "exit_codes",
    is_flag=True,
    help="Exit with 10 if the champion stays: it is kept, or the challenger waits, is tried or was "
    "rejected; and with 20 if the call was refused or has failed, so that a retry would not help.",
)
@click.option("--history", is_flag=True, help="Show the retrainings so far and train nothing.")
@with_allow
@with_json
def retrain(
    name: str,
    run_key: str | None,
    force: bool,
    wait: bool,
    exit_codes: bool,
    history: bool,
    prefixes: tuple[str, ...],
    as_json: bool,
) -> int:
    """Train the successor of the study NAME's champion and promote it if it wins.

    It is trained at most once per run key. Call it again with the same key to resume after a crash.
    """
    from tuner.core.processes import stop_on_signals
    from tuner.ledger.retrainings import FAILED, PROMOTED
    from tuner.operations import retrain

    ledger = context.open_ledger()
    if history:
        _show_history(ledger, name, as_json)
        return 0
    with stop_on_signals("the same key resumes the retraining") as stop:
        try:
            found = retrain.retrain(
                ledger,
                context.addresses(),
                name,
                run_key or retrain.key_of_now(ledger, name),
                prefixes=prefixes,
                force=force,
                wait=wait,
                stop=stop,
            )
        except UsageError as error:
            error.exit_code = EXIT_FINAL if exit_codes else error.exit_code
            raise
    _print_result(found, as_json)
    if found["outcome"] == FAILED:
        return EXIT_FINAL if exit_codes else EXIT_NOTHING_COMPLETED
    return EXIT_KEPT if exit_codes and found["outcome"] != PROMOTED else 0


def _print_result(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        version = "" if found["version"] is None else f", version {found['version']}"
        terminal.echo(f"{found['model']}{version}: {found['outcome']}. {found['reason']}")
    for change in found["changed"]:
        terminal.echo(
            f"This is the recorded result of {found['run_key']!r}. Changed since: {change}. To "
            f"retrain, use another key, such as {found['run_key'] + ' again'!r}.",
            err=True,
        )


def _with_decision(command: Command) -> Command:
    """Add what `approve` and `reject` share."""
    key = click.option(
        "--run-key", metavar="KEY", help="Key of the retraining; by default the newest that waits."
    )
    return click.argument("name", type=StudyName())(key(with_reason(with_json(command))))


@cli.command()
@_with_decision
def approve(name: str, run_key: str | None, reason: str, as_json: bool) -> None:
    """Make the proposed challenger of the study NAME the champion, or promote a canary now."""
    from tuner.operations import approve

    ledger, places = context.open_ledger(), context.addresses()
    _print_result(approve.approve(ledger, places, name, run_key, reason), as_json)


@cli.command()
@_with_decision
def reject(name: str, run_key: str | None, reason: str, as_json: bool) -> None:
    """Leave the champion of the study NAME in use: reject its proposed challenger or its canary."""
    from tuner.operations import approve

    ledger, places = context.open_ledger(), context.addresses()
    _print_result(approve.reject(ledger, places, name, run_key, reason), as_json)


def _show_history(ledger: Ledger, name: str, as_json: bool) -> None:
    from tuner.core import cron
    from tuner.operations import retrain

    steps = retrain.history(ledger, name)
    if as_json:
        print_json({"study": name, "retrainings": [one.as_json() for one in steps]})
        return
    for one in steps:
        champion = "no champion" if one.champion is None else f"champion at {one.champion:.4g}"
        low, high = one.lr_range
        terminal.echo(
            f"{cron.run_key(one.ended_at)} {one.run_key}: {one.outcome}, {champion}, "
            f"lr {one.lr:.3g} of {low:.3g} to {high:.3g}. {one.reason}"
        )
    if not steps:
        terminal.echo(f"No retrainings yet; `tuner retrain {name}` starts one.")


@cli.command()
@click.argument("name", type=StudyName())
@click.option("--to", type=click.IntRange(1), help="Make this version the champion.")
@with_yes
@with_reason
@with_json
def rollback(name: str, to: int | None, yes: bool, reason: str, as_json: bool) -> None:
    """Make the champion before this one the champion of the study NAME's model again.

    On a terminal it asks for the reason, unless given. The replaced version is not promoted again.
    """
    from tuner.operations import rollback

    ledger, places = open_own(name, yes=yes), context.addresses()
    if not reason and sys.stdin.isatty():
        reason = click.prompt("Reason", default="", show_default=False, err=True)
    done = rollback.rollback(ledger, places, name, to, reason)
    if as_json:
        print_json({"study": name, **vars(done)})
    else:
        terminal.echo(f"{done.model}: version {done.now} is the champion again.")


@cli.command()
@click.argument("name", type=StudyName())
@click.option(
    "--input",
    "inputs",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Rows, as .csv, .json, .jsonl, .parquet or .npy; - reads standard input.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "json", "jsonl", "parquet", "npy"]),
    help="Format of the rows; by default that of the file's suffix, csv for standard input.",
)
@click.option(
    "--by-position",
    is_flag=True,
    help="Take columns without names as the model's features, in the model's order.",
)
@with_allow
@with_json
def predict(
    name: str,
    inputs: Path,
    kind: str | None,
    by_position: bool,
    prefixes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Predict rows with the champion of the study NAME's model; columns are matched by name."""
    from tuner.operations import predict

    found = predict.predict(
        context.open_ledger(),
        context.addresses(),
        name,
        inputs,
        prefixes=prefixes,
        kind=kind,
        by_position=by_position,
    )
    if not found.exact:
        terminal.echo(
            "The predictions differ in their last bits from those at training; this machine or "
            "its libraries round differently.",
            err=True,
        )
    outputs: list[Any] = found.outputs.tolist()
    if as_json:
        about = {"model": found.model, "version": found.version, "exact": found.exact}
        print_json({"study": name, **about, "outputs": outputs})
    else:
        for row in found.outputs.reshape(len(found.outputs), -1).tolist():
            terminal.echo(",".join(map(repr, row)))


@cli.group()
def timetable() -> None:
    """Manage the timetables of retrainings."""


@timetable.command()
@click.argument("study", type=StudyName())
@click.option(
    "--cron",
    required=True,
    metavar="EXPRESSION",
    help="Minute, hour, day of month, month, day of week; optionally seconds before them.",
)
@click.option("--zone", default="UTC", show_default=True, help="Time zone, by its IANA name.")
@click.option(
    "--name", type=StudyName(), help="Name of the timetable; by default that of the study."
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Seconds after which a tick that no scheduler has handled counts as missed.",
)
@click.option(
    "--catch-up",
    type=click.Choice(["latest", "all", "skip"]),
    default="latest",
    show_default=True,
    help="Which missed ticks to run later.",
)
@click.option(
    "--overlap",
    type=click.Choice(["skip", "queue"]),
    default="skip",
    show_default=True,
    help="Skip or queue a tick during the previous run.",
)
@click.option(
    "--enabled/--disabled", default=True, show_default=True, help="Enable or disable the timetable."
)
@with_yes
@with_json
def add(
    study: str,
    cron: str,
    zone: str,
    name: str | None,
    grace: float,
    catch_up: str,
    overlap: str,
    enabled: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Add a timetable that retrains STUDY, or change it, from now on."""
    from tuner.core.cron import Timetable
    from tuner.operations import timetables

    when = Timetable(expression=cron, zone=zone, grace=grace, catch_up=catch_up, overlap=overlap)
    ledger = open_own(study, yes=yes)
    added = timetables.add(ledger, study, when, name=name, enabled=enabled)
    if as_json:
        print_json(timetables.as_json(ledger, added))
    else:
        terminal.echo(_in_words(timetables.as_json(ledger, added)))


@timetable.command("list")
@with_json
def list_(as_json: bool) -> None:
    """List the timetables."""
    from tuner.operations import timetables

    ledger = context.open_ledger()
    found = [timetables.as_json(ledger, one) for one in timetables.timetables(ledger)]
    if as_json:
        print_json({"timetables": found})
        return
    for one in found:
        terminal.echo(_in_words(one))
    if not found:
        terminal.echo("No timetables yet; `tuner timetable add STUDY --cron '0 6 * * *'` adds one.")


@timetable.command()
@click.argument("name", type=StudyName())
@with_yes
@with_json
def remove(name: str, yes: bool, as_json: bool) -> None:
    """Remove the timetable NAME and its history; its retrainings are kept."""
    from tuner.operations import ownership, timetables

    ledger = context.open_ledger()
    study = next((one.study for one in timetables.timetables(ledger) if one.name == name), None)
    with suppress(NotFoundError):  # of the study; then the timetable is nobody's
        if study is not None:
            ownership.check(ledger, study, asking(yes=yes))
    timetables.remove(ledger, name)
    if as_json:
        print_json({"removed": name})
    else:
        terminal.echo(f"Timetable {name!r} is removed.")


@timetable.command()
@click.argument("name", type=StudyName(), required=False)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Number of ticks, newest first.",
)
@with_json
def history(name: str | None, limit: int, as_json: bool) -> None:
    """Show the ticks of the timetable NAME, or of all, and the outcomes of their runs."""
    from tuner.operations import timetables

    found = timetables.history(context.open_ledger(), name, limit)
    if as_json:
        print_json({"runs": found})
        return
    for one in found:
        outcome, reason = one["outcome"] or one["state"], one["reason"] or ""
        terminal.echo(f"{one['run_key']} {one['timetable']}: {outcome}. {reason}".rstrip())
    if not found:
        terminal.echo("No tick was due yet.")


@cli.command()
@click.option("--once", is_flag=True, help="Run what is due, then end.")
@with_log
@with_metrics
@with_allow
@with_json
def scheduler(
    once: bool,
    log: str | None,
    metrics_port: int | None,
    metrics_host: str,
    metrics_studies: int,
    prefixes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run the retrainings of the timetables until interrupted. Any number of schedulers may run."""
    logs.service(log)
    from tuner.core.processes import stop_on_signals
    from tuner.observability import serving
    from tuner.operations import scheduler

    ledger, places = context.open_ledger(), context.addresses()
    with (
        stop_on_signals("the next scheduler resumes the retraining") as stop,
        serving.serving(metrics_port, metrics_host, ledger.engine, places, metrics_studies),
    ):
        scheduler.run_scheduler(ledger, places, prefixes=prefixes, stop=stop, once=once)
    if as_json:
        print_json({"ended": True})


def _in_words(timetable: dict[str, Any]) -> str:
    state = "" if timetable["enabled"] else ", disabled"
    named = timetable["next_key"] != timetable["next"]
    key = f", with the run key {timetable['next_key']}" if named else ""
    return (
        "{name}: retrains {study!r} at {expression} ({zone}), next {next}{key} "
        "(catch-up {catch_up}, overlap {overlap}{state})"
    ).format(**timetable, key=key, state=state)
