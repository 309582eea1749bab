"""Delete studies from MLflow, permanently if wanted, and find those that must be kept."""

from __future__ import annotations

import subprocess

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from tuner.core import importing
from tuner.core.errors import UnavailableError
from tuner.ledger import StudyIdentity
from tuner.ledger.database import Addresses, pooled, tracking_client, tracking_reached
from tuner.tracking.mlflow.client_writer import all_runs
from tuner.tracking.mlflow.experiments import TITLE, erased_name, tagged

CHAMPION = "champion"  # not imported: `registry` imports mlflow.pytorch, which takes seconds


def erase_runs(client: MlflowClient, study: StudyIdentity) -> None:
    """Delete a study's runs and experiment, if they exist, whatever the experiment's name is.

    The experiment is renamed first, since MLflow does not reuse the name of a deleted one. Deleted
    records stay in MLflow's tables until `mlflow gc`.
    """
    with tracking_reached(client.tracking_uri):
        for experiment in tagged(client, TITLE, study.title):
            where = str(experiment.experiment_id)
            for run in all_runs(client, study, where):
                client.delete_run(run.info.run_id)
            client.rename_experiment(where, erased_name(study.title, where))
            client.delete_experiment(where)


def with_champions(places: Addresses) -> set[str]:
    """Return the names of the studies with a run whose model has an alias in the registry.

    Any alias counts, not only champion and challenger. A run tagged `champion` counts too. Raise
    `UnavailableError` if MLflow is unreachable.
    """
    client = tracking_client(places)
    with tracking_reached(places.tracking):
        found = {_study_of(client, run_id) for run_id in _aliased(client)}
        return {name for name in found if name is not None} | _tagged(client)


def _aliased(client: MlflowClient) -> set[str]:
    """Return the ids of the runs of all model versions that have an alias."""
    runs, token = set(), None
    while True:
        page = client.search_registered_models(max_results=100, page_token=token)
        for model in page:
            for version in set(model.aliases.values()):
                run_id = client.get_model_version(model.name, version).run_id
                runs |= {run_id} if run_id else set()
        token = page.token
        if not token:
            return runs


def _study_of(client: MlflowClient, run_id: str) -> str | None:
    try:
        name = client.get_run(run_id).data.tags.get("tuner.study")
    except MlflowException:
        return None  # the run is deleted; the model has its own files
    return None if name is None else str(name)


def _tagged(client: MlflowClient) -> set[str]:
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.{CHAMPION} = 'true'") if experiments else []
    return {run.data.tags["tuner.study"] for run in runs if "tuner.study" in run.data.tags}


def purge(places: Addresses) -> list[str]:
    """Remove the experiments of deleted studies and their files permanently; return their ids.

    This runs `mlflow gc`. Raise `UnavailableError` if MLflow is unreachable or its tables belong
    to a tracking server, since then `mlflow gc` must run on the server.
    """
    client = tracking_client(places)
    with tracking_reached(places.tracking):
        deleted = [
            str(one.experiment_id)
            for one in client.search_experiments(ViewType.DELETED_ONLY)
            if one.name == erased_name(one.tags.get("tuner.title", ""), one.experiment_id)
        ]
    if not deleted:
        return []
    command = importing.command("mlflow", "gc", "--experiment-ids", ",".join(deleted))
    if not places.owns_tracking:
        raise UnavailableError(
            "MLflow's tables belong to its server; to remove the experiments permanently, run "
            f"there `mlflow gc --experiment-ids {','.join(deleted)}`"
        )
    addresses = ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI")
    environment = importing.safe_environment() | dict.fromkeys(addresses, pooled(places.tracking))
    done = subprocess.run(  # noqa: S603 - MLflow's own program
        command, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UnavailableError(f"`mlflow gc` failed: {(done.stderr.splitlines() or [''])[-1]}")
    return deleted
