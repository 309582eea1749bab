"""The parent run of a study in MLflow: its notes, status, report and history of best values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric
from sqlalchemy import Engine, func, or_, select

from tuner.analysis import ranking
from tuner.analysis.front import front
from tuner.core.curves import LATEST
from tuner.core.errors import UnavailableError
from tuner.core.outcome import COMPLETED, RUNNING
from tuner.core.text import NAME_LIMIT, as_count, printable
from tuner.ledger import STOPPED, Reader, StudyRecord, events
from tuner.ledger.database import (
    Addresses,
    is_database,
    is_served,
    sent_once,
    tracking_client,
    tracking_reached,
)
from tuner.ledger.publications import Publications
from tuner.ledger.records import LARGEST
from tuner.ledger.tables import IS_VALUED, VIOLATION, trials
from tuner.tracking.mlflow.client_writer import BATCH, as_tags, is_run_of
from tuner.tracking.mlflow.links import Links, experiment_of
from tuner.tracking.mlflow.run_content import PARENT, milliseconds
from tuner.tracking.mlflow.views import BEST, COLOUR, COLOURS, best_view, is_known, view_tags
from tuner.tracking.notes import FOLDER, PICTURE, REPORT, About, experiment_note, study_note

FRONT = "tuner.front"
"""The tag of the runs on the front of several objectives, and of the parent run: their numbers."""
FEW = 5
"""How many of the best trials a link compares."""
NOTE_LIMIT = 5000
"""MLflow's limit of the value of an experiment's tag; that of a run's tag is higher."""


def create(
    client: MlflowClient, study: StudyRecord, experiment: str, user: str | None = None
) -> str:
    """Create the parent run of a study that `user` submitted; return its id."""
    tags = {
        "tuner.study": study.name,
        "tuner.trial": PARENT,
        "tuner.spec_digest": study.digest,
        "mlflow.source.name": "tuner",
    }
    if user is not None:
        tags["mlflow.user"] = user
    began, name = milliseconds(study.created_at), study.title[:NAME_LIMIT]
    with sent_once():
        run = client.create_run(experiment, start_time=began, tags=tags, run_name=name)
    return str(run.info.run_id)


def update(
    client: MlflowClient,
    ledger: Reader,
    study: StudyRecord,
    experiment: str,
    parent: str,
    *,
    known: int,
    at_rest: bool,
) -> int:
    """Update the parent run and the experiment's note; return the number of improvements logged.

    The first `known` improvements are already logged.
    """
    counts = update_notes(client, ledger, study, experiment, parent, at_rest=at_rest)
    improvements = _improvements(ledger, study)
    client.log_batch(parent, metrics=improvements[known:][-BATCH:])
    done = sum(count for kind, count in counts.items() if kind not in (RUNNING, "waiting"))
    if done >= study.limit or study.state == STOPPED:
        status = "KILLED" if study.state == STOPPED else "FINISHED"
        client.set_terminated(
            parent, status, milliseconds(ledger.last_end(study.id) or study.created_at)
        )
    else:
        client.update_run(parent, status="RUNNING")
    return len(improvements)


def update_notes(
    client: MlflowClient,
    ledger: Reader,
    study: StudyRecord,
    experiment: str,
    parent: str,
    *,
    at_rest: bool,
) -> dict[str, int]:
    """Write the notes of the experiment and the parent run; return the counts of trials in them.

    With `at_rest` include links to the parent run's files, which some stores list slowly.
    """
    counts, best = ledger.counts(study.id), ledger.best(study)
    links = Links(experiment=experiment, parent=parent)
    runs = Publications(ledger.engine, "mlflow").external_ids(study.id)
    best_runs = [runs[number] for number in ledger.ranking(study, FEW) if number in runs]
    done = events.latest(ledger, [study.name])[study.name]
    about = About(
        state=study.shown_state(counts),
        owner=printable(done[events.SUBMITTED].person) if events.SUBMITTED in done else None,
        tags=[*map(printable, events.tags_in(done))],
        notes=[
            printable(f"{one.person}: {one.reason}") for one in events.notes(ledger, study.name)
        ],
    )
    note = study_note(
        study,
        best,
        counts,
        links,
        about,
        best_runs=best_runs,
        silent=ledger.silent(study.id),
        files=_files(client, parent) if at_rest else (),
    )
    own = {
        "tuner.state": about.state,
        "tuner.owner": about.owner or "unknown",
        "tuner.project": study.project,
        "tuner.tags": ", ".join(about.tags)[:NOTE_LIMIT],
        "tuner.answer": ranking.best_in_words(study, best, whole=False)[:NOTE_LIMIT],
    }
    tags = {"mlflow.note.content": note[:NOTE_LIMIT], **own}
    if best is not None:
        tags["tuner.best_trial"] = str(best.number)
        _colour_best(client, study, parent, runs, best.number)
    if study.spec.study.objectives:
        tags[FRONT] = _tag_front(client, ledger, study, parent, runs)
    if ranges := ranking.ranges_in_words(study):
        tags["tuner.range"] = ranges[-1]
        tags["tuner.range_history"] = "\n".join(ranges)
    client.log_batch(parent, tags=as_tags(tags))
    summary = experiment_note(study, best, counts, links, about)
    changed = {"mlflow.note.content": summary[:NOTE_LIMIT], **own}
    if best_runs and is_known():
        changed |= view_tags(study, [best_view(study, best_runs)])
    there = client.get_experiment(experiment).tags
    for key, value in changed.items():
        if there.get(key) != value:
            client.set_experiment_tag(experiment, key, value)
    return counts


