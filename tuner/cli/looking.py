"""Commands that look: studies, status, best, doctor, ui."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tuner.analysis import ranking
from tuner.cli.base import (
    EXIT_NOTHING_COMPLETED,
    cli,
    print_json,
    print_results,
    with_json,
)
from tuner.operations import context
from tuner.report import terminal

if TYPE_CHECKING:
    from tuner.ledger import Reader, StudyRecord


@cli.command()
@with_json
def studies(as_json: bool) -> None:
    """List the studies of this database."""
    from tuner.operations import status as summary

    ledger = context.ledger()
    found = [summary.of_state(ledger, study) for study in ledger.studies()]
    if as_json:
        print_json({"studies": found})
        return
    if not found:
        terminal.echo("No studies yet; `tuner run FILE` makes one.")
    for status in found:
        counts = ranking.counts_in_words(status["trials"])
        terminal.echo(
            f"{status['title']}: {status['state']}, {counts} of {status['budget']['trials']}"
        )


@cli.command()
@click.argument("name")
@click.option("--trial", type=int, help="Show this trial: why it ended, and its traceback.")
@with_json
def status(name: str, trial: int | None, as_json: bool) -> None:
    """Show the state of the study NAME: its trials, its best one, who works at it."""
    from tuner.operations import status as summary

    ledger = context.ledger()
    study = ledger.study(name)
    if trial is not None:
        _print_trial(summary.of_trial(ledger, study, trial), as_json=as_json)
        return
    found = summary.of_state(ledger, study)
    if as_json:
        print_json(found)
        return
    console = terminal.console()
    counts = ranking.counts_in_words(found["trials"])
    terminal.say(console, f"{study.title}: {found['state']}, {counts} of {study.limit}")
    if study.reason:
        terminal.say(console, study.reason)
    for line in ranking.ranges_in_words(study):
        terminal.say(console, line)
    for one in found["workers"]:
        terminal.say(console, f"trial {one['trial']} is trained by {one['worker']}")
    for one in found["silent"]:
        said = f"nothing of trial {one['trial']} has been measured for {one['seconds']:.0f} s; "
        terminal.say(console, f"{said}{one['worker']} may hang, or be gone", style="bold")
    print_results(console, ledger, study)
    _print_pages(ledger, study)


def _print_trial(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    console = terminal.console()
    where = f"{found['study']}, trial {found['trial']}"
    terminal.say(console, f"{where}: {found['state']} after {found['steps']} steps")
    if found["reason"]:
        terminal.say(console, found["reason"])
    for name, value in (found["params"] or {}).items():
        terminal.say(console, f"  {name} = {value}")
    for one in found["attempts"]:
        ended = f"{one['ending']}: {one['reason']}" if one["ending"] else "training"
        terminal.say(console, f"attempt {one['number']} by {one['worker']}: {ended}")
    if found["traceback"]:
        for line in found["traceback"].split("\n"):
            terminal.say(console, f"  {line}")


def _print_pages(ledger: Reader, study: StudyRecord) -> None:
    """Print where the UI shows what, if one does; that MLflow is away is no reason to fail."""
    from tuner.core.errors import UnavailableError
    from tuner.operations import links, ui
    from tuner.tracking.publications import Publications

    run_id, _ = Publications(ledger.engine, "mlflow").study(study.id)
    if run_id is None or not ui.shows(context.places(), run_id):
        return
    try:
        found = links.of_study(ledger, study, context.places())
    except UnavailableError as error:
        terminal.echo(f"no pages: {error}", err=True)
        return
    for what, address in found.items():
        terminal.echo(f"{what}: {address}")


@cli.command()
@click.argument("name")
@click.option("--open", "opened", is_flag=True, help="Open its run in a browser.")
@with_json
def best(name: str, opened: bool, as_json: bool) -> int:
    """Show the best trial of the study NAME."""
    from tuner.operations import status as summary

    ledger = context.ledger()
    study = ledger.study(name)
    if as_json:
        print_json({"study": name, "best": summary.of_best(ledger, study)})
    else:
        terminal.echo(ranking.best_in_words(study, ledger.best(study)))
    if ledger.best(study) is None:
        return EXIT_NOTHING_COMPLETED
    return _serve(study, None, "best trial", as_json=None) if opened else 0


@cli.command()
@click.option(
    "--repair", is_flag=True, help="Publish again what does not match, and report what remains."
)
@with_json
def doctor(repair: bool, as_json: bool) -> int:
    """Prove that ledger, Optuna's trials and MLflow's runs match one to one."""
    from dataclasses import asdict

    from tuner.operations import doctor as checks

    engine, places = context.ledger().engine, context.places()
    problems = checks.repair(engine, places) if repair else checks.examine(engine, places)
    notes = checks.notes(places)
    ok = checks.is_well(problems)
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
            for line in checks.advice(problems):
                terminal.echo(line)
        else:
            terminal.echo("Not everything matches; `tuner doctor --repair` repairs what it can.")
    return 0 if ok else 1


@cli.command()
@click.argument("name", required=False)
@click.option("--port", type=int, help="Port on 127.0.0.1; 5000 by default, or a free one.")
@with_json
def ui(name: str | None, port: int | None, as_json: bool) -> int:
    """Serve the MLflow UI on this database, on 127.0.0.1; open the study NAME in a browser."""
    study = context.ledger().study(name) if name else None
    return _serve(study, port, "loss curves", as_json=as_json)


def _serve(study: StudyRecord | None, port: int | None, what: str, *, as_json: bool | None) -> int:
    """Serve the UI and open a page of the study; as_json None: standard output has its object."""
    from tuner.operations import links
    from tuner.operations import ui as server

    def say(url: str) -> str | None:
        page = (
            links.of_study(context.ledger(), study, context.places(), url).get(what)
            if study
            else None
        )
        if as_json:
            print_json({"url": url} | ({"page": page} if page else {}))
        else:
            said = page or f"{url}/#/experiments?workflowType=machine_learning"
            terminal.echo(f"MLflow UI: {said}", err=as_json is None)
        return page

    return server.serve(context.places(), port, say)
