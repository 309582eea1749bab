"""Deleting all that MLflow has of a study."""

from __future__ import annotations

from mlflow import MlflowClient

from tuner.core.text import shortened
from tuner.ledger import StudyRecord
from tuner.ledger.database import tracking_reached
from tuner.tracking.mlflow.client_writer import all_runs

EXPERIMENT_LIMIT = 256
"""How many characters the name of an experiment has in MLflow's tables."""


def erase_runs(client: MlflowClient, study: StudyRecord) -> None:
    """Delete a study's runs and its experiment, if they are there.

    The experiment gets another name first: MLflow never gives a deleted one's away. What is
    deleted stays in MLflow's tables until its own garbage collection.
    """
    with tracking_reached(client.tracking_uri):
        for where in _experiments_of(client, study):
            for run in all_runs(client, study, where):
                client.delete_run(run.info.run_id)
            client.rename_experiment(where, erased_name(study.title, where))
            client.delete_experiment(where)


def erased_name(title: str, experiment: str) -> str:
    """Give the name of a deleted study's experiment."""
    suffix = f" (deleted, {experiment})"
    return shortened(title, EXPERIMENT_LIMIT - len(suffix)) + suffix


def _experiments_of(client: MlflowClient, study: StudyRecord) -> list[str]:
    """Find a study's experiment by its tag, whatever its name is now."""
    found: list[str] = []
    token = None
    while True:
        page = client.search_experiments(max_results=1000, page_token=token)
        found.extend(
            str(one.experiment_id) for one in page if one.tags.get("tuner.title") == study.title
        )
        token = page.token
        if not token:
            return found
