"""Commands that write files to start from: init, examples."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from tuner.cli.base import cli, print_json, with_json
from tuner.operations import examples as scaffolding
from tuner.operations.examples import Copied
from tuner.report import terminal


@cli.command()
@click.argument("name", default="first")
@with_json
def init(name: str, as_json: bool) -> None:
    """Write a commented study file and a workload to start from, called NAME or "first".

    They are studies/NAME.toml and studies/NAME.py in the current folder.
    """
    _print(scaffolding.start(name, Path.cwd()), [name], as_json)


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="Copy all of them.")
@with_json
def examples(names: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """List the example studies, or copy those of these NAMEs into the folder studies here."""
    found = scaffolding.examples()
    chosen = list(found) if everything else list(names)
    if chosen:
        _print(scaffolding.copy(chosen, Path.cwd()), chosen, as_json)
    elif as_json:
        print_json({"examples": found})
    else:
        width = max(map(len, found))
        for name, description in found.items():
            terminal.echo(f"{name:{width}}  {description}")
        terminal.echo(f"Copy one: {terminal.program()} examples NAME")


def _print(copied: Copied, names: list[str], as_json: bool) -> None:
    if as_json:
        print_json(asdict(copied))
        return
    for path in copied.written:
        terminal.echo(f"written: {path}")
    for path in copied.present:
        terminal.echo(f"already there: {path}")
    if len(names) == 1:
        terminal.echo(f"Run it: {terminal.program()} run {scaffolding.FOLDER}/{names[0]}.toml")
