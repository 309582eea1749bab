"""From the ledger into MLflow: one parent run a study, one child run a trial, every finite point.

Everything written is idempotent: a run is found again by its tags, a parameter or a tag may be
written twice with the same value, and MLflow drops a metric's point that it has already, since
the point's time was fixed when it was measured.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
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
from tuner.failpoints import reach
from tuner.ledger import AttemptRecord, Reader, StudyRecord, TrialRecord
from tuner.outcome import CANCELLED, COMPLETED, DIVERGED, FAILED, PRUNED, RUNNING
from tuner.tracking.mismatch import Mismatch
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

    def publish(self, study: StudyRecord) -> bool:
        """Publish what is new of a claimed study; tell whether there was anything."""
        parent, published = self._publications.study(study.id)
        waiting = self._publications.open_trials(study.id)
        if parent is not None and not waiting and published == study.revision:
            return False
        experiment = experiment_id(self._client, study, self._artifacts)
        existing: dict[str, Run] | None = None
        if parent is None:
            existing = runs_of(self._client, study, experiment)
            parent = self._parent(study, experiment, existing.get(PARENT))
            self._publications.note_study(study.id, parent, 0)
        moved = published != study.revision
        environments = _environments(self._ledger.attempts(study.id)) if waiting else {}
        for trial, publication in waiting:
            if trial.params is None:
                continue
            run_id = publication.external_id if publication else None
            if run_id is None:
                if publication is not None and existing is None:
                    existing = runs_of(self._client, study, experiment)
                found = (existing or {}).get(str(trial.number))
                environment = environments[trial.id]
                run_id = self._create(study, trial, publication, found, parent, environment)
                moved = True
            moved |= self._publish_trial(study, trial, run_id, publication)
        self._describe(study, parent)
        self._publications.note_study(study.id, parent, study.revision)
        return moved

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
            run_name=study.name[:NAME_LIMIT],
        )
        return str(run.info.run_id)

    def _create(
        self,
        study: StudyRecord,
        trial: TrialRecord,
        publication: Publication | None,
        existing: Run | None,
        parent: str,
        environment: dict[str, Any],
    ) -> str:
        """Create a trial's run, or finish creating the one that exists."""
        assert trial.params is not None
        if publication is None:
            self._publications.begin(trial.id)
        if existing is None:
            name = f"{trial.number}: {results.in_short(trial.params)}"
            experiment = experiment_id(self._client, study, self._artifacts)
            existing = self._client.create_run(
                experiment,
                start_time=_milliseconds(trial.created_at),
                tags=_tags(study, trial, parent, environment),
                run_name=name[:NAME_LIMIT],
            )
            reach("recorder.run_created")
        run_id = str(existing.info.run_id)
        params = dict(trial.params) | {"log10_lr": math.log10(float(trial.params["lr"]))}
        self._client.log_batch(run_id, params=[Param(k, str(v)) for k, v in params.items()])
        self._client.log_inputs(run_id, datasets=[_dataset(study)])
        self._publications.note(trial.id, external_id=run_id)
        return run_id

    def _publish_trial(
        self,
        study: StudyRecord,
        trial: TrialRecord,
        run_id: str,
        publication: Publication | None,
    ) -> bool:
        since = publication.next_step if publication else 0
        moved = False
        if trial.steps > since:
            chunk = self._ledger.curve(trial.id, since)
            points = list(points_of(chunk, trial.stopped_step))
            for first in range(0, len(points), BATCH):
                self._client.log_batch(run_id, metrics=points[first : first + BATCH])
            reach("recorder.batch_logged")
            self._publications.note(trial.id, next_step=chunk.next_step)
            moved = True
        if trial.state == RUNNING:
            return moved
        assert trial.ended_at is not None
        tags = {"tuner.outcome": trial.state, "tuner.reason": (trial.reason or "")[:5000]}
        stopped = [
            Metric("stopped_step", step, _milliseconds(trial.ended_at), step)
            for step in [trial.stopped_step]
            if step is not None
        ]
        self._client.log_batch(run_id, metrics=stopped, tags=_as_tags(tags))
        reach("recorder.before_final")
        self._client.set_terminated(run_id, STATUS[trial.state], _milliseconds(trial.ended_at))
        self._publications.note(trial.id, final=True)
        return True

    def _describe(self, study: StudyRecord, parent: str) -> None:
        """Bring the parent run's summary up to date."""
        counts = self._ledger.counts(study.id)
        best = self._ledger.best(study)
        done = sum(count for kind, count in counts.items() if kind not in (RUNNING, "waiting"))
        note = (
            f"{results.best_in_words(study, best)}\n\n"
            f"{done} of {study.limit} trials have ended: {results.counts_in_words(counts)}.\n\n"
            f"{study.spec.study.description}"
        )
        tags = {"mlflow.note.content": note.strip()}
        metrics = []
        if best is not None and best.value is not None and best.ended_at is not None:
            tags["tuner.best_trial"] = str(best.number)
            at = _milliseconds(best.ended_at)
            metrics = [Metric(f"best_{study.spec.study.metric}", best.value, at, best.number)]
        self._client.log_batch(parent, metrics=metrics, tags=_as_tags(tags))
        if done >= study.limit:
            last = max(trial.ended_at or 0.0 for trial in self._ledger.trials(study.id))
            self._client.set_terminated(parent, "FINISHED", _milliseconds(last))
        else:
            self._client.update_run(parent, status="RUNNING")