def _files(client: MlflowClient, parent: str) -> Sequence[str]:
    """Return the paths of the parent run's files.

    Files that a server stores cannot be listed through the database alone; then return those that
    the run's note already links to.
    """
    run = client.get_run(parent)
    if is_served(str(run.info.artifact_uri)) and is_database(client.tracking_uri):
        note = run.data.tags.get("mlflow.note.content", "")
        return (PICTURE, REPORT) if Path(REPORT).name in note else ()
    return [one.path for one in client.list_artifacts(parent, FOLDER)]


def _colour_best(
    client: MlflowClient, study: StudyRecord, parent: str, runs: Mapping[int, str], best: int
) -> None:
    """Highlight the best run and reset the colour of the previous one."""
    before = as_count(client.get_run(parent).data.tags.get("tuner.best_trial"))
    if before not in (None, best):
        _colour(client, study, runs, before, COLOURS[COMPLETED])
    _colour(client, study, runs, best, BEST)


def _tag_front(
    client: MlflowClient, ledger: Reader, study: StudyRecord, parent: str, runs: Mapping[int, str]
) -> str:
    """Tag the runs of the trials on the front, and of those that left it; return the front."""
    now = [str(one.number) for one in front(study, ledger.trials(study.id))]
    before = client.get_run(parent).data.tags.get(FRONT, "").split()
    for number in sorted({*now, *before} - ({*now} & {*before})):
        known = as_count(number)
        run_id = None if known is None else runs.get(known)
        if run_id is not None and is_run_of(client.get_run(run_id), study, number):
            client.set_tag(run_id, FRONT, str(number in now).lower())
    return " ".join(now)


def _colour(
    client: MlflowClient, study: StudyRecord, runs: Mapping[int, str], number: int, colour: str
) -> None:
    """Colour the run of a trial; an imported trial has none, and a row may name another's."""
    if number in runs and is_run_of(client.get_run(runs[number]), study, str(number)):
        client.set_tag(runs[number], COLOUR, colour)


def _improvements(ledger: Reader, study: StudyRecord) -> list[Metric]:
    """Return a point for each feasible trial that was the best when it completed.

    The database compares the values, so that only these few trials are read.
    """
    value, order = trials.c.value, (trials.c.ended_at, trials.c.number)
    lower = study.spec.study.direction == "minimize"
    best = func.min(value) if lower else func.max(value)
    before = best.over(order_by=order, rows=(None, -1)).label("before")
    completed = (
        select(*order, value, before)
        .where(
            trials.c.study_id == study.id,
            trials.c.state == COMPLETED,
            IS_VALUED,
            VIOLATION == 0.0,
            trials.c.number <= LARGEST,
            trials.c.ended_at.between(0.0, LATEST),
        )
        .subquery()
    )
    own, earlier = completed.c.value, completed.c.before
    query = (
        select(completed.c.number, own, completed.c.ended_at)
        .where(or_(earlier.is_(None), own < earlier if lower else own > earlier))
        .order_by(completed.c.ended_at, completed.c.number)
    )
    name = f"best_{study.spec.study.metric}"
    with ledger.engine.begin() as tx:
        return [
            Metric(name, row.value, milliseconds(row.ended_at), row.number)
            for row in tx.execute(query)
        ]


def upload_report(
    engine: Engine, places: Addresses, study: StudyRecord, files: Sequence[Path]
) -> bool:
    """Upload files to the parent run, replacing earlier ones, and link them in its note.

    Return False if there is no parent run yet. Raise `UnavailableError` if MLflow is unreachable.
    """
    run_id, _ = Publications(engine, "mlflow").study(study.id)
    if run_id is None:
        return False
    client = tracking_client(places)
    with tracking_reached(places.tracking):
        if not is_run_of(client.get_run(run_id), study, PARENT):
            raise UnavailableError(
                "the ledger names as the study's run another one in MLflow; correct it with `tuner "
                "doctor --repair`"
            )
        for file in files:
            client.log_artifact(run_id, str(file), FOLDER)
        experiment = experiment_of(client, run_id)
        update_notes(client, Reader(engine), study, experiment, run_id, at_rest=True)
    return True
