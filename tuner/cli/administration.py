"""The section Administration: config, project, doctor, db, gc, delete."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tuner.cli.base import cli, open_own, print_json
from tuner.cli.options import StudyName, with_json, with_reason
from tuner.core.errors import UsageError
from tuner.core.redaction import redacted_url
from tuner.operations import context, settings
from tuner.report import terminal

if TYPE_CHECKING:
    from tuner.ledger.database import Login

Command = TypeVar("Command", bound=Callable[..., Any])


@cli.command()
@click.option("--database-url", metavar="URL", help="The database of the ledger.")
@click.option("--tracking-uri", metavar="URL", help="The MLflow server of that database.")
@click.option("--project", metavar="NAME", help="The project of studies without a slash.")
@with_json
def config(
    database_url: str | None, tracking_uri: str | None, project: str | None, as_json: bool
) -> None:
    """Show your settings, or write them once, instead of exporting variables in each shell.

    An empty text removes a setting. A variable of the environment goes first.
    """
    given = {"database_url": database_url, "tracking_uri": tracking_uri, "project": project}
    changes = {key: value for key, value in given.items() if value is not None}
    if project:
        context.checked_project(project)
    path = settings.file(os.environ)
    if changes and path is None:
        raise UsageError("expected a file to write: TUNER_CONFIG is empty, or HOME is not set")
    found = settings.write(path, changes) if changes and path else settings.read(path)
    shown = {key: redacted_url(found[key]) if key in found else None for key in settings.NAMES}
    overridden = [name for name in settings.NAMES.values() if name in os.environ]
    if as_json:
        print_json({"file": str(path), "settings": shown, "environment": overridden})
        return
    terminal.echo(f"Settings in {path}:")
    for key, value in shown.items():
        first = f" ({settings.NAMES[key]} is set, and goes first)"
        first = first if settings.NAMES[key] in overridden else ""
        alone = key == "tracking_uri" and value and not shown["database_url"]
        where = " (not used with a database in a file of SQLite)" if alone else ""
        terminal.echo(f"  {key}: {value or 'not set'}{where}{first}")


@cli.command()
@click.argument("name", required=False)
@click.option(
    "--workers",
    type=click.IntRange(0),
    metavar="N",
    help="Let at most N workers train studies of the project at a time.",
)
@click.option(
    "--steps-a-week",
    "steps_week",
    type=click.FloatRange(0),
    metavar="N",
    help="Start no trial once those of the last seven days have trained N steps.",
)
@click.option("--no-limits", is_flag=True, help="Remove both limits.")
@click.option(
    "--weight",
    type=click.FloatRange(0, min_open=True),
    metavar="W",
    help="Share workers among projects in proportion to their weights, 1 by default.",
)
@click.option(
    "--shared/--not-shared",
    default=None,
    help="Whether anybody may change its studies; by default those who submitted them.",
)
@with_reason
@with_json
def project(
    name: str | None,
    workers: int | None,
    steps_week: float | None,
    no_limits: bool,
    weight: float | None,
    shared: bool | None,
    reason: str,
    as_json: bool,
) -> None:
    """List the projects, or show the project NAME, or set its limits and weight."""
    from tuner.operations import projects

    ledger = context.open_ledger()
    if name is None:
        if no_limits or (workers, steps_week, weight, shared) != (None,) * 4:
            raise UsageError("name the project that is to be changed")
        found = projects.listed(ledger)
    else:
        name = context.checked_project(name)
        changed = projects.change(
            ledger,
            name,
            workers=workers,
            steps_week=steps_week,
            no_limits=no_limits,
            shared=shared,
            weight=weight,
            reason=reason,
        )
        found = [changed]
    if as_json:
        print_json({"projects": found})
        return
    for one in found:
        terminal.echo(projects.in_words(one))
        if one["quota_reached"]:
            terminal.echo(f"No worker takes a trial: {one['quota_reached']}.")


@cli.command()
@click.option(
    "--repair", is_flag=True, help="Republish mismatched records, and report what remains."
)
@with_json
def doctor(repair: bool, as_json: bool) -> int:
    """Check that the ledger, Optuna's trials and MLflow's runs match one to one."""
    from tuner.operations import doctor

    engine, places = context.open_ledger().engine, context.addresses()
    problems = doctor.repair(engine, places) if repair else doctor.examine(engine, places)
    notes = doctor.notes(places)
    ok = doctor.is_healthy(problems)
    if as_json:
        found = [asdict(problem) for problem in problems]
        print_json({"ok": ok, "problems": found, "notes": notes})
    else:
        for one in problems:
            place = one.study or "database"
            where = place if one.trial is None else f"{place}, trial {one.trial}"
            terminal.echo(
                f"{one.kind}: {where}: {one.detail}{' (repaired)' if one.repaired else ''}"
            )
        for note in notes:
            terminal.echo(f"note: {note}")
        if ok:
            terminal.echo("Everything matches.")
        elif repair:
            terminal.echo("Not everything could be repaired:")
            for line in doctor.advice(problems):
                terminal.echo(line)
        else:
            terminal.echo(
                "Not everything matches; `tuner doctor --repair` repairs what can be repaired."
            )
    return 0 if ok else 1


@cli.group()
def db() -> None:
    """Manage the database."""


def _logins(kind: str, role: str, of: str) -> Callable[[Command], Command]:
    """Add an option that makes logins in a role."""
    return click.option(
        f"--{kind}",
        role,
        multiple=True,
        metavar="NAME=FILE",
        help=f"Set up the login NAME of {of}, with the password in FILE; repeatable, PostgreSQL.",
    )


@db.command()
@_logins("worker", "tuner_worker", "a worker, or of a scheduler")
@_logins("recorder", "tuner_recorder", "a recorder")
@_logins("mlflow", "tuner_mlflow", "an MLflow server")
@_logins("reader", "tuner_reader", "somebody who only reads")
@with_json
def upgrade(as_json: bool, **roles: tuple[str, ...]) -> None:
    """Create or upgrade the tables of tuner, Optuna and MLflow to this version's schema."""
    from tuner.ledger import database

    places = context.addresses()
    logins = [_login(role, argument) for role, given in roles.items() for argument in given]
    left = database.upgrade(places, logins)
    if left:
        terminal.echo(f"The tables are up to date, but {left}.", err=True)
    if as_json:
        print_json({"upgraded": places.shown(), "left": left})
    else:
        terminal.echo(f"{places.shown()['optuna']} is up to date.")


