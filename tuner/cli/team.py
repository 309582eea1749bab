"""The section Team: worker, workers, recorder, enqueue, retry, pause, resume, stop, note, tag."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import click

from tuner.cli.base import EXIT_INTERRUPTED, cli, exit_code, open_own, print_json
from tuner.cli.options import (
    StudyName,
    with_allow,
    with_allow_shipped,
    with_executor,
    with_json,
    with_log,
    with_metrics,
    with_parent,
    with_raise_budget,
    with_reason,
    with_settings,
    with_yes,
)
from tuner.observability import logs
from tuner.operations import context
from tuner.report import terminal

PUBLISH_SECONDS = 5.0
"""How long an interrupted worker waits for its recorder, which continues by itself."""


@cli.command()
@click.option(
    "--study",
    "names",
    type=StudyName(),
    multiple=True,
    metavar="NAME",
    help="Train this study; repeatable.",
)
@click.option(
    "--not",
    "without",
    multiple=True,
    metavar="NAME",
    help="Leave this study to others, or studies that match, such as 'vision/*'; repeatable.",
)
@click.option("--until-idle", is_flag=True, help="End when nothing is left to train.")
@click.option(
    "--device",
    metavar="DEVICE",
    help="Train only studies for this device, such as cpu; auto takes a GPU that no other worker "
    "of this machine has.",
)
@click.option(
    "--workers-per-gpu",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="With --device auto, how many workers share a GPU.",
)
@click.option(
    "--grace",
    type=click.FloatRange(1),
    metavar="SECONDS",
    help="End within so many seconds after SIGTERM; by default as soon as the trials are saved.",
)
@click.option(
    "--stopped-code",
    type=click.IntRange(0, 255),
    default=0,
    hidden=True,
    help="Exit code after SIGTERM, for engines to which 0 says that nothing is left.",
)
@click.option("--launch", metavar="KEY", hidden=True, help="The launch that started this worker.")
@click.option("--index", type=click.IntRange(0), hidden=True, help="Its index in the launch.")
@click.option(
    "--recorder/--no-recorder", default=True, help="Publish in a process of its own while training."
)
@with_parent
@with_metrics
@with_log
@with_allow
@with_allow_shipped
@with_json
def worker(
    names: tuple[str, ...],
    without: tuple[str, ...],
    until_idle: bool,
    device: str | None,
    workers_per_gpu: int,
    grace: float | None,
    stopped_code: int,
    launch: str | None,
    index: int | None,
    recorder: bool,
    parent: int | None,
    metrics_port: int | None,
    metrics_host: str,
    metrics_studies: int,
    log: str | None,
    prefixes: tuple[str, ...],
    as_json: bool,
) -> int:
    """Train trials of open studies, shared fairly by the weights in their budgets.

    SIGTERM or Ctrl-C saves the trials for the next worker and ends; a second one ends at once.
    """
    logs.service(log)
    from tuner.core import processes
    from tuner.executors import starting
    from tuner.observability import serving
    from tuner.operations import run

    about: dict[str, Any] = {}
    if launch is not None:
        about["launch"] = launch
        if (place := starting.index_of(os.environ) if index is None else index) is not None:
            about["index"] = place
    if parent is not None:
        processes.end_with(parent)
    if device == "auto":
        from tuner.training import gpus

        device, about["gpu"] = None, gpus.take(workers_per_gpu)
    ledger, places = context.open_ledger(), context.addresses()
    todo = run.Work(
        names=names,
        without=without,
        prefixes=prefixes,
        until_idle=until_idle,
        device=device,
        publish_seconds=PUBLISH_SECONDS,
        grace_seconds=grace,
        stopped_code=stopped_code,
        about=about,
    )
    with serving.serving(metrics_port, metrics_host, ledger.engine, places, metrics_studies):
        ended = run.train(ledger, places, todo, recorder=recorder)
    if as_json:
        studies = [ledger.study(name) for name in names] or ledger.studies()
        print_json({"studies": {study.name: ledger.counts(study.id) for study in studies}})
    if ended.interrupted:  # as requested; recorders publish the rest
        return EXIT_INTERRUPTED if ended.by_keyboard else stopped_code
    return exit_code(ended)


@cli.group()
def workers() -> None:
    """Start, list and stop workers on this machine or a cluster."""


@workers.command("start")
@click.argument("name", type=StudyName())
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="How many.")
@with_executor
@click.option(
    "--recorder/--no-recorder", default=True, help="Let each publish in a process of its own."
)
@with_allow
@with_allow_shipped
@with_json
def start_workers(
    name: str,
    workers: int,
    executor: str,
    settings: Path | None,
    recorder: bool,
    prefixes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Start workers that train the study NAME until nothing is left, and return.

    They go on when this command has ended; `tuner workers stop` ends them.
    """
    from tuner.config import cluster
    from tuner.operations import workers as operations

    started = operations.start(
        context.open_ledger(),
        context.addresses(),
        cluster.load(settings),
        name,
        workers=workers,
        executor=executor,
        prefixes=prefixes,
        recorder=recorder,
    )
    if as_json:
        print_json(started)
        return
    shown = shlex.quote(name)
    terminal.echo(f"{workers} of {name!r} started on {executor}, as {started['launch']}.")
    terminal.echo(f"See them: {terminal.program()} workers list {shown}")


