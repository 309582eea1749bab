"""From the ledger into MLflow: one parent run a study, one child run a trial, every finite point.

Everything written is idempotent: a run is found again by its tags, a parameter or a tag may be
written twice with the same value, and MLflow drops a metric's point that it has already, since
the point's time was fixed when it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    Run,
    RunTag,
)

from tuner import results
from tuner.curves import Chunk
from tuner.errors import UnavailableError
from tuner.failpoints import reach
from tuner.ledger import STOPPED, Reader, StudyRecord, TrialRecord
from tuner.outcome import CANCELLED, COMPLETED, DIVERGED, FAILED, PRUNED, RUNNING
from tuner.storage import tracking_reached
from tuner.tracking.publications import Publication, Publications
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

BATCH = 1000
"""How many points MLflow takes in one call."""
NAME_LIMIT = 250
REASON_LIMIT = 5000
PARENT = "study"  # what the tag tuner.trial says on a parent run


class RunPublisher:
    """Writes runs through MLflow's client, to a file or to a server."""

    target = "mlflow"

    def __init__(
        self,
        client: MlflowClient,
        publications: Publications,
        ledger: Reader,
        artifacts: Path | None,
    ) -> None:
        self._client = client
        self._publications = publications
        self._ledger = ledger
        self._artifacts = artifacts  # None: the server says where

    def behind(self, study: StudyRecord) -> bool:
        """Tell whether there is anything to publish."""
        parent, published = self._publications.study(study.id)
        return parent is None or published != study.revision or any(self._due(study))

    def publish(self, study: StudyRecord) -> None:
        """Publish what is new of a claimed study. Raises `UnavailableError`."""
        with tracking_reached(self._client.tracking_uri):
            self._publish(study)

    def _publish(self, study: StudyRecord) -> None:
        parent, _ = self._publications.study(study.id)
        experiment = experiment_id(self._client, study, self._artifacts)
        existing: dict[str, Run] | None = None
        if parent is None:
            existing = runs_of(self._client, study, experiment)
            parent = self._parent(study, experiment, existing.get(PARENT))
            self._publications.note_study(study.id, parent, 0)
        environments = environments_of(self._ledger, study)
        for trial, publication in self._due(study):
            run_id = publication.external_id if publication else None
            if run_id is None:
                if publication is not None and existing is None:
                    existing = runs_of(self._client, study, experiment)
                found = (existing or {}).get(str(trial.number))
                tags = tags_of(study, trial, parent, environments[trial.id])
                run_id = self._create(study, trial, publication, found, experiment, tags)
            self._publish_trial(trial, run_id, publication)
        self._describe(study, parent)
        self._publications.note_study(study.id, parent, study.revision)

    def discard(self, study: StudyRecord, numbers: Collection[int]) -> None:
        """Delete the runs of some trials, and of others all but one, so that they can be anew.

        MLflow keeps what is deleted until its own garbage collection.
        """
        with tracking_reached(self._client.tracking_uri):
            known = set(self._publications.external_ids(study.id).values())
            experiment = experiment_id(self._client, study, self._artifacts)
            kept: set[str] = set()
            # published ones first, so that of two runs of a trial the other one goes
            runs = all_runs(self._client, study, experiment)
            for run in sorted(runs, key=lambda run: run.info.run_id not in known):
                key = run.data.tags["tuner.trial"]
                if key in kept or (key.isdecimal() and int(key) in numbers):
                    self._client.delete_run(run.info.run_id)
                kept.add(key)

    def _due(self, study: StudyRecord) -> Iterator[tuple[TrialRecord, Publication | None]]:
        """Yield the trials of which there is something to publish."""
        for trial, publication in self._publications.open_trials(study.id):
            drawn = trial.params is not None
            new = publication is None or publication.external_id is None
            since = publication.next_step if publication else 0
            if trial.state != RUNNING or (drawn and (new or trial.steps > since)):
                yield trial, publication

    def _parent(self, study: StudyRecord, experiment: str, existing: Run | None) -> str:
        if existing is not None:
            return str(existing.info.run_id)
        run = self._client.create_run(
            experiment,
            start_time=_milliseconds(study.created_at),
            tags={
                "tuner.study": study.name,
                "tuner.trial": PARENT,
                "tuner.spec_digest": study.digest,
                "mlflow.source.name": "tuner",
            },
            run_name=study.title[:NAME_LIMIT],
        )
        return str(run.info.run_id)

    def _create(
        self,
        study: StudyRecord,
        trial: TrialRecord,
        publication: Publication | None,
        existing: Run | None,
        experiment: str,
        tags: dict[str, str],
    ) -> str:
        """Create a trial's run, or finish creating the one that exists."""
        if publication is None:
            self._publications.begin(trial)
        if existing is None:
            existing = self._client.create_run(
                experiment,
                start_time=_milliseconds(trial.created_at),
                tags=tags,
                run_name=f"{trial.number}: {results.in_short(trial.params)}"[:NAME_LIMIT],
            )
            reach("recorder.run_created")
        run_id = str(existing.info.run_id)
        params = [Param(key, value) for key, value in params_of(trial).items()]
        self._client.log_batch(run_id, params=params, tags=_as_tags(tags))
        if study.workload["data"]:
            self._client.log_inputs(run_id, datasets=[_dataset(study)])
        self._publications.note(trial, external_id=run_id)
        return run_id

    def _publish_trial(
        self, trial: TrialRecord, run_id: str, publication: Publication | None
    ) -> None:
        since = publication.next_step if publication else 0
        if trial.steps > since:
            points = list(points_of(self._ledger.curve(trial.id, since), trial))
            for first in range(0, len(points), BATCH):
                self._client.log_batch(run_id, metrics=points[first : first + BATCH])
            reach("recorder.batch_logged")
            self._publications.note(trial, next_step=trial.steps)
        if trial.state == RUNNING:
            return
        tags = _as_tags(outcome_tags(trial))
        self._client.log_batch(run_id, metrics=list(stopped_step(trial)), tags=tags)
        reach("recorder.before_final")
        assert trial.ended_at is not None
        self._client.set_terminated(run_id, STATUS[trial.state], _milliseconds(trial.ended_at))
        self._publications.note(trial, final=True)

    def _describe(self, study: StudyRecord, parent: str) -> None:
        """Bring the parent run's summary up to date."""
        counts = self._ledger.counts(study.id)
        trials = self._ledger.trials(study.id)
        best = self._ledger.best(study)
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
        points = list(_improvements(study, trials))[-BATCH:]
        self._client.log_batch(parent, metrics=points, tags=_as_tags(tags))
        if done >= study.limit or study.state == STOPPED:
            last = max((trial.ended_at or 0.0 for trial in trials), default=study.created_at)
            status = "KILLED" if study.state == STOPPED else "FINISHED"
            self._client.set_terminated(parent, status, _milliseconds(last))
        else:
            self._client.update_run(parent, status="RUNNING")


