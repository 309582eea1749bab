"""What commands share: the group, options, addresses, the ledger, and printing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console

from tuner.analysis import ranking
from tuner.core.environment import DISTRIBUTION
from tuner.core.outcome import COMPLETED
from tuner.core.redaction import redacted_values
from tuner.operations.context import PREFIXES
from tuner.report import terminal

if TYPE_CHECKING:
    from tuner.ledger import Reader, StudyRecord

EXIT_NOTHING_COMPLETED = 3
EXIT_INTERRUPTED = 130

Command = TypeVar("Command", bound=Callable[..., Any])


def with_json(command: Command) -> Command:
    """Add the option --json."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print one JSON object on standard output, everything else on standard error.",
    )(command)


def with_log(command: Command) -> Command:
    """Add the option --log."""
    return click.option(
        "--log",
        type=click.Choice(["json", "text"]),
        help="How to log on standard error; by default as JSON unless that is a terminal.",
    )(command)


def with_metrics(command: Command) -> Command:
    """Add the options --metrics-port and --metrics-host."""
    port = click.option(
        "--metrics-port",
        type=click.IntRange(0, 65535),
        envvar="TUNER_METRICS_PORT",
        help="Serve /metrics, /healthz and /readyz on this port; 0: a free one. Else none is.",
    )
    host = click.option(
        "--metrics-host",
        default="127.0.0.1",
        show_default=True,
        envvar="TUNER_METRICS_HOST",
        help="The address to serve them on; they show how much is done, no names.",
    )
    return port(host(command))


def with_parent(command: Command) -> Command:
    """Add the option --parent, which our own programs give to those that they start."""
    return click.option(
        "--parent",
        type=click.IntRange(1),
        metavar="PID",
        hidden=True,
        help="End after the process of this number, which has started this one.",
    )(command)


def with_set(command: Command) -> Command:
    """Add the option --set."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a value of the study file, such as budget.trials=20; repeatable.",
    )(command)


def with_allow(command: Command) -> Command:
    """Add the option --allow."""
    return click.option(
        "--allow",
        "prefixes",
        multiple=True,
        default=PREFIXES,
        show_default=True,
        envvar="TUNER_ALLOW",
        metavar="PREFIX",
        help="Modules whose names begin so may be imported as workloads; repeatable.",
    )(command)


SECTIONS = {
    "Start": ("init", "examples", "run", "submit", "probe", "schema"),
    "Look": ("studies", "status", "best", "ui", "report", "compare", "export", "confirm", "rerun"),
    "Team": ("worker", "recorder", "pause", "resume", "stop"),
    "Retraining": ("retrain", "predict", "rollback", "timetable", "scheduler"),
    "Administration": ("doctor", "db", "gc", "delete"),
}
"""The commands as `tuner --help` lists them."""


class Sections(click.Group):
    """A group whose help lists its commands by section."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section of the help for each of ours."""
        width = formatter.width - 6 - max(map(len, self.commands))
        for section, names in SECTIONS.items():
            with formatter.section(section):
                shown = [(name, self.commands[name].get_short_help_str(width)) for name in names]
                formatter.write_dl(shown)


@click.group(
    cls=Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name=DISTRIBUTION)
def cli() -> None:
    """Find a learning rate and its schedule, record every loss curve, and prove what was found."""


def print_json(content: dict[str, Any]) -> None:
    """Print the one JSON object of a command, without secrets; JSON escapes all but DEL."""
    click.echo(json.dumps(redacted_values(content)).replace("\x7f", "\\u007f"))


def print_results(
    console: Console, ledger: Reader, study: StudyRecord, *, reported: bool = False
) -> None:
    """Print the ranking of a study, what was stopped, the best trial, and where to look on.

    Of trials whose ends were `reported` already, only the completed ones are ranked.
    """
    from tuner import report
    from tuner.analysis.evidence import Assessor

    trials = ledger.trials(study.id)
    listed = [trial for trial in trials if not reported or trial.state == COMPLETED]
    ranked = ranking.ranked(study, listed)[:10]
    curves = {one.number: ledger.curve(one.id) for one in ranked}
    verdicts = Assessor(ledger, study).verdicts(trials)
    if listed:
        width = report.curve_width(console)
        table = report.ranking(study, listed, curves, verdicts, width=width)
        console.print(report.fitted(table, console))
    console.print(report.stopped(trials, rows=0 if reported else 3), soft_wrap=True)
    terminal.say(console, f"Verdicts on rates: {ranking.verdicts_in_words(verdicts)}.")
    terminal.say(console, ranking.best_in_words(study, ledger.best(study)), style="bold")
    program, name = terminal.program(), shlex.quote(study.name)
    terminal.say(console, f"Open the curves in MLflow: {program} ui {name}")
    terminal.say(console, f"All about this study: {program} status {name}")
