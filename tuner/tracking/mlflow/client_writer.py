"""The contract of writers of runs, and the writer that uses MLflow's client.

Writes are idempotent: a run is found again by its tags, a param or tag may be written twice with
the same value, and MLflow ignores an existing point of a metric, since its key contains the time
and that was fixed at measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from tuner.core.failpoints import reach
from tuner.ledger import StudyIdentity, StudyRecord
from tuner.ledger.database import sent_once
from tuner.tracking.mlflow.run_content import NewRun, Points

NO_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's errors for an id that no run has."""
BATCH = 1000
"""The most points that MLflow accepts in one call."""


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """The end of a run."""

    run_id: str
    status: str
    time: int  # milliseconds since 1970


class RunWriter(Protocol):
    """Writes many runs of one study; created for each publication.

    Raise MLflow's and SQLAlchemy's errors. `create`, `append` and `prepare_end` reach their
    failpoint once per run.
    """

    runs_at_once: int
    """How many runs to write at once; after an interruption they are written again."""
    rows_at_once: int
    """How many rows of curves to write at once; few enough not to lose the claim."""

    def find(self, study: StudyRecord, experiment: str, keys: Collection[str]) -> Mapping[str, str]:
        """Return the ids of active runs by their tag `tuner.trial`; the oldest of duplicates."""
        ...

    def foreign(self, study: StudyRecord, experiment: str, runs: Mapping[str, str]) -> set[str]:
        """Return those of these runs that exist and are not what their key says.

        `runs` has ids by the tag `tuner.trial` that they must have. An id comes from a row, which
        others may have written.
        """
        ...

    def create(self, experiment: str, runs: Sequence[NewRun]) -> list[str]:
        """Create the runs that do not exist and complete the others; return all ids."""
        ...

    def append(self, points: Sequence[tuple[str, Points]]) -> None:
        """Add points to runs, given with their ids."""
        ...

    def prepare_end(self, runs: Mapping[str, tuple[Mapping[str, str], Sequence[Points]]]) -> None:
        """Set the final tags and add the final points of runs, by id."""
        ...

    def end(self, ends: Sequence[RunEnd]) -> None:
        """Set the final status and end time of runs."""
        ...

    def tag(self, runs: Mapping[str, Mapping[str, str]], renew_claim: Callable[[], None]) -> None:
        """Set tags of active runs, by id; call `renew_claim` regularly if it takes long."""
        ...


class ClientWriter:
    """Writes through MLflow's client, one run after the other; works with any backend."""

    runs_at_once = 1
    rows_at_once = 5000

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._found: dict[str, str] | None = None

    def find(self, study: StudyRecord, experiment: str, keys: Collection[str]) -> Mapping[str, str]:
        """Search all runs of the experiment once; the result is cached."""
        if keys and self._found is None:
            self._found = {}
            for run in all_runs(self._client, study, experiment):
                self._found.setdefault(run.data.tags["tuner.trial"], str(run.info.run_id))
        return {key: run_id for key, run_id in (self._found or {}).items() if key in keys}

    def foreign(self, study: StudyRecord, experiment: str, runs: Mapping[str, str]) -> set[str]:
        """Read one run after the other."""
        return {
            run_id
            for key, run_id in runs.items()
            if self._is_foreign(study, experiment, key, run_id)
        }

    def _is_foreign(self, study: StudyRecord, experiment: str, key: str, run_id: str) -> bool:
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in NO_RUN:
                return False
            raise
        return str(run.info.experiment_id) != experiment or not is_run_of(run, study, key)

    def create(self, experiment: str, runs: Sequence[NewRun]) -> list[str]:
        """Create or complete one run after the other."""
        return [self._create(experiment, run) for run in runs]

    def _create(self, experiment: str, new: NewRun) -> str:
        run_id = new.run_id
        if run_id is None:
            with sent_once():
                made = self._client.create_run(
                    experiment, start_time=new.start_time, tags=dict(new.tags), run_name=new.name
                )
            run_id = str(made.info.run_id)
            reach("recorder.run_created")
        params = [Param(key, value) for key, value in new.params.items()]
        self._client.log_batch(run_id, params=params, tags=as_tags(new.tags))
        if new.dataset is not None:
            self._client.log_inputs(run_id, datasets=[new.dataset])
        return run_id

    def append(self, points: Sequence[tuple[str, Points]]) -> None:
        """Log the points of each run in as few batches as MLflow accepts."""
        by_run: dict[str, list[Metric]] = {}
        for run_id, some in points:
            by_run.setdefault(run_id, []).extend(as_metrics(some))
        for run_id, metrics in by_run.items():
            for first in range(0, len(metrics), BATCH):
                self._client.log_batch(run_id, metrics=metrics[first : first + BATCH])
            reach("recorder.batch_logged")

    def prepare_end(self, runs: Mapping[str, tuple[Mapping[str, str], Sequence[Points]]]) -> None:
        """Log the tags and points of each run in one batch."""
        for run_id, (tags, points) in runs.items():
            metrics = [metric for some in points for metric in as_metrics(some)]
            self._client.log_batch(run_id, metrics=metrics, tags=as_tags(tags))
            reach("recorder.before_final")

    def end(self, ends: Sequence[RunEnd]) -> None:
        """Terminate one run after the other."""
        for one in ends:
            self._client.set_terminated(one.run_id, one.status, one.time)

    def tag(self, runs: Mapping[str, Mapping[str, str]], renew_claim: Callable[[], None]) -> None:
        """Tag one run after the other."""
        for index, (run_id, tags) in enumerate(runs.items()):
            if index % 50 == 49:
                renew_claim()
            self._client.log_batch(run_id, tags=as_tags(tags))


def as_metrics(points: Points) -> list[Metric]:
    """Convert points to the entities of MLflow's client."""
    columns = (points.values.tolist(), points.times.tolist(), points.steps.tolist())
    return [Metric(points.key, value, at, step) for value, at, step in zip(*columns, strict=True)]


def as_tags(tags: Mapping[str, str]) -> list[RunTag]:
    """Convert tags to the entities of MLflow's client."""
    return [RunTag(key, value) for key, value in tags.items()]


def is_run_of(run: Run, study: StudyIdentity, key: str) -> bool:
    """Return whether a run has the tags of a study's trial, or with `PARENT` of the study."""
    tags = run.data.tags
    return bool(tags.get("tuner.study") == study.name and tags.get("tuner.trial") == key)


def all_runs(client: MlflowClient, study: StudyIdentity, experiment: str) -> list[Run]:
    """Return all active runs of a study, oldest first, without foreign runs in its experiment."""
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment],
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        # compared here, since MLflow's filters cannot escape quotes
        runs.extend(run for run in page if run.data.tags.get("tuner.study") == study.name)
        token = page.token
        if not token:
            return runs
