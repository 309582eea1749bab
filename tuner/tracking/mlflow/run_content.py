"""The content of a trial's run in MLflow, computed from the ledger by pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag

from tuner.analysis import ranking
from tuner.core.curves import Chunk
from tuner.core.outcome import CANCELLED, COMPLETED, DIVERGED, FAILED, PRUNED, RUNNING
from tuner.core.text import NAME_LIMIT, storable
from tuner.ledger import StudyRecord, TrialRecord
from tuner.ledger.records import ADDED, RETRIED, SEED
from tuner.ledger.records import PARENT as PARENT_TRIAL
from tuner.tracking.mlflow.views import COLOUR, COLOURS, VALUE
from tuner.tracking.notes import escape_markdown
from tuner.training.trainer import seed_of

STATUS = {
    RUNNING: "RUNNING",
    COMPLETED: "FINISHED",
    PRUNED: "KILLED",
    DIVERGED: "KILLED",
    FAILED: "FAILED",
    CANCELLED: "FAILED",
}
"""MLflow's status of a run, by our state of its trial."""

VIOLATION = "constraint_violation"
"""The metric with what a completed trial violates its study's constraints by, if there are any."""
TRACEBACK = "traceback.txt"
"""The artifact of a failed trial's run with the traceback."""
REASON_LIMIT = 5000
PARENT = "study"  # the value of the tag tuner.trial of a parent run


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """The initial content of a run."""

    run_id: str | None  # of an existing run, which may be incomplete
    name: str
    start_time: int  # milliseconds since 1970
    tags: Mapping[str, str]
    params: Mapping[str, str]
    dataset: DatasetInput | None


@dataclass(frozen=True, kw_only=True)
class Points:
    """Finite points of one metric, in the order of steps."""

    key: str
    steps: np.ndarray  # int64 [point]
    values: np.ndarray  # float64 [point]
    times: np.ndarray  # int64 [point], milliseconds since 1970


def new_run(
    study: StudyRecord,
    trial: TrialRecord,
    parent: str,
    environment: Mapping[str, Any],
    run_id: str | None,
    user: str | None = None,
) -> NewRun:
    """Return the initial content of a trial's run, of a study that `user` submitted."""
    who = {} if user is None else {"mlflow.user": user}
    return NewRun(
        run_id=run_id,
        name=f"{trial.number}: {ranking.in_short(trial.params)} ({study.title})"[:NAME_LIMIT],
        start_time=milliseconds(trial.created_at),
        tags=tags_of(study, trial, parent, environment) | shown_tags(trial) | who,
        params=params_of(trial),
        dataset=dataset_of(study),
    )


def points_of(chunk: Chunk, trial: TrialRecord) -> Iterator[Points]:
    """Yield the points for MLflow: the finite ones up to the step where the guard stopped.

    An evaluation at that step counts and the row does not: the evaluation comes before the row,
    and may have been published before the guard saw the row. Rows committed after the trial was
    read are omitted, since they may be past that step.
    """
    last = trial.steps if trial.stopped_step is None else min(trial.stopped_step, trial.steps)
    steps = np.arange(chunk.first_step, chunk.next_step)
    for name, values in chunk.columns.items():
        yield from _finite(name, values, steps, chunk.times, last)
    for name, values in chunk.metrics.items():
        yield from _finite(name, values, chunk.eval_steps, chunk.eval_times, last + 1)
    yield from _branch_points(chunk, last + 1)


def all_points(chunk: Chunk) -> Iterator[Points]:
    """Yield the finite points of a whole curve."""
    steps = np.arange(chunk.first_step, chunk.next_step)
    for name, values in chunk.columns.items():
        yield from _finite(name, values, steps, chunk.times, math.inf)
    for name, values in chunk.metrics.items():
        yield from _finite(name, values, chunk.eval_steps, chunk.eval_times, math.inf)
    yield from _branch_points(chunk, math.inf)


def _branch_points(chunk: Chunk, limit: float) -> Iterator[Points]:
    """Yield the values of branches at the steps where they began, as metrics of their own."""
    for branch in chunk.branches:
        steps, times = np.array([branch.step]), np.array([branch.time])
        for name, value in branch.metrics.items():
            yield from _finite(f"branch/{name}", np.array([value]), steps, times, limit)


def _finite(
    key: str, values: np.ndarray, steps: np.ndarray, times: np.ndarray, limit: float
) -> Iterator[Points]:
    kept = np.isfinite(values) & (steps < limit)
    if kept.any():
        at = np.rint(times[kept] * 1000).astype(np.int64)
        yield Points(key=key, steps=steps[kept], values=values[kept], times=at)


