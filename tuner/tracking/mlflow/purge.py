"""What MLflow must keep of studies, and removing for good what was deleted of them there."""

from __future__ import annotations

import subprocess

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from tuner.core import importing
from tuner.core.errors import UnavailableError
from tuner.ledger.database import Addresses, pooled, tracking_client, tracking_reached
from tuner.tracking.mlflow.experiments import erased_name

CHAMPION = "champion"


def with_champions(places: Addresses) -> set[str]:
    """Give the names of the studies of which a run became a model that has an alias.

    Champions and challengers are aliases; any other that somebody gave counts too. A run tagged
    with one says the same. Raises `UnavailableError`.
    """
    client = tracking_client(places)
    with tracking_reached(places.tracking):
        found = {_study_of(client, run_id) for run_id in _aliased(client)}
        return {name for name in found if name is not None} | _tagged(client)


def _aliased(client: MlflowClient) -> set[str]:
    """Give the runs of all model versions that have an alias."""
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
        return None  # it is gone; the model has its files elsewhere
    return None if name is None else str(name)


def _tagged(client: MlflowClient) -> set[str]:
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.{CHAMPION} = 'true'") if experiments else []
    return {run.data.tags["tuner.study"] for run in runs if "tuner.study" in run.data.tags}


def purge(places: Addresses) -> list[str]:
    """Remove the experiments of deleted studies for good, with their files; give their ids.

    MLflow keeps what is deleted, until its own garbage collection is told of it. Raises
    `UnavailableError`, also where MLflow's tables are a server's, who alone may remove them.
    """
    client = tracking_client(places)
    with tracking_reached(places.tracking):
        gone = [
            str(one.experiment_id)
            for one in client.search_experiments(ViewType.DELETED_ONLY)
            if one.name == erased_name(one.tags.get("tuner.title", ""), one.experiment_id)
        ]
    if not gone:
        return []
    command = importing.command("mlflow", "gc", "--experiment-ids", ",".join(gone))
    if not places.owns_tracking:
        raise UnavailableError(
            "MLflow's tables are its server's; for good they are removed there, by `mlflow gc "
            f"--experiment-ids {','.join(gone)}`"
        )
    addresses = ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI")
    environment = importing.safe_environment() | dict.fromkeys(addresses, pooled(places.tracking))
    done = subprocess.run(  # noqa: S603 - MLflow's own program
        command, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UnavailableError(f"`mlflow gc` failed: {(done.stderr.splitlines() or [''])[-1]}")
    return gone
