"""Commands about timetables: timetable add, list, remove and history, and scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tuner.cli.base import cli, print_json, with_allow, with_json, with_log, with_metrics
from tuner.observability import logs
from tuner.operations import context
from tuner.report import terminal

if TYPE_CHECKING:
    from tuner.ledger.timetables import TimetableRecord


@cli.group()
def timetable() -> None:
    """Say when studies are retrained."""


@timetable.command()
@click.argument("study")
@click.option(
    "--cron",
    required=True,
    metavar="EXPRESSION",
    help="When: minute, hour, day of month, month, day of week; seconds may come first.",
)
@click.option("--zone", default="UTC", show_default=True, help="Whose clock, by its IANA name.")
@click.option("--name", help="What the timetable is called; by default as the study.")
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Seconds after which a tick that no scheduler has seen is missed.",
)
@click.option(
    "--catch-up",
    type=click.Choice(["latest", "all", "skip"]),
    default="latest",
    show_default=True,
    help="Which missed ticks are run nevertheless.",
)
@click.option(
    "--overlap",
    type=click.Choice(["skip", "queue"]),
    default="skip",
    show_default=True,
    help="What a tick does that comes while the run before it has not ended.",
)
@click.option("--enabled/--disabled", default=True, show_default=True, help="Whether it is heeded.")
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
    as_json: bool,
) -> None:
    """Retrain a STUDY on a timetable, a new one or a changed one, from now on."""
    from tuner.core.cron import Timetable
    from tuner.ledger.timetables import Timetables

    ledger = context.ledger()
    study = ledger.study(study).name
    when = Timetable(expression=cron, zone=zone, grace=grace, catch_up=catch_up, overlap=overlap)
    made = Timetables(ledger).add(name or study, study, when, enabled=enabled)
    if as_json:
        print_json(_as_json(made))
    else:
        terminal.echo(_in_words(made))


@timetable.command("list")
@with_json
def list_(as_json: bool) -> None:
    """List the timetables."""
    from tuner.ledger.timetables import Timetables

    found = Timetables(context.ledger()).all()
    if as_json:
        print_json({"timetables": [_as_json(one) for one in found]})
        return
    for one in found:
        terminal.echo(_in_words(one))
    if not found:
        terminal.echo(
            "No timetables yet; `tuner timetable add STUDY --cron '0 6 * * *'` makes one."
        )


@timetable.command()
@click.argument("name")
@with_json
def remove(name: str, as_json: bool) -> None:
    """Remove the timetable NAME and its history; its retrainings stay."""
    from tuner.ledger.timetables import Timetables

    Timetables(context.ledger()).remove(name)
    if as_json:
        print_json({"removed": name})
    else:
        terminal.echo(f"Timetable {name!r} is removed.")


@timetable.command()
@click.argument("name", required=False)
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="How many, newest first."
)
@with_json
def history(name: str | None, limit: int, as_json: bool) -> None:
    """Show the ticks of the timetable NAME, or of all, and what came of them."""
    from tuner.core.cron import key_of
    from tuner.ledger.timetables import Timetables

    found = Timetables(context.ledger()).history(name, limit)
    if as_json:
        print_json({"runs": [vars(one) | {"run_key": key_of(one.fire_at)} for one in found]})
        return
    for one in found:
        outcome = one.outcome or one.state
        terminal.echo(
            f"{key_of(one.fire_at)} {one.timetable}: {outcome}. {one.reason or ''}".rstrip()
        )
    if not found:
        terminal.echo("Nothing has come due yet.")


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
    prefixes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Retrain as the timetables say, until interrupted. Any number of them may run."""
    logs.service(log)
    from tuner.core.processes import told_to_stop
    from tuner.observability import serving
    from tuner.operations.schedule import schedule

    ledger, places = context.ledger(), context.places()
    with (
        told_to_stop("what is being retrained can be gone on with") as stop,
        serving.serving(metrics_port, metrics_host, ledger.engine, places),
    ):
        schedule(ledger, places, prefixes=prefixes, stop=stop, once=once)
    if as_json:
        print_json({"ended": True})


def _as_json(one: TimetableRecord) -> dict[str, Any]:
    from tuner.core.cron import key_of

    about = {"name": one.name, "study": one.study, "enabled": one.enabled}
    return about | vars(one.when) | {"next": key_of(one.next_at)}


def _in_words(one: TimetableRecord) -> str:
    about = _as_json(one)
    state = "" if about["enabled"] else ", disabled"
    return (
        f"{about['name']}: retrains {about['study']!r} at {about['expression']} ({about['zone']}), "
        f"next {about['next']} (catch-up {about['catch_up']}, overlap {about['overlap']}{state})"
    )