def _login(role: str, argument: str) -> Login:
    """Read the login NAME=FILE."""
    from tuner.ledger.database import Login

    option = f"--{role.removeprefix('tuner_')}"
    name, _, file = argument.partition("=")
    if not (name and file):
        raise UsageError(f"{option}: expected NAME=FILE, got {argument!r}")
    try:
        password = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option}: cannot read a password from {file}: {error}") from error
    if not password:
        raise UsageError(f"{option}: expected a password in {file}, got nothing")
    return Login(name=name, role=role, password=password)


@db.command()
@with_json
def urls(as_json: bool) -> None:
    """Print the address of each tool's database."""
    shown = context.addresses().shown()
    if as_json:
        print_json(shown)
        return
    for tool, url in shown.items():
        terminal.echo(f"{tool:12}{url}")


@cli.command()
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    required=True,
    metavar="DAYS",
    help="Remove studies without activity for this many days.",
)
@click.option(
    "--keep-newest",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Keep the N studies with the latest activity.",
)
@click.option("--keep", multiple=True, metavar="NAME", help="Keep this study; repeatable.")
@click.option("--yes", is_flag=True, help="Remove them; without this option they are only listed.")
@with_json
def gc(
    older_than: float, keep_newest: int, keep: tuple[str, ...], yes: bool, as_json: bool
) -> None:
    """Remove old studies from ledger, Optuna and MLflow, with files; never a champion's."""
    from tuner.operations import retention

    ledger, places = context.open_ledger(), context.addresses()
    planned = retention.plan(
        ledger, places, older_than=older_than, keep_newest=keep_newest, keep=keep
    )
    purged, problem = retention.collect(ledger, places, planned) if yes else ([], None)
    if as_json:
        print_json({**asdict(planned), "removed": yes, "purged": purged, "problem": problem})
        return
    for name in planned.remove:
        terminal.echo(f"{'removed' if yes else 'would be removed'}: {name}")
    for one in planned.kept:
        terminal.echo(f"kept: {one.study}, because {one.reason}")
    if planned.remove and not yes:
        terminal.echo("Nothing was removed; use --yes to remove them.")
    if problem:
        terminal.echo(problem, err=True)


@cli.command()
@click.argument("name", type=StudyName())
@click.option("--yes", is_flag=True, help="Do not ask, not even of another's study.")
@click.option(
    "--force",
    is_flag=True,
    help="Delete it even while workers train it, or if it made the champion in use.",
)
@with_reason
@with_json
def delete(name: str, yes: bool, force: bool, reason: str, as_json: bool) -> None:
    """Delete the study NAME from ledger, Optuna, MLflow, and its checkpoints.

    Run it again after an interruption. MLflow keeps deleted runs until `mlflow gc`.
    """
    from tuner.operations import manage

    ledger = open_own(name, yes=yes)
    trials = len(ledger.trials(ledger.study(name).id))
    if not yes:
        click.confirm(f"Delete study {name!r} with {trials} trials?", abort=True, err=True)
    manage.delete(ledger, context.addresses(), name, force=force, reason=reason)
    if as_json:
        print_json({"study": name, "deleted": True, "trials": trials})
    else:
        terminal.echo(f"Study {name!r} and its {trials} trials are deleted.")
