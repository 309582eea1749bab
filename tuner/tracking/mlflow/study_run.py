"""The parent run of a study in MLflow: its experiment, its summary, and who was ever the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric
from sqlalchemy import func, or_, select

from tuner.analysis import ranking
from tuner.core.errors import UnavailableError
from tuner.core.outcome import COMPLETED, RUNNING
from tuner.core.text import NAME_LIMIT
from tuner.ledger import STOPPED, Reader, StudyRecord
from tuner.ledger.database import is_database, is_served, sent_once
from tuner.ledger.publications import Publications
from tuner.ledger.tables import trials
from tuner.tracking.mlflow.client_writer import BATCH, as_tags
from tuner.tracking.mlflow.experiments import TITLE, find
from tuner.tracking.mlflow.run_content import PARENT, milliseconds
from tuner.tracking.mlflow.views import (
    BEST,
    COLOUR,
    COLOURS,
    Links,
    best_view,
    is_known,
    view_tags,
    views,
)
from tuner.tracking.notes import FOLDER, PICTURE, REPORT, experiment_note, study_note

FEW = 5
"""So many of the best trials are compared by a link."""
NOTE_LIMIT = 5000
"""What MLflow takes as the value of an experiment's tag; of a run's it takes more."""


def experiment_id(
    client: MlflowClient, study: StudyRecord, artifacts: Path | None, parent: str | None
) -> str:
    """Find or create the study's experiment; `parent` is its parent run, if it is published.

    Raise `UnavailableError` when it was deleted.
    """
    found = find(client, study, parent)
    if found is not None and found.lifecycle_stage != "active":
        raise UnavailableError(
            f"the experiment {found.name!r} is deleted in MLflow; restore it there (`mlflow "
            f"experiments restore --experiment-id {found.experiment_id}`), or clear it away for "
            "good (`mlflow gc`)"
        )
    if found is not None:
        where = str(found.experiment_id)
        for key, value in view_tags(study, views(study)).items() if is_known() else ():
            if found.tags.get(key) != value:  # of another version of ours
                client.set_experiment_tag(where, key, value)
        return where
    location = None if artifacts is None else (artifacts / f"study-{study.id}").as_uri()
    # the UI then opens on training runs, not on generative AI
    tags = {
        "tuner.study": study.name,
        TITLE: study.title,
        "mlflow.experimentKind": "custom_model_development",
        **(view_tags(study, views(study)) if is_known() else {}),
    }
    return str(client.create_experiment(study.title, artifact_location=location, tags=tags))


def create(client: MlflowClient, study: StudyRecord, experiment: str) -> str:
    """Create the parent run; give its id."""
    tags = {
        "tuner.study": study.name,
        "tuner.trial": PARENT,
        "tuner.spec_digest": study.digest,
        "mlflow.source.name": "tuner",
    }
    began, name = milliseconds(study.created_at), study.title[:NAME_LIMIT]
    with sent_once():
        run = client.create_run(experiment, start_time=began, tags=tags, run_name=name)
    return str(run.info.run_id)


def describe(
    client: MlflowClient,
    ledger: Reader,
    study: StudyRecord,
    experiment: str,
    parent: str,
    *,
    known: int,
    at_rest: bool,
) -> int:
    """Bring the summary of a study up to date; give how many improvements the parent run has now.

    The first `known` of them are there already.
    """
    counts = tell(client, ledger, study, experiment, parent, at_rest=at_rest)
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


def tell(
    client: MlflowClient,
    ledger: Reader,
    study: StudyRecord,
    experiment: str,
    parent: str,
    *,
    at_rest: bool,
) -> dict[str, int]:
    """Write the notes of the experiment and of the parent run; give the counts they tell of.

    `at_rest`: also what is among the parent run's files, which is slow to ask of some stores.
    """
    counts, best = ledger.counts(study.id), ledger.best(study)
    links = Links(experiment=experiment, parent=parent)
    runs = Publications(ledger.engine, "mlflow").external_ids(study.id)
    best_runs = [runs[number] for number in ledger.ranking(study, FEW) if number in runs]
    note = study_note(
        study,
        best,
        counts,
        links,
        best_runs=best_runs,
        silent=ledger.silent(study.id),
        files=_files(client, parent) if at_rest else (),
    )
    tags = {"mlflow.note.content": note[:NOTE_LIMIT]}
    if best is not None:
        tags["tuner.best_trial"] = str(best.number)
        _colour_best(client, parent, runs, best.number)
    if said := ranking.ranges_in_words(study):
        tags["tuner.range"] = said[-1]
        tags["tuner.range_history"] = "\n".join(said)
    client.log_batch(parent, tags=as_tags(tags))
    about = experiment_note(study, best, counts, links)
    changed = {"mlflow.note.content": about[:NOTE_LIMIT]}
    if best_runs and is_known():
        changed |= view_tags(study, [best_view(study, best_runs)])
    for key, value in changed.items():
        client.set_experiment_tag(experiment, key, value)
    return counts


def _files(client: MlflowClient, parent: str) -> Sequence[str]:
    """List the parent run's files.

    A server keeps them where only it can look; without its address they are those that the note
    of the run links to.
    """
    run = client.get_run(parent)
    if is_served(str(run.info.artifact_uri)) and is_database(client.tracking_uri):
        note = run.data.tags.get("mlflow.note.content", "")
        return (PICTURE, REPORT) if Path(REPORT).name in note else ()
    return [one.path for one in client.list_artifacts(parent, FOLDER)]


def _colour_best(client: MlflowClient, parent: str, runs: Mapping[int, str], best: int) -> None:
    """Let the best run stand out, and the one that was the best before no more."""
    before = client.get_run(parent).data.tags.get("tuner.best_trial")
    if before is not None and before != str(best) and int(before) in runs:
        client.set_tag(runs[int(before)], COLOUR, COLOURS[COMPLETED])
    if best in runs:  # an imported one has no run
        client.set_tag(runs[best], COLOUR, BEST)


def _improvements(ledger: Reader, study: StudyRecord) -> list[Metric]:
    """Give a point for each trial that was the best when it completed.

    The database compares: of ten thousand trials a few dozen are read.
    """
    value, order = trials.c.value, (trials.c.ended_at, trials.c.number)
    lower = study.spec.study.direction == "minimize"
    best = func.min(value) if lower else func.max(value)
    before = best.over(order_by=order, rows=(None, -1)).label("before")
    completed = (
        select(*order, value, before)
        .where(trials.c.study_id == study.id, trials.c.state == COMPLETED)
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
