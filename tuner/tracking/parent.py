"""The parent run of a study in MLflow: its experiment, its summary, and who was ever the best."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Metric
from sqlalchemy import select

from tuner import results
from tuner.errors import UnavailableError
from tuner.ledger import STOPPED, Reader, StudyRecord
from tuner.ledger.tables import trials
from tuner.outcome import COMPLETED, RUNNING
from tuner.tracking.run_content import NAME_LIMIT, PARENT, milliseconds
from tuner.tracking.run_writers import BATCH, as_tags


class Ended(NamedTuple):
    """A trial that has ended, as far as the parent run is concerned."""

    number: int
    completed: bool
    value: float | None
    ended_at: float


def experiment_id(client: MlflowClient, study: StudyRecord, artifacts: Path | None) -> str:
    """Find or create the study's experiment. Raises `UnavailableError` when it was deleted."""
    found = client.get_experiment_by_name(study.title)
    if found is not None and found.lifecycle_stage != "active":
        raise UnavailableError(
            f"the experiment {study.title!r} is deleted in MLflow; restore it there (`mlflow "
            f"experiments restore --experiment-id {found.experiment_id}`), or clear it away for "
            "good (`mlflow gc`)"
        )
    if found is not None:
        return str(found.experiment_id)
    location = None if artifacts is None else (artifacts / f"study-{study.id}").as_uri()
    # the UI then opens on training runs, not on generative AI
    tags = {
        "tuner.study": study.name,
        "tuner.title": study.title,
        "mlflow.experimentKind": "custom_model_development",
    }
    return str(client.create_experiment(study.title, artifact_location=location, tags=tags))


def create(client: MlflowClient, study: StudyRecord, experiment: str) -> str:
    """Create the parent run; give its id."""
    run = client.create_run(
        experiment,
        start_time=milliseconds(study.created_at),
        tags={
            "tuner.study": study.name,
            "tuner.trial": PARENT,
            "tuner.spec_digest": study.digest,
            "mlflow.source.name": "tuner",
        },
        run_name=study.title[:NAME_LIMIT],
    )
    return str(run.info.run_id)


def describe(
    client: MlflowClient, ledger: Reader, study: StudyRecord, parent: str, *, known: int
) -> int:
    """Bring the parent run's summary up to date; give how many improvements it has now.

    The first `known` of them are there already.
    """
    counts = ledger.counts(study.id)
    best = ledger.best(study)
    done = sum(count for kind, count in counts.items() if kind not in (RUNNING, "waiting"))
    stopped = f"{study.reason}\n\n" if study.reason else ""
    note = (
        f"{stopped}{results.best_in_words(study, best)}\n\n"
        f"{done} of {study.limit} trials have ended: {results.counts_in_words(counts)}.\n\n"
        f"{study.spec.study.description}"
    )
    tags = {"mlflow.note.content": note.strip()}
    if best is not None:
        tags["tuner.best_trial"] = str(best.number)
    ended = _ended(ledger, study)
    improvements = _improvements(study, ended)
    client.log_batch(parent, metrics=improvements[known:][-BATCH:], tags=as_tags(tags))
    if done >= study.limit or study.state == STOPPED:
        last = max((one.ended_at for one in ended), default=study.created_at)
        status = "KILLED" if study.state == STOPPED else "FINISHED"
        client.set_terminated(parent, status, milliseconds(last))
    else:
        client.update_run(parent, status="RUNNING")
    return len(improvements)


def _ended(ledger: Reader, study: StudyRecord) -> list[Ended]:
    """Read the trials that have ended, in the order in which they did."""
    query = (
        select(
            trials.c.number,
            (trials.c.state == COMPLETED).label("completed"),
            trials.c.value,
            trials.c.ended_at,
        )
        .where(trials.c.study_id == study.id, trials.c.state != RUNNING)
        .order_by(trials.c.ended_at, trials.c.number)
    )
    with ledger.engine.begin() as tx:
        return [Ended(*row) for row in tx.execute(query)]


def _improvements(study: StudyRecord, ended: list[Ended]) -> list[Metric]:
    """Give a point for each trial that was the best when it completed."""
    lower = study.spec.study.direction == "minimize"
    points, best = [], None
    for one in ended:
        if not one.completed:
            continue
        assert one.value is not None
        if best is None or (one.value < best if lower else one.value > best):
            best = one.value
            name = f"best_{study.spec.study.metric}"
            points.append(Metric(name, best, milliseconds(one.ended_at), one.number))
    return points
