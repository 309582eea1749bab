"""The parent run of a study in MLflow: its experiment, its summary, and who was ever the best."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric
from sqlalchemy import func, or_, select

from tuner import results
from tuner.errors import UnavailableError
from tuner.ledger import STOPPED, Reader, StudyRecord
from tuner.ledger.tables import trials
from tuner.outcome import COMPLETED, RUNNING
from tuner.tracking.run_content import NAME_LIMIT, PARENT, milliseconds
from tuner.tracking.run_writers import BATCH, as_tags


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
    if said := results.ranges_in_words(study):
        tags["tuner.range"] = said[-1]
        tags["tuner.range_history"] = "\n".join(said)
    improvements = _improvements(ledger, study)
    client.log_batch(parent, metrics=improvements[known:][-BATCH:], tags=as_tags(tags))
    if done >= study.limit or study.state == STOPPED:
        status = "KILLED" if study.state == STOPPED else "FINISHED"
        client.set_terminated(parent, status, milliseconds(_last_end(ledger, study)))
    else:
        client.update_run(parent, status="RUNNING")
    return len(improvements)


def _last_end(ledger: Reader, study: StudyRecord) -> float:
    """Read when the last trial ended; the study's creation where there was none."""
    query = select(func.max(trials.c.ended_at)).where(trials.c.study_id == study.id)
    with ledger.engine.begin() as tx:
        return float(tx.scalar(query) or study.created_at)


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