def experiment_id(client: MlflowClient, study: StudyRecord, artifacts: Path | None) -> str:
    """Find a study's experiment, or make it."""
    found = client.get_experiment_by_name(study.title)
    if found is not None and found.lifecycle_stage == "deleted":
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


def runs_of(client: MlflowClient, study: StudyRecord, experiment: str) -> dict[str, Run]:
    """Find a study's runs by what their tag `tuner.trial` says; the oldest where there are two."""
    found: dict[str, Run] = {}
    for run in all_runs(client, study, experiment):
        found.setdefault(run.data.tags.get("tuner.trial", ""), run)
    return found


def all_runs(client: MlflowClient, study: StudyRecord, experiment: str) -> list[Run]:
    """Read all runs of a study, oldest first; runs that others made in its experiment are not."""
    runs: list[Run] = []
    token = None
    while True:
        # no filter by name: MLflow's language has no way to quote every character
        page = client.search_runs(
            [experiment],
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        # by the tag, and not by a filter: in a filter of MLflow's no quote can be escaped
        runs.extend(run for run in page if run.data.tags.get("tuner.study") == study.name)
        token = page.token
        if not token:
            return runs


def points_of(chunk: Chunk, trial: TrialRecord) -> Iterator[Metric]:
    """Give the points that MLflow gets: finite ones, before the step where the guard stopped.

    Rows that were committed after the trial was read are left out: they may be past that step.
    """
    limit = math.inf if trial.stopped_step is None else trial.stopped_step
    steps = range(chunk.first_step, chunk.next_step)
    for name, values in chunk.columns.items():
        yield from _points(name, values, steps, chunk.times, min(limit, trial.steps))
    for name, values in chunk.metrics.items():
        ends = min(limit, trial.steps + 1)
        yield from _points(name, values, chunk.eval_steps, chunk.eval_times, ends)


def stopped_step(trial: TrialRecord) -> Iterator[Metric]:
    """Give the point that says where the guard stopped a trial, if it did."""
    if trial.stopped_step is not None and trial.ended_at is not None:
        step = trial.stopped_step
        yield Metric("stopped_step", step, _milliseconds(trial.ended_at), step)


def _points(name: str, values: Any, steps: Any, times: Any, limit: float) -> Iterator[Metric]:
    for value, step, at in zip(values, steps, times, strict=True):
        if math.isfinite(value) and step < limit:
            yield Metric(name, float(value), _milliseconds(at), int(step))


def params_of(trial: TrialRecord) -> dict[str, str]:
    """Give the params of a trial's run; none if it failed before they were drawn."""
    if trial.params is None:
        return {}
    # beside the rate its logarithm, since the axes of MLflow's charts are linear
    params = dict(trial.params) | {"log10_lr": math.log10(float(trial.params["lr"]))}
    return {key: str(value) for key, value in params.items()}


def outcome_tags(trial: TrialRecord) -> dict[str, str]:
    """Give the tags of a run that say how its trial stands."""
    if trial.state == RUNNING:
        return {"tuner.outcome": RUNNING}
    return {"tuner.outcome": trial.state, "tuner.reason": (trial.reason or "")[:REASON_LIMIT]}


def _improvements(study: StudyRecord, trials: Sequence[TrialRecord]) -> Iterator[Metric]:
    """Give a point for each trial that was the best when it completed."""
    completed = [trial for trial in trials if trial.state == COMPLETED]
    best = None
    for trial in sorted(completed, key=lambda trial: (trial.ended_at or 0.0, trial.number)):
        assert trial.value is not None
        assert trial.ended_at is not None
        value = trial.value
        lower = study.spec.study.direction == "minimize"
        if best is None or (value < best if lower else value > best):
            best = value
            at = _milliseconds(trial.ended_at)
            yield Metric(f"best_{study.spec.study.metric}", best, at, trial.number)


def tags_of(
    study: StudyRecord, trial: TrialRecord, parent: str, environment: Mapping[str, Any]
) -> dict[str, str]:
    """Give the tags that a run has from the beginning."""
    tags = {
        "mlflow.parentRunId": parent,
        "mlflow.source.name": study.spec.workload.function,
        "mlflow.source.type": "LOCAL",
        "tuner.study": study.name,
        "tuner.trial": str(trial.number),
        "tuner.seed": str(seed_of(study.spec, trial.number)),
        "tuner.outcome": RUNNING,
        "tuner.code_digest": study.workload["code"],
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
    return tags


def _as_tags(tags: dict[str, str]) -> list[RunTag]:
    return [RunTag(key, value) for key, value in tags.items()]


def _dataset(study: StudyRecord) -> DatasetInput:
    workload = study.workload
    rows = workload["training_rows"]
    sizes = None if rows is None else f'{{"num_rows": {rows}}}'
    dataset = Dataset(
        name=workload["data_name"],
        digest=workload["data"],
        source_type="code",
        source=f'{{"tags": {{"mlflow.source.name": "{study.spec.workload.function}"}}}}',
        profile=sizes,
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def environments_of(ledger: Reader, study: StudyRecord) -> dict[int, Mapping[str, Any]]:
    """Give the environment of the first attempt at each trial, by the trial's id."""
    found: dict[int, Mapping[str, Any]] = {}
    for attempt in ledger.attempts(study.id):
        found.setdefault(attempt.trial_id, attempt.environment)
    return found


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
