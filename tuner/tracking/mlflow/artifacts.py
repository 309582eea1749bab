"""Files of a study's parent run in MLflow, and links to its runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from sqlalchemy import Engine

from tuner.core.errors import UnavailableError
from tuner.ledger import Reader, StudyRecord
from tuner.ledger.database import Addresses, tracking_client, tracking_reached, without_password
from tuner.ledger.publications import Publications
from tuner.tracking.mlflow.study_run import tell
from tuner.tracking.mlflow.views import Links
from tuner.tracking.notes import FOLDER

UI = "http://127.0.0.1:5000"
"""Where `tuner ui` shows runs, unless a server does."""


def put_report(
    engine: Engine, places: Addresses, study: StudyRecord, files: Sequence[Path]
) -> bool:
    """Put files beside the parent run, in place of earlier ones of their names.

    Tells whether there is such a run yet. Raises `UnavailableError` when MLflow cannot be reached.
    """
    run_id, _ = Publications(engine, "mlflow").study(study.id)
    if run_id is None:
        return False
    client = tracking_client(places)
    with tracking_reached(places.tracking):
        for file in files:
            client.log_artifact(run_id, str(file), FOLDER)
        experiment = _experiment(client, run_id)
        tell(client, Reader(engine), study, experiment, run_id, at_rest=True)
    return True


def links(
    engine: Engine, places: Addresses, study: StudyRecord, ui: str | None = None
) -> Links | None:
    """Give the addresses of a study's pages in the UI; None where it is not published yet.

    Raises `UnavailableError` when MLflow cannot be reached.
    """
    run_id, _ = Publications(engine, "mlflow").study(study.id)
    if run_id is None:
        return None
    client = tracking_client(places)
    with tracking_reached(places.tracking):
        experiment = _experiment(client, run_id)
    return Links(experiment=experiment, parent=run_id, ui=ui or served(places.tracking))


def run_links(
    engine: Engine, places: Addresses, study: StudyRecord, ui: str | None = None
) -> dict[int, str]:
    """Give the address of each trial's run in the UI, by the trial's number.

    Raises `UnavailableError` when MLflow cannot be reached.
    """
    pages = links(engine, places, study, ui)
    if pages is None:
        return {}
    runs = Publications(engine, "mlflow").external_ids(study.id).items()
    return {number: pages.run(own) for number, own in runs}


def _experiment(client: MlflowClient, run_id: str) -> str:
    try:
        return str(client.get_run(run_id).info.experiment_id)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        raise UnavailableError(
            f"MLflow at {without_password(client.tracking_uri)} does not have the study's runs; "
            "set MLFLOW_TRACKING_URI to the address of the MLflow that they were published to"
        ) from error


def served(tracking: str) -> str:
    """Give the address of a server's UI, without the password that is in it; else ours."""
    if not tracking.startswith(("http:", "https:")):
        return UI
    parts = urlsplit(tracking)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
