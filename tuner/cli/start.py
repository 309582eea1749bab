"""The section Start: init, examples, run, submit, probe, scale, schema."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.base import (
    EXIT_INTERRUPTED,
    asking,
    cli,
    exit_code,
    print_json,
    print_results,
)
from tuner.cli.options import with_allow, with_executor, with_json, with_set, with_yes
from tuner.core.errors import OutputError
from tuner.operations import context
from tuner.report import terminal

if TYPE_CHECKING:
    from tuner.operations.examples import Copied
    from tuner.operations.run import Ran
    from tuner.training.lr_probe.probe import Probe


@cli.command()
@click.argument("name", default="first")
@with_json
def init(name: str, as_json: bool) -> None:
    """Write a commented study file and a workload to start from, named NAME or "first".

    The files are studies/NAME.toml and studies/NAME.py in the current folder.
    """
    from tuner.operations import examples

    _print_copied(examples.start(name, Path.cwd()), [name], as_json)


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Copy all examples.")
@with_json
def examples(names: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """List the example studies, or copy those named NAME into ./studies."""
    from tuner.operations import examples

    found = examples.examples()
    chosen = list(found) if everything else list(names)
    if chosen:
        _print_copied(examples.copy(chosen, Path.cwd()), chosen, as_json)
    elif as_json:
        print_json({"examples": found})
    else:
        width = max(map(len, found))
        for name, description in found.items():
            terminal.echo(f"{name:{width}}  {description}")
        terminal.echo(f"Copy one: {terminal.program()} examples NAME")


def _print_copied(copied: Copied, names: list[str], as_json: bool) -> None:
    from tuner.operations.examples import FOLDER

    if as_json:
        print_json(asdict(copied))
        return
    for path in copied.written:
        terminal.echo(f"written: {path}")
    for path in copied.present:
        terminal.echo(f"exists already: {path}")
    if len(names) == 1:
        terminal.echo(f"Run it: {terminal.program()} run {FOLDER}/{names[0]}.toml")


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@with_set
@click.option("--report/--no-report", default=True, help="Write the report after training.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of training processes; with one, a seed repeats the study to the last digit.",
)
@with_yes
@with_executor
@with_allow
@with_json
def run(
    file: Path,
    overrides: tuple[str, ...],
    report: bool,
    workers: int,
    yes: bool,
    executor: str,
    settings: Path | None,
    prefixes: tuple[str, ...],
    as_json: bool,
) -> int:
    """Submit the study FILE, train its trials here or on an engine, show progress, and report.

    Run it again after an interruption to resume the study.
    """
    from tuner.config import cluster, reading
    from tuner.operations import run
    from tuner.operations.workers import closed_in_words

    began = time.monotonic()
    spec = reading.load(file, overrides, context.project())
    console = terminal.console(stderr=as_json)
    announce = partial(terminal.print_text, console)
    ran = run.run(
        spec,
        prefixes,
        workers=workers,
        executor=executor,
        settings=cluster.load(settings),
        console=console,
        announce=announce,
        ask=asking(yes=yes),
    )
    found = ran.as_json()
    problem = _report(ran, found) if report and not ran.ended.interrupted else None
    if as_json:
        print_json(found | {"seconds": round(time.monotonic() - began, 1)})
    else:
        print_results(console, ran.ledger, ran.study, reported=not console.is_terminal)
        if found["report"]:
            terminal.print_text(console, f"Report: {found['report']}")
    closed = closed_in_words(ran.study)
    if closed:
        terminal.echo(closed[:1].upper() + closed[1:] + ".", err=True)
    if ran.ended.interrupted:
        terminal.echo(f"Interrupted; `tuner run {file}` resumes at the last checkpoint.", err=True)
    code = exit_code(ran.ended, completed=found["best"] is not None)
    if problem is None:
        return code
    name = shlex.quote(ran.study.name)
    terminal.echo(f"Error: {problem}; `tuner report {name}` writes the report", err=True)
    return code or problem.exit_code


def _report(ran: Ran, found: dict[str, Any]) -> OutputError | None:
    """Write the report and add its page to `found`. Return the error if it cannot be written."""
    from tuner.operations import report

    try:
        done = report.report(ran.ledger, [ran.study], ran.places, tracked=ran.ended.published)
    except OutputError as error:
        return error
    found["report"] = str(done.written.page)
    if done.problem:
        terminal.echo(f"The report was not uploaded to MLflow: {done.problem}", err=True)
    return None


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--ship",
    is_flag=True,
    help="Store the study's code beside the checkpoints, for workers with --allow-shipped.",
)
@with_set
@with_yes
@with_allow
@with_json
def submit(
    file: Path,
    ship: bool,
    overrides: tuple[str, ...],
    yes: bool,
    prefixes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Submit the study FILE to the database, for workers to train."""
    from tuner.config import reading
    from tuner.operations import submit
    from tuner.training import shipping
    from tuner.training.programs import permission

    spec = reading.load(file, overrides, context.project())
    if ship:
        shipping.pack(spec.workload, prefixes)  # refused before anything is created
    prepared = submit.prepare(spec, (*prefixes, *permission.of_file(spec)))  # nothing runs here
    ledger = context.open_ledger(create=True)
    changed = submit.changed_tables(ledger, spec)
    study, created = submit.submit(ledger, spec, prepared.description, asking(yes=yes))
    shipped = None
    if ship:
        places = context.addresses()
        shipped = submit.ship(ledger, places, study, prefixes, context.acting())
    if as_json:
        about: dict[str, Any] = {"version": study.version, "created": created, "changed": changed}
        about |= {"budget": study.limit, **({"shipped": shipped} if shipped else {})}
        print_json({"study": study.name, **about})
    else:
        terminal.echo(submit.in_words(ledger, study, created=created, changed=changed))
        name, allow = shlex.quote(study.name), ""
        if shipped is not None:
            terminal.echo(f"Its code is stored in {places.checkpoints}, with SHA-256 {shipped}.")
            allow = f" --allow-shipped {shipped}"
        terminal.echo(f"Train it: {terminal.program()} worker --study {name} --until-idle{allow}")


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@with_set
@with_allow
@with_json
def probe(file: Path, overrides: tuple[str, ...], prefixes: tuple[str, ...], as_json: bool) -> None:
    """Measure the learning rates that the study FILE can be trained with. Create nothing.

    For each optimizer, many rates train for a few steps from the same weights on the same batches.
    """
    from tuner.config import reading
    from tuner.operations import probe

    spec = reading.load(file, overrides, context.project())
    found = probe.probe(spec, prefixes)
    if as_json:
        optimizers = {name: one.as_json() for name, one in found.items()}
        print_json({"study": spec.study.name, "optimizers": optimizers})
    else:
        _print_probe(found)