def last_points(trial: TrialRecord) -> Iterator[Points]:
    """Yield the points that record a trial's end: the guard's `stopped_step`, or the value."""
    if trial.stopped_step is not None:
        yield _last(trial, "stopped_step", trial.stopped_step, float(trial.stopped_step))
    if trial.state == COMPLETED and trial.value is not None:
        yield _last(trial, VALUE, trial.steps, trial.value)
    if trial.violation is not None:
        yield _last(trial, VIOLATION, trial.steps, trial.violation)


def _last(trial: TrialRecord, key: str, step: int, value: float) -> Points:
    at = milliseconds(trial.ended_at or 0.0)
    return Points(key=key, steps=np.array([step]), values=np.array([value]), times=np.array([at]))


def params_of(trial: TrialRecord) -> dict[str, str]:
    """Return the params of a trial's run; none if the trial failed before they were drawn."""
    if trial.params is None:
        return {}
    # the logarithm of the rate too, since the axes of MLflow's charts are linear
    params = dict(trial.params) | {"log10_lr": math.log10(float(trial.params["lr"]))}
    return _storable({key: str(value) for key, value in params.items()})


def _storable(values: Mapping[str, str]) -> dict[str, str]:
    """Return tags or params as any database of MLflow stores them; a row may have any text."""
    return {storable(key): storable(value) for key, value in values.items()}


def outcome_tags(trial: TrialRecord) -> dict[str, str]:
    """Return the tags of a run that hold its trial's outcome."""
    if trial.state == RUNNING:
        return {"tuner.outcome": RUNNING}
    tags = {"tuner.outcome": trial.state, "tuner.reason": (trial.reason or "")[:REASON_LIMIT]}
    if trial.violation is not None:
        tags["tuner.feasible"] = str(not trial.infeasible).lower()
    return _storable(tags)


def shown_tags(trial: TrialRecord) -> dict[str, str]:
    """Return the tags that the UI displays specially and users may change."""
    note = (
        {"mlflow.note.content": escape_markdown(trial.reason[:REASON_LIMIT])}
        if trial.reason
        else {}
    )
    return _storable({COLOUR: COLOURS[trial.state], **note})


def tags_of(
    study: StudyRecord, trial: TrialRecord, parent: str, environment: Mapping[str, Any]
) -> dict[str, str]:
    """Return the initial tags of a run; `environment` is empty if the trial had no attempt."""
    tags = {
        "mlflow.parentRunId": parent,
        "mlflow.source.name": study.spec.workload.function,
        "mlflow.source.type": "LOCAL",
        "tuner.study": study.name,
        "tuner.trial": str(trial.number),
        "tuner.seed": str(seed_of(study.spec, trial.number, trial.attrs.get(SEED))),
        "tuner.outcome": RUNNING,
        "tuner.code_digest": study.workload["code"],
    }
    if ADDED in trial.attrs:
        tags["tuner.added"] = str(trial.attrs[ADDED])
    if RETRIED in trial.attrs:
        tags["tuner.retry_of"] = str(trial.attrs[RETRIED])
    if parent_trial := trial.attrs.get(PARENT_TRIAL):
        tags["tuner.parent"] = f"{parent_trial['study']}:{parent_trial['trial']}"
    if not environment:  # it was added and cancelled before any attempt
        return _storable(tags)
    tags |= {
        "tuner.device": environment["device"],
        "tuner.host": environment["host"],
        "tuner.python": environment["python"],
        "tuner.trainer": environment["settled"]["trainer"],
        "tuner.threads": str(environment["settled"]["threads"]),
    }
    if environment["git_commit"]:
        tags["mlflow.source.git.commit"] = environment["git_commit"]
        tags["tuner.git_dirty"] = str(environment["git_dirty"]).lower()
    for name, version in environment["packages"].items():
        tags[f"tuner.version.{name}"] = version
    return _storable(tags)


def dataset_of(study: StudyRecord) -> DatasetInput | None:
    """Return the record of a run's training data, or None if they have no digest."""
    workload = study.workload
    if not workload.get("data"):
        return None
    rows = workload.get("training_rows")
    sizes = None if rows is None else f'{{"num_rows": {rows}}}'
    dataset = Dataset(
        name=workload.get("data_name") or "",
        digest=workload["data"],
        source_type="code",
        source=f'{{"tags": {{"mlflow.source.name": "{study.spec.workload.function}"}}}}',
        profile=sizes,
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def milliseconds(seconds: float) -> int:
    """Return a time in milliseconds, as MLflow stores it."""
    return round(seconds * 1000)