@workers.command("list")
@click.argument("name", type=StudyName())
@click.option("--ended", is_flag=True, help="Include those of launches that have ended.")
@with_settings
@with_json
def list_workers(name: str, ended: bool, settings: Path | None, as_json: bool) -> None:
    """List the workers that were started for the study NAME, from any machine."""
    from tuner.config import cluster
    from tuner.operations import workers as operations

    ledger, places = context.open_ledger(), context.addresses()
    found = operations.listed(ledger, places, cluster.load(settings), name, ended=ended)
    if as_json:
        print_json(found)
        return
    for one in found["workers"]:
        code = "" if one["code"] is None else f" with {one['code']}"
        machine = operations.machine_in_words(one)
        more = ", ".join(filter(None, (one["where"], one["detail"], machine)))
        who = f"by {one['os_user']}@{one['host']}"
        terminal.echo(
            f"{one['executor']} {one['handle']}: {one['phase']}{code}"
            f"{f' ({more})' if more else ''}, {who}"
        )
    if not found["workers"]:
        terminal.echo(f"No worker that was started for {name!r} is left.")


@workers.command("stop")
@click.argument("name", type=StudyName())
@with_settings
@with_json
def stop_workers(name: str, settings: Path | None, as_json: bool) -> int:
    """Let all workers that were started for the study NAME save their trials and end.

    The study stays open: other workers go on.
    """
    from tuner.config import cluster
    from tuner.operations import workers as operations

    ledger, places = context.open_ledger(), context.addresses()
    done = operations.stop(ledger, places, cluster.load(settings), name)
    if as_json:
        print_json(done)
    else:
        terminal.echo(f"Asked to end: {', '.join(done['stopped']) or 'none'}.")
        for problem in done["problems"]:
            terminal.echo(problem, err=True)
    return 1 if done["problems"] else 0


@workers.command("logs")
@click.argument("name", type=StudyName())
@click.argument("handle")
@with_settings
@with_json
def worker_logs(name: str, handle: str, settings: Path | None, as_json: bool) -> None:
    """Print the end of the log of one worker of the study NAME, as `workers list` names it."""
    from tuner.config import cluster
    from tuner.operations import workers as operations

    ledger, places = context.open_ledger(), context.addresses()
    text = operations.logs(ledger, places, cluster.load(settings), name, handle)
    if as_json:
        print_json({"study": name, "handle": handle, "log": text})
    else:
        terminal.echo(text.rstrip("\n"), lines=True)


@cli.command()
@click.option(
    "--study",
    "names",
    type=StudyName(),
    multiple=True,
    metavar="NAME",
    help="Publish this study; repeatable.",
)
@click.option(
    "--until-closed",
    is_flag=True,
    help="End when standard input has a byte or ends, and everything is published.",
)
@click.option("--once", is_flag=True, help="Publish everything, then end.")
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
    metrics_studies: int,
    log: str | None,
    as_json: bool,
) -> None:
    """Publish the ledger into Optuna's tables and MLflow, until interrupted.

    Any number of recorders may run; one at a time publishes a study.
    """
    from tuner.operations import record

    if once or until_closed:  # not a service: the port of the environment is its worker's
        metrics_port = None
    else:
        logs.service(log)
    ledger = context.open_ledger()
    record.record(
        ledger,
        context.addresses(),
        names=names,
        once=once,
        until_closed=until_closed,
        parent=parent,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
        metrics_studies=metrics_studies,
    )
    if as_json:
        print_json({"published": [study.name for study in ledger.studies()]})


