"""Commands that tune: run, submit, worker, recorder."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuner.cli.base import (
    EXIT_INTERRUPTED,
    EXIT_NOTHING_COMPLETED,
    cli,
    print_json,
    print_results,
    with_allow,
    with_json,
    with_log,
    with_metrics,
    with_parent,
    with_set,
)
from tuner.config import reading
from tuner.core import processes
from tuner.core.errors import NotFoundError, OutputError, UnavailableError
from tuner.observability import logs
from tuner.operations import context
from tuner.report import terminal

if TYPE_CHECKING:
    from tuner.ledger import Ledger, StudyRecord
    from tuner.operations.run import Ended

GRACE_SECONDS = 5.0
"""How long a worker that was told to stop waits for its recorder, which goes on by itself."""


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@with_set
@click.option("--report/--no-report", default=True, help="Write the report when all is trained.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many processes train; with one, a seed repeats the study to the last digit.",
)
@with_allow
@with_json
def run(
    file: Path,
    overrides: tuple[str, ...],
    report: bool,
    workers: int,
    prefixes: tuple[str, ...],
    as_json: bool,
) -> int:
    """Submit the study FILE, train its trials here, show progress, and report.

    Interrupted and run again, it goes on where it was.
    """
    began = time.monotonic()
    spec = reading.load(file, overrides)
    from tuner.executors.local import LocalExecutor
    from tuner.operations import report as reporting
    from tuner.operations import run as running
    from tuner.operations import status
    from tuner.operations import submit as submission
    from tuner.report import progress

    described = submission.prepare(spec, prefixes)
    ledger, places = context.ledger(create=True), context.places()
    study, created = submission.submit(ledger, spec, described)
    console = terminal.console(stderr=as_json)
    if created and study.version > 1:
        terminal.say(console, submission.in_words(ledger, study, created=True))
    todo = running.Work(names=(study.name,), prefixes=prefixes, until_idle=True)
    with progress.shown(console, ledger, study):
        if workers == 1:
            ended = running.train(ledger, places, todo, recorder=True)
        else:
            executor = LocalExecutor(places.spill.with_name("logs") / str(study.id))
            ended = running.train_with(executor, ledger, todo, workers)
    study = _after(ledger, study)
    found = status.of_run(ledger, study, places)
    problem = None
    if report and not ended.interrupted:
        try:
            done = reporting.report(ledger, [study], places, tracked=ended.published)
            found["report"] = str(done.written.page)
            if done.problem:
                terminal.echo(f"The report was not uploaded to MLflow: {done.problem}", err=True)
        except OutputError as error:
            problem = error
    if as_json:
        print_json(found | {"seconds": round(time.monotonic() - began, 1)})
    else:
        print_results(console, ledger, study, reported=not console.is_terminal)
        if found["report"]:
            terminal.say(console, f"Report: {found['report']}")
    said = running.closed_in_words(study)
    if said:
        terminal.echo(said[:1].upper() + said[1:] + ".", err=True)
    if ended.interrupted:
        terminal.echo(
            f"Interrupted; `tuner run {file}` goes on from the last checkpoint.", err=True
        )
    code = exit_code(ended, completed=found["best"] is not None)
    if problem is not None:
        terminal.echo(
            f"Error: {problem}; `tuner report {shlex.quote(study.name)}` writes it", err=True
        )
    return code if problem is None else code or problem.exit_code


def _after(ledger: Ledger, study: StudyRecord) -> StudyRecord:
    """Read a study again that was trained. Raises `NotFoundError` when it was deleted meanwhile."""
    try:
        return ledger.study(study.name)
    except NotFoundError as error:
        raise NotFoundError(f"study {study.name!r} was deleted while it was trained") from error


def exit_code(ended: Ended, *, completed: bool = True) -> int:
    """Give the exit code of a command that trained, and say what is left to publish."""
    if not ended.published:
        terminal.echo(
            "The trials are safe in the ledger, but not all of them are published: see above. "
            "`tuner recorder --once` publishes the rest, once that can be reached.",
            err=True,
        )
    if ended.interrupted:
        return EXIT_INTERRUPTED
    if not ended.published:
        return UnavailableError.exit_code
    return 0 if completed else EXIT_NOTHING_COMPLETED


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@with_set
@with_allow
@with_json
def submit(
    file: Path, overrides: tuple[str, ...], prefixes: tuple[str, ...], as_json: bool
) -> None:
    """Put the study FILE into the database, for workers to train."""
    spec = reading.load(file, overrides)
    from tuner.operations import submit as submission

    described = submission.prepare(spec, prefixes)
    ledger = context.ledger(create=True)
    study, created = submission.submit(ledger, spec, described)
    if as_json:
        about = {"version": study.version, "created": created, "budget": study.limit}
        print_json({"study": study.name, **about})
    else:
        terminal.echo(submission.in_words(ledger, study, created=created))
        name = shlex.quote(study.name)
        terminal.echo(f"Train it: {terminal.program()} worker --study {name} --until-idle")


@cli.command()
@click.option("--study", "names", multiple=True, help="Take trials of this study; repeatable.")
@click.option("--until-idle", is_flag=True, help="End when there is nothing left to train.")
@click.option("--device", metavar="DEVICE", help="Take studies for this device only, such as cpu.")
@click.option("--recorder/--no-recorder", default=True, help="Publish beside training.")
@with_parent
@with_metrics
@with_log
@with_allow
@with_json
def worker(
    names: tuple[str, ...],
    until_idle: bool,
    device: str | None,
    recorder: bool,
    parent: int | None,
    metrics_port: int | None,
    metrics_host: str,
    log: str | None,
    prefixes: tuple[str, ...],
    as_json: bool,
) -> int:
    """Train trials of open studies, shared fairly by the weights in their budgets.

    SIGTERM or Ctrl-C: save the trials for the next worker and end; a second time: at once.
    """
    logs.service(log)
    if parent is not None:
        processes.end_with(parent)
    from tuner.observability import serving
    from tuner.operations import run as running

    ledger, places = context.ledger(), context.places()
    todo = running.Work(
        names=names,
        prefixes=prefixes,
        until_idle=until_idle,
        device=device,
        grace_seconds=GRACE_SECONDS,
    )
    with serving.serving(metrics_port, metrics_host, ledger.engine, places):
        ended = running.train(ledger, places, todo, recorder=recorder)
    if as_json:
        studies = [ledger.study(name) for name in names] or ledger.studies()
        print_json({"studies": {study.name: ledger.counts(study.id) for study in studies}})
    if ended.interrupted:  # as it was asked to; what is not published, others publish
        return EXIT_INTERRUPTED if ended.by_keyboard else 0
    return exit_code(ended)


@cli.command()
@click.option("--study", "names", multiple=True, help="Publish this study; repeatable.")
@click.option(
    "--until-closed",
    is_flag=True,
    help="End once standard input has a byte or ends, and all is done.",
)
@click.option("--once", is_flag=True, help="Publish what there is, then end.")
@with_parent
@with_metrics
@with_log
@with_json
def recorder(
    names: tuple[str, ...],
    until_closed: bool,
    once: bool,
    parent: int | None,
    metrics_port: int | None,
    metrics_host: str,
    log: str | None,
    as_json: bool,
) -> None:
    """Publish the ledger into Optuna's tables and MLflow, until interrupted.

    Any number of them may run: one at a time publishes a study.
    """
    if once or until_closed:  # no service: its worker has the port that the environment names
        metrics_port = None
    else:
        logs.service(log)
    from tuner.observability import serving
    from tuner.tracking.recorder import record

    ledger, places = context.ledger(), context.places()
    with processes.told_to_stop("publishing the rest") as closing:
        if once:
            closing.set()
        if parent is not None:
            processes.on_end_of(parent, closing.set)
        if until_closed:

            def wait_for_the_end() -> None:
                sys.stdin.buffer.read(1)
                closing.set()

            threading.Thread(target=wait_for_the_end, daemon=True).start()
        with serving.serving(metrics_port, metrics_host, ledger.engine, places):
            record(ledger.engine, places, names=names, closing=closing)
    if as_json:
        print_json({"published": [study.name for study in ledger.studies()]})