def experiment_id(client: MlflowClient, study: StudyRecord, artifacts: Path | None) -> str:
    """Find a study's experiment, or make it."""
    found = client.get_experiment_by_name(study.name)
    if found is not None:
        return str(found.experiment_id)
    location = None if artifacts is None else (artifacts / f"study-{study.id}").as_uri()
    # the UI then opens on training runs, not on generative AI
    tags = {"tuner.study": study.name, "mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(study.name, artifact_location=location, tags=tags))


def runs_of(client: MlflowClient, study: StudyRecord, experiment: str) -> dict[str, Run]:
    """Find a study's runs by what their tag `tuner.trial` says; the oldest where there are two."""
    found: dict[str, Run] = {}
    for run in all_runs(client, study, experiment):
        found.setdefault(run.data.tags.get("tuner.trial", ""), run)
    return found


def all_runs(client: MlflowClient, study: StudyRecord, experiment: str) -> list[Run]:
    """Read all runs of a study, oldest first."""
    runs: list[Run] = []
    token = None
    name = study.name.replace("'", "\\'")
    while True:
        page = client.search_runs(
            [experiment],
            filter_string=f"tags.`tuner.study` = '{name}'",
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def points_of(chunk: Chunk, stopped_step: int | None) -> Iterator[Metric]:
    """Give the points that MLflow gets: finite ones, before the step where the guard stopped."""
    limit = math.inf if stopped_step is None else stopped_step
    steps = range(chunk.first_step, chunk.next_step)
    for name, values in chunk.columns.items():
        yield from _points(name, values, steps, chunk.times, limit)
    for name, values in chunk.metrics.items():
        yield from _points(name, values, chunk.eval_steps, chunk.eval_times, limit)


def _points(name: str, values: Any, steps: Any, times: Any, limit: float) -> Iterator[Metric]:
    for value, step, at in zip(values, steps, times, strict=True):
        if math.isfinite(value) and step < limit:
            yield Metric(name, float(value), _milliseconds(at), int(step))


def _tags(
    study: StudyRecord, trial: TrialRecord, parent: str, environment: dict[str, Any]
) -> dict[str, str]:
    tags = {
        "mlflow.parentRunId": parent,
        "mlflow.source.name": study.spec.workload.factory,
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
    sizes = f'{{"num_rows": {workload["training_rows"]}}}'
    dataset = Dataset(
        name=workload["data_name"],
        digest=workload["data"],
        source_type="code",
        source=f'{{"tags": {{"mlflow.source.name": "{study.spec.workload.factory}"}}}}',
        profile=sizes,
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _environments(attempts: list[AttemptRecord]) -> dict[int, dict[str, Any]]:
    """Give each trial the environment of its first attempt."""
    found: dict[int, dict[str, Any]] = {}
    for attempt in attempts:
        found.setdefault(attempt.trial_id, dict(attempt.environment))
    return found


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def mismatches(
    client: MlflowClient, ledger: Reader, study: StudyRecord, ours: Sequence[TrialRecord]
) -> Iterator[Mismatch]:
    """Compare MLflow's runs of a study with the ledger's trials."""
    experiment = client.get_experiment_by_name(study.name)
    found = [] if experiment is None else all_runs(client, study, experiment.experiment_id)
    keys = Counter(run.data.tags.get("tuner.trial", "") for run in found)
    expected = {PARENT} | {str(trial.number) for trial in ours if trial.params is not None}
    for key in sorted(expected - set(keys)):
        yield Mismatch("run_missing", _number(key), "MLflow has no run of it")
    for key, count in keys.items():
        if count > 1:
            yield Mismatch("run_doubled", _number(key), f"MLflow has {count} runs of it")
        if key not in expected:
            yield Mismatch("run_extra", _number(key), "the ledger has no such trial")
    by_key = {run.data.tags.get("tuner.trial", ""): run for run in found}
    for trial in ours:
        run = by_key.get(str(trial.number))
        if run is not None:
            yield from _differences(client, ledger, trial, run)


def _differences(
    client: MlflowClient, ledger: Reader, trial: TrialRecord, run: Run
) -> Iterator[Mismatch]:
    if run.info.status != STATUS[trial.state]:
        detail = f"{run.info.status} in MLflow, {trial.state} in the ledger"
        yield Mismatch("run_status", trial.number, detail)
    elif run.data.tags.get("tuner.outcome") != trial.state:
        detail = f"its tag says {run.data.tags.get('tuner.outcome')!r}, not {trial.state!r}"
        yield Mismatch("run_outcome", trial.number, detail)
    wrong = [k for k, v in (trial.params or {}).items() if run.data.params.get(k) != str(v)]
    if wrong:
        yield Mismatch("run_params", trial.number, f"{', '.join(wrong)} differ")
    if trial.state == RUNNING:
        return
    expected: dict[str, Counter[tuple[int, float]]] = {}
    for point in points_of(ledger.curve(trial.id), trial.stopped_step):
        expected.setdefault(point.key, Counter())[point.step, point.value] += 1
    for name, points in expected.items():
        history = client.get_metric_history(run.info.run_id, name)
        told = Counter((point.step, point.value) for point in history)
        missing, extra = (points - told).total(), (told - points).total()
        if missing or extra:
            detail = f"{name}: {missing} points missing, {extra} too many"
            yield Mismatch("run_points", trial.number, detail)


def _number(key: str) -> int | None:
    return int(key) if key.isdecimal() else None
