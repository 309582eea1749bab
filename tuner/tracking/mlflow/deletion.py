"""Deleting all that MLflow has of a study."""

from __future__ import annotations

from mlflow import MlflowClient

from tuner.ledger import StudyRecord
from tuner.ledger.database import tracking_reached
from tuner.tracking.mlflow.client_writer import all_runs
from tuner.tracking.mlflow.experiments import TITLE, erased_name, tagged


def erase_runs(client: MlflowClient, study: StudyRecord) -> None:
    """Delete a study's runs and its experiment, if they are there, whatever its name is now.

    The experiment gets another name first: MLflow never gives a deleted one's away. What is
    deleted stays in MLflow's tables until its own garbage collection.
    """
    with tracking_reached(client.tracking_uri):
        for experiment in tagged(client, TITLE, study.title):
            where = str(experiment.experiment_id)
            for run in all_runs(client, study, where):
                client.delete_run(run.info.run_id)
            client.rename_experiment(where, erased_name(study.title, where))
            client.delete_experiment(where)
