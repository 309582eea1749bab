"""The section Look: what is known of studies and trials, and what follows from it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.base import (
    EXIT_NOTHING_COMPLETED,
    cli,
    exit_code,
    print_decision,
    print_front,
    print_json,
    print_results,
)
from tuner.cli.options import StudyName, with_allow, with_json, with_reason
from tuner.core.text import ago
from tuner.operations import context
from tuner.report import terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuner.ledger import Reader, StudyRecord
    from tuner.operations.confirm import Confirmation
    from tuner.report.comparison import Alignment


@cli.command()
@click.option("--project", help="List only studies of this project; default: TUNER_PROJECT.")
@click.option(
    "--owner", "owners", multiple=True, help="Only those that this user submitted; repeatable."
)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(["open", "paused", "stopped", "ended", "unreadable"]),
    help="Only studies in this state; repeatable.",
)
@click.option("--tag", "tags", multiple=True, help="Only studies with this tag; repeatable.")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%SZ"]),
    help="Only studies with activity since this date in UTC.",
)
@click.option(
    "--spend",
    "spent",
    is_flag=True,
    help="Show time and steps by study, project and person, and what pruning saved.",
)
@with_json
def studies(
    project: str | None,
    owners: tuple[str, ...],
    states: tuple[str, ...],
    tags: tuple[str, ...],
    since: datetime | None,
    spent: bool,
    as_json: bool,
) -> None:
    """List the studies of this database, those of a project, or of a user, last active first."""
    from tuner.analysis import ranking
    from tuner.ledger import events
    from tuner.operations import spend, studies

    ledger = context.open_ledger()
    wanted = studies.Wanted(
        project=project or context.named_project(),
        owners=owners,
        states=states,
        tags=tags,
        since=None if since is None else since.replace(tzinfo=UTC).timestamp(),
    )
    found = studies.studies(ledger, wanted)
    if spent:
        _print_spend(spend.of_listed(ledger, found), as_json=as_json)
        return
    if as_json:
        print_json({"studies": found})
        return
    if not found:
        none = wanted == studies.Wanted()
        terminal.echo(
            "No studies yet; `tuner run FILE` creates one." if none else "No study is like that."
        )
    now = ledger.now()
    for status in found:
        if status["state"] == "unreadable":
            terminal.echo(f"{status['title']}: unreadable, {status['reason']}")
            continue
        counts = ranking.counts_in_words(status["trials"])
        best = status["best"]
        value = f", best {status['metric']} {best['value']:.4g}" if best else ""
        who = status["submitted"]
        by = f", by {events.called(who['os_user'], who['db_role'])}" if who else ""
        tagged = f" [{', '.join(status['tags'])}]" if status["tags"] else ""
        terminal.echo(
            f"{status['title']}: {status['state']}, {counts} of {status['budget']['trials']}{value}"
            f"{by}, active {ago(now - status['last_activity'])}{tagged}"
        )


def _print_spend(found: dict[str, Any], *, as_json: bool) -> None:
    from tuner.analysis import ranking

    if as_json:
        print_json({"spend": found})
        return
    for kind in ("studies", "projects", "people"):
        terminal.echo(f"By {kind}:")
        for name, one in sorted(found[kind].items(), key=lambda pair: -pair[1]["seconds"]):
            best = found["best"].get(name) if kind == "studies" else None
            value = f"; best {best['metric']} {best['value']:.4g}" if best else ""
            terminal.echo(f"  {name}: {ranking.spend_in_words(one)}{value}")
    terminal.echo(f"Together: {ranking.spend_in_words(found['total'])}.")


@cli.command()
@click.argument("name", type=StudyName())
@with_json
def history(name: str, as_json: bool) -> None:
    """Show who did what to the study NAME, when and why; also to one that is deleted."""
    from tuner.operations import history

    found = history.history(context.open_ledger(), name)
    if as_json:
        print_json({"study": name, "events": found})
        return
    for one in found:
        terminal.echo(history.in_words(one))
    if not found:
        terminal.echo(f"Nothing is recorded of {name!r}: an earlier version of tuner made it.")


@cli.command()
@click.argument("name", type=StudyName())
@click.option("--trial", type=int, help="Show this trial: why it ended, and its traceback.")
@with_json
def status(name: str, trial: int | None, as_json: bool) -> None:
    """Show the state of the study NAME: its trials, the best one, its workers."""
    from tuner.analysis import ranking
    from tuner.ledger.exclusions import Exclusion
    from tuner.ledger.reading import LAST
    from tuner.operations import history, status, workers

    ledger = context.open_ledger()
    study = ledger.study(name)
    if trial is not None:
        _print_trial(status.trial_status(ledger, study, trial), as_json=as_json)
        return
    if as_json:
        print_json(status.status(ledger, study))
        return
    last, faults = ledger.sorted_trials(study.id, LAST)
    found = status.status(ledger, study, faults)
    console = terminal.console()
    counts = ranking.counts_in_words(found["trials"])
    terminal.print_text(console, f"{study.title}: {found['state']}, {counts} of {study.limit}")
    if study.reason:
        terminal.print_text(console, study.reason)
    if found["tags"]:
        terminal.print_text(console, f"Tags: {', '.join(found['tags'])}")
    if found["quota_reached"]:
        reached = f"It waits: {found['quota_reached']}."
        terminal.print_text(console, reached, style="bold")
    for act in (found["submitted"], found["last_action"], *found["notes"]):
        if act is not None:
            terminal.print_text(console, history.in_words(act))
    terminal.print_text(console, f"Spent: {ranking.spend_in_words(found['spend'])}.")
    for line in ranking.ranges_in_words(study):
        terminal.print_text(console, line)
    for one in found["workers"]:
        machine = workers.machine_in_words(one)
        by = f"{one['worker']} ({machine})" if machine else one["worker"]
        terminal.print_text(console, f"trial {one['trial']} is trained by {by}")
    for one in found["silent"]:
        silent = f"trial {one['trial']} has measured nothing for {one['seconds']:.0f} s; "
        terminal.print_text(console, f"{silent}{one['worker']} may hang or be dead", style="bold")
    for one in found["left_alone"]:
        left = Exclusion(**one)
        where = f"{left.worker} leaves this study alone for {left.seconds:.0f} s: "
        terminal.print_text(console, where + left.sentence, style="bold")
    for one in found["unreadable"]:
        terminal.print_text(console, one["reason"], style="bold")
    print_results(console, ledger, study, last)
    _print_pages(ledger, study)


@cli.command()
@click.argument("name", type=StudyName())
@with_json
def similar(name: str, as_json: bool) -> None:
    """List the studies that the study NAME could learn from.

    They are listed with how well they predict its trials; `[search] learn_from` names them.
    """
    from tuner.operations import similar

    ledger = context.open_ledger()
    study = ledger.study(name)
    found = similar.similar(ledger, study)
    if as_json:
        print_json({"study": name, "similar": [one.as_json() for one in found]})
        return
    if not found:
        terminal.echo(f"No other study has trials in the space of {name!r}.")
    for one in found:
        terminal.echo(f"{one.source.name}: {one.sentence}")


def _print_trial(found: dict[str, Any], *, as_json: bool) -> None:
    from tuner.config import written

    if as_json:
        print_json(found)
        return
    console = terminal.console()
    where = f"{found['study']}, trial {found['trial']}"
    terminal.print_text(console, f"{where}: {found['state']} after {found['steps']} steps")
    if found["reason"]:
        terminal.print_text(console, found["reason"])
    for name, value in (found["params"] or {}).items():
        terminal.print_text(console, f"  {name} = {written(value)}")
    for one in found["attempts"]:
        ended = f"{one['ending']}: {one['reason']}" if one["ending"] else "training"
        terminal.print_text(console, f"attempt {one['number']} by {one['worker']}: {ended}")
    if found["traceback"]:
        for line in found["traceback"].split("\n"):
            terminal.print_text(console, f"  {line}")


def _print_pages(ledger: Reader, study: StudyRecord) -> None:
    """Print the pages of the UI, if one is running; an unreachable MLflow is no error."""
    from tuner.core.errors import UnavailableError
    from tuner.ledger.publications import Publications
    from tuner.operations import ui

    run_id, _ = Publications(ledger.engine, "mlflow").study(study.id)
    places = context.addresses()
    if run_id is None or not ui.shows(places, run_id):
        return
    from tuner.operations import links  # imports MLflow

    try:
        found = links.pages(ledger, study, places)
    except UnavailableError as error:
        terminal.echo(f"no links to pages: {error}", err=True)
        return
    for what, address in found.items():
        terminal.echo(f"{what}: {address}")


@cli.command()
@click.argument("name", type=StudyName())
@click.option("--open", "opened", is_flag=True, help="Open its run in a browser.")
@with_json
def best(name: str, opened: bool, as_json: bool) -> int:
    """Show the best trial of the study NAME, or its front if it has several objectives."""
    from tuner.analysis import ranking
    from tuner.operations import best

    ledger = context.open_ledger()
    study = ledger.study(name)
    if as_json:
        found = {"study": name, "best": best.best(ledger, study)}
        print_json(found | best.decision(ledger, study) | best.front(ledger, study))
    else:
        terminal.echo(ranking.best_in_words(study, ledger.best(study)))
        print_front(terminal.console(), ledger, study)
        print_decision(terminal.console(), ledger, study)
    if ledger.best(study) is None:
        return EXIT_NOTHING_COMPLETED
    return _serve(ledger, [study], None, "best trial", as_json=None) if opened else 0


@cli.command()
@click.argument("names", type=StudyName(), nargs=-1)
@click.option(
    "--port", type=int, help="Port on 127.0.0.1; by default 5000, or a free port if that is taken."
)
@with_json
def ui(names: tuple[str, ...], port: int | None, as_json: bool) -> int:
    """Serve the MLflow UI on this database, on 127.0.0.1, and open studies in a browser.

    Several studies are opened as one comparison of all their trials.
    """
    ledger = context.open_ledger()
    return _serve(ledger, [ledger.study(name) for name in names], port, as_json=as_json)


def _serve(
    ledger: Reader,
    studies: Sequence[StudyRecord],
    port: int | None,
    what: str = "loss curves",
    *,
    as_json: bool | None,
) -> int:
    """Serve the UI and open a page of one study, or that which compares several.

    With as_json None, a JSON object has been printed already.
    """
    from tuner.operations import links, ui

    places = context.addresses()

    def announce(url: str) -> str | None:
        page = links.page(ledger, studies, places, url, what)
        if as_json:
            print_json({"url": url} | ({"page": page} if page else {}))
        else:
            shown = page or f"{url}/#/experiments?workflowType=machine_learning"
            terminal.echo(f"MLflow UI: {shown}", err=as_json is None)
        return page

    return ui.serve(places, port, announce)


@cli.command()
@click.argument("names", type=StudyName(), nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder to write to; by default below reports.",
)
@click.option("--ui", metavar="URL", help="Address of the MLflow UI, for links to runs.")
@click.option(
    "--tracked/--not-tracked",
    default=True,
    help="Link to runs, and upload the report to the study's parent run.",
)
@with_json
def report(
    names: tuple[str, ...], to: Path | None, ui: str | None, tracked: bool, as_json: bool
) -> None:
    """Write the report of the study NAME as one HTML page, and its pictures.

    Several names are shown side by side on one page.
    """
    from tuner.operations import report

    ledger = context.open_ledger()
    studies = [ledger.study(name) for name in names]
    done = report.report(ledger, studies, context.addresses(), to=to, ui=ui, tracked=tracked)
    if as_json:
        pictures = [str(path) for path in done.written.pictures]
        found = {"studies": list(names), "report": str(done.written.page), "pictures": pictures}
        print_json(found | {"in_mlflow": done.in_mlflow})
    else:
        terminal.echo(f"Report: {done.written.page}")
    if done.problem:
        terminal.echo(f"The report was not uploaded to MLflow: {done.problem}", err=True)


@cli.command()
@click.argument("trials", nargs=-1, required=True, metavar="STUDY:TRIAL...")
@click.option("--metric", default="train_loss", show_default=True, help="The metric to draw.")
@click.option(
    "--by",
    type=click.Choice(["step", "time", "fraction"]),
    default="step",
    show_default=True,
    help="How to align curves; a fraction is that of the horizon.",
)
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder to write to; by default below reports.",
)
@with_json
def compare(
    trials: tuple[str, ...],
    metric: str,
    by: Alignment,
    to: Path | None,
    as_json: bool,
) -> None:
    """Draw the curves of any trials on one page, with every point, as HTML and PNG.

    A TRIAL is a number, a range such as 0-9, `best` or `all`.
    """
    from tuner.operations import compare

    written = compare.compare(context.open_ledger(), trials, metric, by, to)
    if as_json:
        pictures = [str(path) for path in written.pictures]
        print_json({"page": str(written.page), "pictures": pictures})
    else:
        terminal.echo(f"Comparison: {written.page}")


@cli.command()
@click.argument("name", type=StudyName())
@click.option(
    "--to",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder to write to.",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "parquet"]),
    default="csv",
    show_default=True,
    help="The format of the files.",
)
@with_json
def export(name: str, folder: Path, file_format: str, as_json: bool) -> None:
    """Write the trials and curves of the study NAME as two tables into a folder.

    A row of curves is one measured value: trial, step, metric, value, time.
    """
    from tuner.operations import export

    ledger = context.open_ledger()
    files = export.export(ledger, ledger.study(name), folder, file_format)
    if as_json:
        print_json({"study": name, "files": {what: str(file) for what, file in files.items()}})
    else:
        for file in files.values():
            terminal.echo(str(file))


@cli.command()
@click.argument("name", type=StudyName())
@click.option(
    "--top",
    type=click.IntRange(2),
    default=3,
    show_default=True,
    help="Number of trials to compare.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Number of new seeds for each.",
)
@click.option("--each", help="Compare the best trial of each value of this, such as schedule.")
@with_allow
@with_json
def confirm(
    name: str, top: int, seeds: int, each: str | None, prefixes: tuple[str, ...], as_json: bool
) -> int:
    """Train the best trials of the study NAME again, to decide whether the best one is best.

    With --each schedule, decide which schedule is best. New seeds are used, for trials of the study
    "NAME confirm". Run it again after an interruption.
    """
    from tuner.operations import confirm

    ledger = context.open_ledger()
    done = confirm.confirm(
        ledger,
        context.addresses(),
        ledger.study(name),
        top=top,
        seeds=seeds,
        prefixes=prefixes,
        console=terminal.console(stderr=as_json),
        each=each,
    )
    found = done.confirmation
    if as_json:
        print_json(found.as_json() | {"unfinished": found.unfinished})
    else:
        _print_confirmation(found)
        if found.unfinished:
            terminal.echo(
                f"{found.unfinished} trials have not ended; run the same command to resume.",
                err=True,
            )
    return exit_code(done.ended, completed=any(one.completed for one in found.candidates))


@cli.command()
@click.argument("name", type=StudyName())
@click.argument("trials", nargs=-1, required=True, type=click.IntRange(0), metavar="TRIAL...")
@click.option("--steps", type=click.IntRange(1), help="Steps to train beyond the horizon.")
@click.option("--epochs", type=click.IntRange(1), help="Epochs, if the study counts in them.")
@click.option("--examples", type=click.IntRange(1), help="Examples, if the study counts in them.")
@with_allow
@with_reason
@with_json
def extend(
    name: str,
    trials: tuple[int, ...],
    steps: int | None,
    epochs: int | None,
    examples: int | None,
    prefixes: tuple[str, ...],
    reason: str,
    as_json: bool,
) -> int:
    """Train trials of the study NAME further, as trials of a study with a longer horizon.

    They have the same parameters and seeds. With a schedule that does not depend on the horizon
    they go on where the trials ended, else they start anew. Run it again after an interruption.
    """
    from tuner.operations import extend

    ledger = context.open_ledger()
    done = extend.extend(
        ledger,
        context.addresses(),
        ledger.study(name),
        trials,
        more={"steps": steps, "epochs": epochs, "examples": examples},
        prefixes=prefixes,
        console=terminal.console(stderr=as_json),
        reason=reason,
    )
    if as_json:
        print_json(done.as_json())
    else:
        for one in done.trials:
            terminal.echo(one.sentence)
        terminal.echo(f"They are trials of {done.study.name!r}.")
    return exit_code(
        done.ended, completed=any(one.trial.state == "completed" for one in done.trials)
    )


@cli.command()
@click.argument("name", type=StudyName())
@click.argument("trial", type=click.IntRange(0))
@click.option(
    "--at",
    required=True,
    multiple=True,
    type=click.IntRange(1),
    metavar="HORIZON...",
    help="Where the decays end, in the unit of the study's budget of a trial.",
)
@click.argument("more", nargs=-1, type=click.IntRange(1), metavar="")
@click.option(
    "--decay",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the horizon that decays [the trial's own; 0.2 of a constant rate].",
)
@click.option(
    "--shape",
    type=click.Choice(["linear", "cosine", "1-sqrt"]),
    help="Of the decay [the trial's own; 1-sqrt of a constant rate].",
)
@with_allow
@with_reason
@with_json
def branch(
    name: str,
    trial: int,
    at: tuple[int, ...],
    more: tuple[int, ...],
    decay: float | None,
    shape: str | None,
    prefixes: tuple[str, ...],
    reason: str,
    as_json: bool,
) -> int:
    """Train a TRIAL of the study NAME with a decay at each HORIZON, all from one stem.

    The trial's schedule is constant or wsd. Each branch is bit by bit the trial that would have
    been trained alone. Run it again after an interruption.
    """
    from tuner.operations import branch

    ledger = context.open_ledger()
    done = branch.branch(
        ledger,
        context.addresses(),
        ledger.study(name),
        trial,
        at=(*at, *more),
        decay=decay,
        shape=shape,
        prefixes=prefixes,
        console=terminal.console(stderr=as_json),
        reason=reason,
    )
    if as_json:
        print_json(done.as_json())
    else:
        for one in done.branches:
            terminal.echo(one.sentence)
        terminal.echo(done.sentence)
    return exit_code(
        done.ended, completed=any(one.trial.state == "completed" for one in done.branches)
    )


def _print_confirmation(found: Confirmation) -> None:
    from rich.table import Table

    from tuner.analysis import ranking

    table = Table(box=None, pad_edge=False)
    for title in ("trial", "parameters", "found", "mean", "seeds"):
        table.add_column(title, justify="left" if title == "parameters" else "right")
    for one in found.candidates:
        mean = "" if one.mean is None else f"{one.mean:.4g}"
        seeds = f"{len(one.completed)}/{len(one.values)}"
        short = ranking.in_short(one.params)
        table.add_row(str(one.trial), short, f"{one.found:.4g}", mean, seeds)
    console = terminal.console()
    console.print(table)
    terminal.print_text(console, found.sentence, style="bold")
    terminal.print_text(console, found.answer, style="bold")


@cli.command()
@click.argument("name", type=StudyName())
@click.argument("trial", type=click.IntRange(0))
@with_allow
@with_json
def rerun(name: str, trial: int, prefixes: tuple[str, ...], as_json: bool) -> int:
    """Train one TRIAL of the study NAME again and compare its curve, bit by bit.

    Nothing is written. The exit code is 0 if all values are equal, else 1.
    """
    from tuner.operations import rerun

    ledger = context.open_ledger()
    found = rerun.rerun(ledger, ledger.study(name), trial, prefixes)
    if as_json:
        print_json(found.as_json())
    else:
        terminal.echo(found.sentence)
    return 0 if found.equal else 1
