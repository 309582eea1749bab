"""Addresses of a study's pages in MLflow's UI."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from sqlalchemy import Engine

from tuner.core.errors import UnavailableError
from tuner.ledger import StudyRecord
from tuner.ledger.database import (
    Addresses,
    tracking_client,
    tracking_reached,
    ui_address,
    without_password,
)
from tuner.ledger.publications import Publications
from tuner.tracking.mlflow.views import VALUE, is_known

SIDE = "workflowType=machine_learning"
"""Opens the UI on training runs, whatever the browser showed last."""


@dataclass(frozen=True, kw_only=True)
class Links:
    """Addresses of one study's pages in MLflow's UI.

    `ui` is the address of the server; without it the links are relative to a page of the UI.
    """

    experiment: str
    parent: str  # the id of the study's parent run
    ui: str = ""

    def view(self, key: str) -> str:
        """Return the address of a saved view, or of the list of runs if views are not supported."""
        mode = "TABLE" if key in ("tuner-table", "tuner-diverged") else "CHART"
        saved = f"&viewStateShareKey={key}" if is_known() else ""
        return f"{self._page()}/runs?{SIDE}{saved}&compareRunsMode={mode}"

    def run(self, run_id: str) -> str:
        """Return the address of a run."""
        return f"{self._page()}/runs/{run_id}?{SIDE}"

    def study(self) -> str:
        """Return the address of the parent run, which has the summary."""
        return self.run(self.parent)

    def file(self, path: str) -> str:
        """Return the address of the page of one of the parent run's artifacts."""
        return f"{self._page()}/runs/{self.parent}/artifacts/{quote(path)}?{SIDE}"

    def picture(self, path: str) -> str:
        """Return the address of the content of one of the parent run's artifacts."""
        query = urlencode({"path": path, "run_uuid": self.parent})
        return f"{self._root()}get-artifact?{query}"

    def compare(self, run_ids: Sequence[str]) -> str:
        """Return the address of a comparison of runs."""
        query = {"runs": _json(run_ids), "experiments": _json([self.experiment])}
        return f"{self._root()}#/compare-runs?{urlencode(query, quote_via=quote)}&{SIDE}"

    def compare_studies(self, others: Sequence[Links], *, minimize: bool) -> str:
        """Return the address of the trials of several studies, the best ones first.

        Sorted by a metric, MLflow's list has trials; else parent runs, with their trials folded.
        """
        query = {
            "experiments": _json([self.experiment, *(one.experiment for one in others)]),
            "orderByKey": f"metrics.`{VALUE}`",
            "orderByAsc": "true" if minimize else "false",
        }
        page = f"{self._root()}#/compare-experiments/s?{urlencode(query, quote_via=quote)}"
        return f"{page}&{SIDE}&compareRunsMode=CHART"

    def _page(self) -> str:
        return f"{self._root()}#/experiments/{self.experiment}"

    def _root(self) -> str:
        return f"{self.ui}/" if self.ui else ""


def _json(values: Sequence[str]) -> str:
    return json.dumps(list(values), separators=(",", ":"))


def study_links(
    engine: Engine, places: Addresses, study: StudyRecord, ui: str | None = None
) -> Links | None:
    """Return the addresses of a study's pages in the UI, or None if it is not published yet.

    Raise `UnavailableError` when MLflow cannot be reached.
    """
    run_id, _ = Publications(engine, "mlflow").study(study.id)
    if run_id is None:
        return None
    client = tracking_client(places)
    with tracking_reached(places.tracking):
        experiment = experiment_of(client, run_id)
    return Links(experiment=experiment, parent=run_id, ui=ui or ui_address(places.tracking))


def run_addresses(
    engine: Engine, places: Addresses, study: StudyRecord, ui: str | None = None
) -> dict[int, str]:
    """Return the address of each trial's run in the UI, by trial number.

    Raise `UnavailableError` when MLflow cannot be reached.
    """
    pages = study_links(engine, places, study, ui)
    if pages is None:
        return {}
    runs = Publications(engine, "mlflow").external_ids(study.id).items()
    return {number: pages.run(own) for number, own in runs}


def experiment_of(client: MlflowClient, run_id: str) -> str:
    """Return the id of a run's experiment. Raise `UnavailableError` if the run does not exist."""
    try:
        return str(client.get_run(run_id).info.experiment_id)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        raise UnavailableError(
            f"MLflow at {without_password(client.tracking_uri)} does not have the study's runs; "
            "set MLFLOW_TRACKING_URI to the address of the MLflow that they were published to"
        ) from error
