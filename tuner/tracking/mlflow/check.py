"""Compare MLflow's runs of a study with the ledger's trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run

from tuner.analysis.evidence import Assessor
from tuner.analysis.verdicts import Verdict
from tuner.core.curves import Chunk
from tuner.core.errors import UnreadableError
from tuner.core.outcome import RUNNING
from tuner.core.text import as_count
from tuner.ledger import Reader, StudyRecord, TrialRecord
from tuner.ledger.database import tracking_reached
from tuner.ledger.decoding import environment_of
from tuner.ledger.publications import Publications
from tuner.tracking.mlflow import experiments
from tuner.tracking.mlflow.client_writer import all_runs
from tuner.tracking.mlflow.histories import Histories, History
from tuner.tracking.mlflow.run_content import (
    PARENT,
    STATUS,
    dataset_of,
    last_points,
    outcome_tags,
    params_of,
    points_of,
    tags_of,
)
from tuner.tracking.projection import UNREADABLE, Mismatch

RENAMED = "experiment_renamed"
"""The kind of mismatch of a renamed experiment, which is allowed."""
RUNS = 50
"""Runs whose points are compared at a time."""
NEED_NEW_RUN = ("run_params", "run_points")
"""Kinds that need a new run, since MLflow never changes a param nor deletes a point."""


def mismatches(
    client: MlflowClient,
    ledger: Reader,
    study: StudyRecord,
    ours: Sequence[TrialRecord],
    *,
    without_curve: Collection[int | None],
) -> list[Mismatch]:
    """Return how MLflow differs from the ledger, ignoring the points of trials `without_curve`.

    Raise `UnavailableError` if MLflow is unreachable.
    """
    with tracking_reached(client.tracking_uri):
        return list(_mismatches(client, ledger, study, ours, without_curve))


def _mismatches(
    client: MlflowClient,
    ledger: Reader,
    study: StudyRecord,
    ours: Sequence[TrialRecord],
    without_curve: Collection[int | None],
) -> Iterator[Mismatch]:
    publications = Publications(ledger.engine, "mlflow")
    published, _ = publications.study(study.id)
    experiment = experiments.find(client, study, published)
    if experiment is not None:
        yield from _wrong_experiments(client, study, experiment)
    found = [] if experiment is None else all_runs(client, study, experiment.experiment_id)
    keys = Counter(run.data.tags["tuner.trial"] for run in found)
    drawn = [trial for trial in ours if trial.params is not None or trial.state != RUNNING]
    expected = {PARENT, *(str(trial.number) for trial in drawn)}
    for key in sorted(expected - set(keys)):
        yield Mismatch("run_missing", as_count(key), "MLflow has no run of it")
    for key, count in keys.items():
        if key not in expected:
            yield Mismatch("run_extra", as_count(key), "the ledger has no such trial")
        elif count > 1:
            yield Mismatch("run_doubled", as_count(key), f"MLflow has {count} runs of it")
    by_key = {run.data.tags["tuner.trial"]: run for run in found}
    named = {str(key): run_id for key, run_id in publications.external_ids(study.id).items()}
    yield from _foreign_runs(
        {key: run for key, run in by_key.items() if keys[key] == 1}, {PARENT: published, **named}
    )
    environments: dict[int, Mapping[str, Any]] = {}
    for attempt in ledger.attempts(study.id):
        environments.setdefault(attempt.trial_id, attempt.environment)
    verdicts = {} if without_curve else _verdicts(ledger, study, ours)
    ended: dict[int, tuple[TrialRecord, str]] = {}  # by the trial's id, with its run's
    for trial in drawn:
        run = by_key.get(str(trial.number))
        if run is None or keys[str(trial.number)] > 1:  # it is unclear which one to compare
            continue
        parent = by_key[PARENT].info.run_id if PARENT in by_key else ""
        try:
            environment = environment_of(trial.number, environments.get(trial.id))
        except UnreadableError as error:
            yield Mismatch(UNREADABLE, trial.number, str(error))
            continue
        tags = tags_of(study, trial, parent, environment) | outcome_tags(trial)
        by_earlier_version = {"tuner.regime"} == run.data.tags.keys() & {
            "tuner.regime",
            "tuner.verdict",
        }
        if trial.number in verdicts and not by_earlier_version:
            tags["tuner.verdict"] = verdicts[trial.number].kind
        yield from _differences(trial, run, tags)
        yield from _wrong_dataset(study, trial, run)
        if trial.state != RUNNING and trial.number not in without_curve:
            ended[trial.id] = (trial, run.info.run_id)
    yield from _wrong_points(client, ledger, ended)


def _foreign_runs(runs: Mapping[str, Run], named: Mapping[str, str | None]) -> Iterator[Mismatch]:
    """Compare the ids in the ledger, which others may have written, with the runs of a study."""
    for key, run in runs.items():
        if named.get(key) not in (None, run.info.run_id):
            detail = f"the ledger names the run {named[key]!r:.60}, MLflow has {run.info.run_id}"
            yield Mismatch("run_foreign", as_count(key), detail)


def _wrong_experiments(
    client: MlflowClient, study: StudyRecord, experiment: Experiment
) -> Iterator[Mismatch]:
    expected = experiment.experiment_id
    if experiment.name != study.title:
        yield Mismatch(
            RENAMED, None, f"MLflow's experiment {expected} is now named {experiment.name!r}"
        )
    for other in experiments.tagged(client, experiments.TITLE, study.title):
        if other.experiment_id != expected:
            detail = f"experiment {other.experiment_id}, named {other.name!r}, is of this study too"
            yield Mismatch(
                "experiment_doubled", None, f"{detail}, in addition to experiment {expected}"
            )


def _verdicts(
    ledger: Reader, study: StudyRecord, ours: Sequence[TrialRecord]
) -> Mapping[int, Verdict]:
    """Return the verdicts of a study without running trials; while trials run, tags may lag."""
    if any(trial.state == RUNNING for trial in ours):
        return {}
    return Assessor(ledger, study).verdicts(ours)


def _differences(trial: TrialRecord, run: Run, tags: Mapping[str, str]) -> Iterator[Mismatch]:
    if run.info.status != STATUS[trial.state]:
        detail = f"{run.info.status} in MLflow, {trial.state} in the ledger"
        yield Mismatch("run_status", trial.number, detail)
    wrong = [key for key, value in params_of(trial).items() if run.data.params.get(key) != value]
    if wrong:
        yield Mismatch("run_params", trial.number, f"{', '.join(wrong)} differ")
    wrong = [key for key, value in tags.items() if run.data.tags.get(key) != value]
    if wrong:
        yield Mismatch("run_tags", trial.number, f"{', '.join(wrong)} differ")


def _wrong_dataset(study: StudyRecord, trial: TrialRecord, run: Run) -> Iterator[Mismatch]:
    """Compare the data set of a run, if the study's data have a digest."""
    expected = dataset_of(study)
    recorded = {one.dataset.digest for one in run.inputs.dataset_inputs}
    if expected is not None and expected.dataset.digest not in recorded:
        yield Mismatch("run_dataset", trial.number, "MLflow does not know its data")


