"""The command line: parses, calls one function, prints.

Libraries that take long to import (torch, optuna, mlflow) are imported in the commands that need
them, so that `tuner --help` answers at once.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

# One thread for the numerical libraries of samplers, before anything imports them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
from rich.console import Console

from tuner import results, studyfile, terminal
from tuner.errors import TunerError, UnavailableError
from tuner.storage import Addresses, addresses, open_ledger, upgrade_ledger, upgrade_tracking

if TYPE_CHECKING:
    from tuner.ledger import Ledger, Reader, StudyRecord
    from tuner.running import Ended

EXIT_NOTHING_COMPLETED = 3
EXIT_INTERRUPTED = 130

Command = TypeVar("Command", bound=Callable[..., Any])


def _json(command: Command) -> Command:
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print one JSON object on standard output, everything else on standard error.",
    )(command)


def _set(command: Command) -> Command:
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a value of the study file, such as budget.trials=20; repeatable.",
    )(command)


def _allow(command: Command) -> Command:
    return click.option(
        "--allow",
        "prefixes",
        multiple=True,
        default=("tuner.", "studies."),
        show_default=True,
        envvar="TUNER_ALLOW",
        metavar="PREFIX",
        help="Modules whose names begin so may be imported as workloads; repeatable.",
    )(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tuner")
def cli() -> None:
    """Find a learning rate and its schedule, record every loss curve, and prove what was found."""


def main() -> NoReturn:
    """Run the command line; every error of ours becomes a message and an exit code."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    try:
        code = cli.main(prog_name="tuner", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        code = EXIT_INTERRUPTED
    except TunerError as error:
        click.echo(f"Error: {error}", err=True)
        code = error.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _places() -> Addresses:
    return addresses(os.environ, Path.cwd())


def _ledger(*, create: bool = False) -> Ledger:
    from tuner.ledger import LEASE_SECONDS, Ledger

    lease = float(os.environ.get("TUNER_LEASE_SECONDS", LEASE_SECONDS))
    return Ledger(open_ledger(_places(), create=create), lease)


def _print_json(content: dict[str, Any]) -> None:
    click.echo(json.dumps(content))


# --- tuning


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@_set
@_allow
@_json
def run(file: Path, overrides: tuple[str, ...], prefixes: tuple[str, ...], as_json: bool) -> int:
    """Submit the study FILE, train its trials here, show progress, and report.

    Interrupted and run again, it goes on where it was.
    """
    began = time.monotonic()
    spec = studyfile.load(file, overrides)
    from tuner import progress, running, submission, summary

    described = submission.prepare(spec, prefixes)
    ledger, places = _ledger(create=True), _places()
    study, created = submission.submit(ledger, spec, described)
    console = terminal.console(stderr=as_json)
    if created and study.version > 1:
        console.print(submission.in_words(ledger, study, created=True), markup=False)
    with progress.shown(console, ledger, study):
        ended = running.train(
            ledger,
            places.checkpoints,
            names=[study.name],
            prefixes=prefixes,
            until_idle=True,
            recorder=True,
        )
    study = ledger.study(study.name)
    found = summary.of_run(ledger, study, places)
    if as_json:
        _print_json(found | {"seconds": round(time.monotonic() - began, 1)})
    else:
        _print_results(console, ledger, study)
    if ended.interrupted:
        click.echo(f"Interrupted; `tuner run {file}` goes on from the last checkpoint.", err=True)
    return _exit_code(ended, completed=found["best"] is not None)


def _exit_code(ended: Ended, *, completed: bool = True) -> int:
    """Give the exit code of a command that trained, and say what is left to publish."""
    if not ended.published:
        click.echo(
            "The trials are safe in the ledger, but not all of them are published: see above. "
            "`tuner recorder --once` publishes the rest, once that can be reached.",
            err=True,
        )
    if ended.interrupted:
        return EXIT_INTERRUPTED
    if not ended.published:
        return UnavailableError.exit_code
    return 0 if completed else EXIT_NOTHING_COMPLETED


def _print_results(console: Console, ledger: Reader, study: StudyRecord) -> None:
    from tuner import report

    trials = ledger.trials(study.id)
    ranked = results.ranked(study, trials)[:10]
    console.print(
        report.ranking(study, trials, {one.number: ledger.curve(one.id) for one in ranked})
    )
    console.print(report.stopped(trials), soft_wrap=True)
    console.print(results.best_in_words(study, ledger.best(study)), style="bold", markup=False)
    program, name = terminal.program(), shlex.quote(study.name)
    console.print(f"Look at every curve: {program} ui", markup=False)
    console.print(f"All about this study: {program} status {name}", markup=False)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@_set
@_allow
@_json
def submit(
    file: Path, overrides: tuple[str, ...], prefixes: tuple[str, ...], as_json: bool
) -> None:
    """Put the study FILE into the database, for workers to train."""
    spec = studyfile.load(file, overrides)
    from tuner import submission

    described = submission.prepare(spec, prefixes)
    ledger = _ledger(create=True)
    study, created = submission.submit(ledger, spec, described)
    if as_json:
        about = {"version": study.version, "created": created, "budget": study.limit}
        _print_json({"study": study.name, **about})
    else:
        click.echo(submission.in_words(ledger, study, created=created))
        name = shlex.quote(study.name)
        click.echo(f"Train it: {terminal.program()} worker --study {name} --until-idle")


@cli.command()
@click.option("--study", "names", multiple=True, help="Take trials of this study; repeatable.")
@click.option("--until-idle", is_flag=True, help="End when there is nothing left to train.")
@click.option("--recorder/--no-recorder", default=True, help="Publish beside training.")
@_allow
@_json
def worker(
    names: tuple[str, ...],
    until_idle: bool,
    recorder: bool,
    prefixes: tuple[str, ...],
    as_json: bool,
) -> int:
    """Train trials of open studies."""
    from tuner import running

    ledger = _ledger()
    ended = running.train(
        ledger,
        _places().checkpoints,
        names=names,
        prefixes=prefixes,
        until_idle=until_idle,
        recorder=recorder,
    )
    if as_json:
        studies = [ledger.study(name) for name in names] or ledger.studies()
        _print_json({"studies": {study.name: ledger.counts(study.id) for study in studies}})
    return _exit_code(ended)


@cli.command()
@click.option("--study", "names", multiple=True, help="Publish this study; repeatable.")
@click.option("--until-closed", is_flag=True, help="End once standard input ends and all is done.")
@click.option("--once", is_flag=True, help="Publish what there is, then end.")
@_json
def recorder(names: tuple[str, ...], until_closed: bool, once: bool, as_json: bool) -> None:
    """Publish the ledger into Optuna's tables and MLflow, until interrupted."""
    from tuner.processes import told_to_stop
    from tuner.tracking.recorder import record

    ledger = _ledger()
    with told_to_stop("publishing the rest") as closing:
        if once:
            closing.set()
        if until_closed:

            def wait_for_the_end() -> None:
                sys.stdin.buffer.read()
                closing.set()

            threading.Thread(target=wait_for_the_end, daemon=True).start()
        record(ledger.engine, _places(), names=names, closing=closing)
    if as_json:
        _print_json({"published": [study.name for study in ledger.studies()]})


# --- looking


@cli.command()
@_json
def studies(as_json: bool) -> None:
    """List the studies of this database."""
    from tuner import summary

    ledger = _ledger()
    found = [summary.of_state(ledger, study) for study in ledger.studies()]
    if as_json:
        _print_json({"studies": found})
        return
    if not found:
        click.echo("No studies yet; `tuner run FILE` makes one.")
    for status in found:
        counts = results.counts_in_words(status["trials"])
        click.echo(
            f"{status['title']}: {status['state']}, {counts} of {status['budget']['trials']}"
        )


@cli.command()
@click.argument("name")
@_json
def status(name: str, as_json: bool) -> None:
    """Show the state of the study NAME: its trials, its best one, who works at it."""
    from tuner import summary

    ledger = _ledger()
    study = ledger.study(name)
    found = summary.of_state(ledger, study)
    if as_json:
        _print_json(found)
        return
    console = terminal.console()
    counts = results.counts_in_words(found["trials"])
    console.print(f"{study.title}: {found['state']}, {counts} of {study.limit}", markup=False)
    for one in found["workers"]:
        console.print(f"trial {one['trial']} is trained by {one['worker']}", markup=False)
    _print_results(console, ledger, study)


@cli.command()
@click.argument("name")
@_json
def best(name: str, as_json: bool) -> int:
    """Show the best trial of the study NAME."""
    from tuner import summary

    ledger = _ledger()
    study = ledger.study(name)
    if as_json:
        _print_json({"study": name, "best": summary.of_best(ledger, study)})
    else:
        click.echo(results.best_in_words(study, ledger.best(study)))
    return 0 if ledger.best(study) else EXIT_NOTHING_COMPLETED


@cli.command()
@click.option("--repair", is_flag=True, help="Project again what does not match.")
@_json
def doctor(repair: bool, as_json: bool) -> int:
    """Prove that ledger, Optuna's trials and MLflow's runs match one to one."""
    from dataclasses import asdict

    from tuner import doctor as checks

    engine, places = _ledger().engine, _places()
    problems = checks.repair(engine, places) if repair else checks.examine(engine, places)
    ok = all(problem.repaired for problem in problems)
    if as_json:
        _print_json({"ok": ok, "problems": [asdict(problem) for problem in problems]})
    else:
        for one in problems:
            where = one.study if one.trial is None else f"{one.study}, trial {one.trial}"
            click.echo(f"{one.kind}: {where}: {one.detail}{' (repaired)' if one.repaired else ''}")
        click.echo("Everything matches." if ok else "Not everything matches; try --repair.")
    return 0 if ok else 1


@cli.command()
@click.option("--port", default=5000, show_default=True, help="Port on 127.0.0.1; 0: a free one.")
@_json
def ui(port: int, as_json: bool) -> int:
    """Open the MLflow UI on this database, on 127.0.0.1."""
    from tuner import ui as server

    def say(url: str) -> None:
        if as_json:
            _print_json({"url": url})
        else:
            click.echo(f"MLflow UI: {url}/#/experiments?workflowType=machine_learning")

    return server.serve(_places(), port, say)


# --- the database


@cli.group()
def db() -> None:
    """Care for the database."""


@db.command()
@_json
def upgrade(as_json: bool) -> None:
    """Bring the tables of tuner, Optuna and MLflow to this version's schema."""
    places = _places()
    upgrade_ledger(places)
    upgrade_tracking(places)
    if as_json:
        _print_json({"upgraded": places.shown()})
    else:
        click.echo(f"{places.shown()['ledger']} is up to date.")


@db.command()
@_json
def urls(as_json: bool) -> None:
    """Print which address to give to which tool."""
    shown = _places().shown()
    if as_json:
        _print_json(shown)
        return
    for tool, url in shown.items():
        click.echo(f"{tool:12}{url}")


@cli.command()
@_json
def schema(as_json: bool) -> None:
    """Print the JSON Schema of study files."""
    indent = None if as_json else 2
    click.echo(json.dumps(studyfile.json_schema(), indent=indent))