@cli.command()
@click.argument("name", type=StudyName())
@click.argument("parameters", nargs=-1, required=True, metavar="PARAMETER=VALUE...")
@with_raise_budget
@with_yes
@with_reason
@with_json
def enqueue(
    name: str,
    parameters: tuple[str, ...],
    raise_budget: bool,
    yes: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Add a trial with these parameters to the study NAME, before the sampler's next one.

    Parameters that are left out are drawn by the sampler. The trial counts in the budget.
    """
    from tuner.config import written
    from tuner.operations import enqueue

    added = enqueue.enqueue(
        open_own(name, yes=yes),
        name,
        enqueue.parsed(parameters),
        raise_budget=raise_budget,
        reason=reason,
    )
    if as_json:
        print_json(added)
        return
    shown = ", ".join(f"{key} {written(value)}" for key, value in added["params"].items())
    terminal.echo(f"Trial {added['trial']} of {name!r} is enqueued with {shown}. {_next(added)}")


@cli.command()
@click.argument("name", type=StudyName())
@click.argument("trials", nargs=-1, type=click.IntRange(0), metavar="[TRIAL]...")
@click.option("--failed", is_flag=True, help="Retry all failed trials.")
@with_raise_budget
@with_yes
@with_reason
@with_json
def retry(
    name: str,
    trials: tuple[int, ...],
    failed: bool,
    raise_budget: bool,
    yes: bool,
    reason: str,
    as_json: bool,
) -> None:
    """Train failed trials of the study NAME again, as new trials with the same parameters.

    A failed trial keeps its record, and is retried once; its retry may be retried in turn.
    """
    from tuner.operations import retry

    done = retry.retry(
        open_own(name, yes=yes),
        name,
        trials,
        failed=failed,
        raise_budget=raise_budget,
        reason=reason,
    )
    if as_json:
        print_json(done)
        return
    for one in done["retried"]:
        terminal.echo(f"Trial {one['failed']} is trained again as trial {one['trial']}.")
    for old, new in done["retried_before"].items():
        terminal.echo(f"Trial {old} was retried before, as trial {new}.")
    terminal.echo(_next(done) if done["retried"] else f"No failed trial of {name!r} is left.")


def _next(added: dict[str, Any]) -> str:
    """Return who trains added trials."""
    name = shlex.quote(added["study"])
    if added["state"] == "paused":
        return f"The study is paused; `tuner resume {name}` continues it."
    return f"A running worker takes it next; else start one: `tuner worker --study {name}`."


@cli.command()
@click.argument("name", type=StudyName())
@with_yes
@with_reason
@with_json
def pause(name: str, yes: bool, reason: str, as_json: bool) -> None:
    """Start no more trials of the study NAME; running ones continue to their end."""
    from tuner.operations import manage

    _print_status(manage.pause(open_own(name, yes=yes), name, reason), as_json)


@cli.command()
@click.argument("name", type=StudyName())
@with_yes
@with_reason
@with_json
def resume(name: str, yes: bool, reason: str, as_json: bool) -> None:
    """Reopen the study NAME after a pause or a stop; cancelled trials stay cancelled."""
    from tuner.operations import manage

    _print_status(manage.resume(open_own(name, yes=yes), name, reason), as_json)


@cli.command()
@click.argument("name", type=StudyName())
@click.option("--reason", default="", help="The reason, which is shown with the study.")
@with_yes
@with_json
def stop(name: str, reason: str, yes: bool, as_json: bool) -> None:
    """Cancel the running and waiting trials of the study NAME, and start no more."""
    from tuner.operations import manage

    ledger = open_own(name, yes=yes)
    _print_status(manage.stop(ledger, context.addresses(), name, reason), as_json)


@cli.command()
@click.argument("name", type=StudyName())
@click.argument("text")
@with_json
def note(name: str, text: str, as_json: bool) -> None:
    """Add a note to the study NAME, for everybody who looks at it.

    `tuner status` shows all notes, with who wrote them and when.
    """
    from tuner.operations import notes

    found = notes.note(context.open_ledger(), name, text)
    if as_json:
        print_json({"study": name, "notes": found})
    else:
        terminal.echo(f"Study {name!r} has {len(found)} note{'s' * (len(found) > 1)}.")


@cli.command()
@click.argument("name", type=StudyName())
@click.argument("tags", nargs=-1, required=True, metavar="TAG...")
@click.option("--remove", is_flag=True, help="Remove these tags instead.")
@with_json
def tag(name: str, tags: tuple[str, ...], remove: bool, as_json: bool) -> None:
    """Add tags to the study NAME, by which `tuner studies --tag` finds it."""
    from tuner.operations import notes

    found = notes.tag(context.open_ledger(), name, tags, remove=remove)
    if as_json:
        print_json({"study": name, "tags": found})
    else:
        terminal.echo(f"Tags of study {name!r}: {', '.join(found) or 'none'}.")


def _print_status(status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(status)
    else:
        reason = f": {status['reason']}" if status["reason"] else "."
        terminal.echo(f"Study {status['study']!r} is {status['state']}{reason}")