def _wrong_points(
    client: MlflowClient, ledger: Reader, ended: Mapping[int, tuple[TrialRecord, str]]
) -> Iterator[Mismatch]:
    """Compare the history of each published metric with the ledger's curve.

    `ended` has trials by their ids, each with the id of its run.
    """
    with closing(Histories(client)) as histories:
        ids = list(ended)
        for first in range(0, len(ids), RUNS):
            some = ids[first : first + RUNS]
            recorded = histories.read([ended[one][1] for one in some])
            for trial_id, curve in ledger.each_curve(some):
                if isinstance(curve, UnreadableError):
                    raise curve
                trial, run_id = ended[trial_id]
                yield from _compared(trial, curve, partial(recorded, run_id))


def _compared(
    trial: TrialRecord, curve: Chunk, recorded: Callable[[str], History]
) -> Iterator[Mismatch]:
    expected: dict[str, History] = {}
    for point in (*points_of(curve, trial), *last_points(trial)):
        columns = (point.steps.tolist(), point.values.tolist(), point.times.tolist())
        expected.setdefault(point.key, Counter()).update(zip(*columns, strict=True))
    for name, points in expected.items():
        there = recorded(name)
        missing, extra = (points - there).total(), (there - points).total()
        if missing or extra:
            detail = f"{name}: {missing} points missing, {extra} too many"
            yield Mismatch("run_points", trial.number, detail)
