"""What commands share: the group, exit codes and printing."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from tuner.core.environment import DISTRIBUTION
from tuner.core.errors import UnavailableError
from tuner.core.outcome import COMPLETED
from tuner.core.redaction import redacted_values
from tuner.operations import context
from tuner.report import terminal

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.ledger import Ledger, Reader, StudyRecord, TrialRecord
    from tuner.operations.ownership import Ask
    from tuner.operations.run import Ended

EXIT_NOTHING_COMPLETED = 3
EXIT_INTERRUPTED = 130


SECTIONS = {
    "Start": ("init", "examples", "run", "submit", "probe", "scale", "schema"),
    "Look": (
        "studies", "status", "history", "similar", "best", "ui", "report", "compare", "export",
        "confirm", "extend", "branch", "rerun",
    ),
    "Team": (
        "worker", "workers", "recorder", "enqueue", "retry", "pause", "resume", "stop",
        "note", "tag",
    ),
    "Retraining": (
        "retrain", "approve", "reject", "predict", "rollback", "timetable", "scheduler",
    ),
    "Administration": ("config", "project", "doctor", "db", "gc", "delete"),
}  # fmt: skip
"""The commands by section of `tuner --help`; each section is a module."""


class Sections(click.Group):
    """A command group whose help lists the commands by section."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands of each section."""
        width = formatter.width - 6 - max(map(len, self.commands))
        for section, names in SECTIONS.items():
            with formatter.section(section):
                rows = [(name, self.commands[name].get_short_help_str(width)) for name in names]
                formatter.write_dl(rows)


@click.group(
    cls=Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name=DISTRIBUTION)
def cli() -> None:
    """Find a learning rate and its schedule, record every loss curve, and prove the result."""


def print_json(content: dict[str, Any]) -> None:
    """Print the one JSON object of a command, without secrets; JSON escapes all but DEL."""
    click.echo(json.dumps(redacted_values(content)).replace("\x7f", "\\u007f"))


def print_results(
    console: Console,
    ledger: Reader,
    study: StudyRecord,
    last: Sequence[TrialRecord] | None = None,
    *,
    reported: bool = False,
) -> None:
    """Print the ranking of a study's trials, stopped ones, the best one, and what to do next.

    If the ends of trials were `reported` already, rank completed trials only. Rates are judged by
    the best trials and by the `last` ones, which are read unless they are given.
    """
    from tuner.analysis import ranking
    from tuner.analysis.evidence import Assessor
    from tuner.core.curves import empty
    from tuner.ledger.reading import LAST, STATES
    from tuner.report import tables

    states = (COMPLETED,) if reported else STATES
    ranked = ledger.ranked(study, tables.ROWS, states)
    last = ledger.sorted_trials(study.id, LAST)[0] if last is None else last
    by_id = ledger.curves([one.id for one in ranked])
    curves = {one.number: by_id.get(one.id, empty()) for one in ranked}
    judged = {one.number: one for one in (*last, *ranked)}
    verdicts = Assessor(ledger, study).verdicts([judged[number] for number in sorted(judged)])
    counts, total = ledger.counts(study.id), ledger.count(study.id, STATES)
    if ranked:
        width, count = tables.curve_width(console), ledger.count(study.id, states)
        table = tables.ranking_table(study, ranked, curves, verdicts, width=width, count=count)
        console.print(tables.fit_to_console(table, console))
    rows = 0 if reported else 3
    stopped = ledger.first_ended(study.id, tables.STOPPED, rows)
    console.print(tables.stopped_trials(stopped, counts), soft_wrap=True)
    of = f" of {len(judged):,} of {total:,} trials" if len(judged) < total else ""
    terminal.print_text(console, f"Verdicts on rates{of}: {ranking.verdicts_in_words(verdicts)}.")
    terminal.print_text(console, ranking.best_in_words(study, ledger.best(study)), style="bold")
    print_front(console, ledger, study)
    print_decision(console, ledger, study)
    program, name = terminal.program(), shlex.quote(study.name)
    terminal.print_text(console, f"Open the curves in MLflow: {program} ui {name}")
    terminal.print_text(console, f"All about this study: {program} status {name}")


def print_front(console: Console, ledger: Reader, study: StudyRecord) -> None:
    """Print the front of a study of several objectives."""
    if not study.spec.study.objectives:
        return
    from tuner.analysis import front

    for line in front.in_words(study, ledger.completed(study.id)):
        terminal.print_text(console, line)


def print_decision(console: Console, ledger: Reader, study: StudyRecord) -> None:
    """Print what the study has decided between its best trials, if its budget pays for that."""
    if not study.deciding_trials:
        return
    from tuner.analysis import deciding

    found = deciding.decision(ledger, study)
    for line in () if found is None else deciding.in_words(found):
        terminal.print_text(console, line, style="bold")


def asking(*, yes: bool) -> Ask:
    """Return who answers whether a study of somebody else may be changed: the person, if any."""
    from tuner.operations import ownership

    if yes or not sys.stdin.isatty():
        return ownership.asking(yes=yes)

    def ask(whose: str) -> None:
        click.confirm(f"{whose[:1].upper()}{whose[1:]}. Go on?", abort=True, err=True)

    return ask


def open_own(name: str, *, yes: bool) -> Ledger:
    """Open the ledger to change a study; ask, or refuse, if it is somebody else's."""
    from tuner.operations import ownership

    ledger = context.open_ledger()
    ownership.check(ledger, name, asking(yes=yes))
    return ledger


def exit_code(ended: Ended, *, completed: bool = True) -> int:
    """Return the exit code of a command that trained; print what is left to publish."""
    if not ended.published:
        terminal.echo(
            "The trials are safe in the ledger, but not all of them are published; see above. Run "
            "`tuner recorder --once` to publish the rest when the server can be reached.",
            err=True,
        )
    if ended.interrupted:
        return EXIT_INTERRUPTED
    if not ended.published:
        return UnavailableError.exit_code
    return 0 if completed else EXIT_NOTHING_COMPLETED