def _print_probe(found: dict[str, Probe]) -> None:
    from rich.table import Table

    from tuner.config import written

    table = Table(box=None, pad_edge=False)
    for title in (
        "optimizer",
        "no learning below",
        "suggested",
        "fastest",
        "largest stable rate",
        "by curvature",
        "largest curvature",
    ):
        table.add_column(title, justify="left" if title == "optimizer" else "right")
    for name, one in found.items():
        at = one.curvature
        table.add_row(
            name,
            _short(one.nothing),
            "none" if one.suggested is None else " to ".join(map(_short, one.suggested)),
            _short(one.fastest),
            f"{_short(one.low)} to {_short(one.high)}",
            _short(None if at is None else at.bound),
            "" if at is None else f"{at.lambda_max:.4g} ± {100 * at.relative_error:.2g} %",
        )
    console = terminal.console()
    console.print(table)
    for name, one in found.items():
        settings = [
            f"{key} {written(value)}" for key, value in one.params.items() if key.startswith(name)
        ]
        terminal.print_text(console, f"{name} with {', '.join(settings)}.")
        if one.warmup is not None:
            terminal.print_text(console, one.warmup.sentence(name, one.horizon))
    terminal.print_text(
        console,
        "The curvature, and the rate that it allows, are those at the initial weights. They are "
        "an estimate: the curvature changes during training, often up to the edge of stability.",
    )


def _short(number: float | None) -> str:
    return "none" if number is None else f"{number:.4g}"


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "assignments",
    multiple=True,
    required=True,
    metavar="SCALE=SIZE",
    help="The size to predict for: steps, epochs, examples, batch_size or a whole argument of the "
    "workload, such as steps=50000; repeatable.",
)
@click.option(
    "--rungs",
    type=click.IntRange(3, 8),
    default=4,
    show_default=True,
    help="Sizes of each ladder; the study file's own is the largest.",
)
@click.option(
    "--factor",
    type=click.FloatRange(1.2, 10),
    default=2.0,
    show_default=True,
    help="Factor between the sizes of a ladder.",
)
@click.option(
    "--compare",
    "compared",
    metavar="ARGUMENT=VALUE,VALUE",
    help="Do so under several values of an argument of the workload, and report under which the "
    "best rate carries over, such as parametrization=standard,mup-adam.",
)
@click.option(
    "--adjust",
    is_flag=True,
    help="At other batch sizes, adjust the betas and eps of Adam, or the momentum of SGD, to the "
    "file's own.",
)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Training processes."
)
@with_set
@with_allow
@with_json
def scale(
    file: Path,
    assignments: tuple[str, ...],
    rungs: int,
    factor: float,
    compared: str | None,
    adjust: bool,
    workers: int,
    overrides: tuple[str, ...],
    prefixes: tuple[str, ...],
    as_json: bool,
) -> int:
    """Predict the best learning rate of a larger run from small studies of FILE.

    Run it again after an interruption to resume.
    """
    from tuner.operations import scale

    each = {"": list(overrides)}
    if compared is not None:
        each = scale.variants(compared, overrides, file)
    found = scale.compare(
        file,
        each,
        scale.targets(assignments),
        prefixes,
        rungs=rungs,
        factor=factor,
        adjust=adjust,
        workers=workers,
        announce=partial(terminal.echo, err=as_json),
    )
    if found is None:
        terminal.echo("Interrupted; the same command resumes.", err=True)
        return EXIT_INTERRUPTED
    if as_json:
        print_json(found.as_json() if compared else found.found[""].as_json())
        return 0
    for label, one in found.found.items():
        if label:
            terminal.echo(f"With {label}:")
        for line in scale.in_words(one):
            terminal.echo(line)
        terminal.echo(f"Report: {one.page}")
    for line in scale.compared_in_words(found) if compared else ():
        terminal.echo(line)
    return 0


@cli.command()
@with_json
def schema(as_json: bool) -> None:
    """Print the JSON Schema of study files."""
    from tuner.config import reading

    indent = None if as_json else 2
    terminal.echo(json.dumps(reading.json_schema(), indent=indent), lines=True)
