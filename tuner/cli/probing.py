"""The command that probes: the stable learning-rate range, before any search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tuner.cli.base import cli, print_json, with_allow, with_json, with_set
from tuner.config import reading
from tuner.report import terminal

if TYPE_CHECKING:
    from tuner.training.lr_probe.probe import Probe


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@with_set
@with_allow
@with_json
def probe(file: Path, overrides: tuple[str, ...], prefixes: tuple[str, ...], as_json: bool) -> None:
    """Measure which learning rates the study FILE can be trained with. Nothing is created.

    Many rates train for a few steps from the same weights on the same batches, for each optimizer.
    """
    spec = reading.load(file, overrides)
    from tuner.core.errors import UsageError
    from tuner.core.failures import workload_code
    from tuner.training import trainer_choice
    from tuner.training.device import use_threads
    from tuner.training.lr_probe import probe as probing
    from tuner.training.workloads import Workload

    use_threads(1 if spec.training.threads == "auto" else spec.training.threads)
    workload = trainer_choice.load(spec, prefixes)
    if not isinstance(workload, Workload):
        raise UsageError(
            f"[workload]: expected a factory, got the train function {spec.workload.function}, "
            "whose loop cannot be tried at many rates; give a factory, or a range of rates"
        )
    with workload_code():
        found = probing.probe(workload, spec)
    if as_json:
        told = {name: one.as_json() for name, one in found.items()}
        print_json({"study": spec.study.name, "optimizers": told})
    else:
        _print(found)


def _print(found: dict[str, Probe]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in (
        "optimizer",
        "nothing learnt to",
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
        settings = [f"{key} {value}" for key, value in one.params.items() if key.startswith(name)]
        terminal.print_text(console, f"{name} with {', '.join(settings)}.")
    terminal.print_text(
        console,
        "The curvature is that at the first weights, and so is the rate that it allows. It changes "
        "as training goes on, often up to the edge of stability and along it: an estimate.",
    )


def _short(number: float | None) -> str:
    return "none" if number is None else f"{number:.4g}"
