"""A retraining's run in MLflow: its curve, its model, and the registered version.

All retrainings of a study are in the experiment `NAME retrain`, as children of one parent run that
shows the drift of rate and metric. Records are found again by the retraining's identity, so that
the next call completes an interrupted one.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LifecycleStage,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
)
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.types.schema import ColSpec, DataType, Schema, TensorSpec
from pydantic import TypeAdapter, ValidationError

from tuner.core.curves import Chunk
from tuner.core.errors import UnavailableError
from tuner.core.failpoints import reach
from tuner.core.features import Feature
from tuner.core.text import NAME_LIMIT, derived
from tuner.ledger.database import sent_once, tracking_reached
from tuner.tracking.mlflow.client_writer import BATCH, as_metrics, as_tags
from tuner.tracking.mlflow.experiments import KIND, named_or_tagged
from tuner.tracking.mlflow.links import Links, experiment_of
from tuner.tracking.mlflow.registry import CHALLENGER, RETRAINING, Registry, StoredFile, Version
from tuner.tracking.mlflow.run_content import all_points, milliseconds
from tuner.tracking.notes import escape_markdown

PARENT = "parent"
NOTE = "mlflow.note.content"
VERSIONS = "tuner.model_versions"
"""The tag of a trial's run with the versions that were trained with its parameters, as JSON."""
MOST_VERSIONS = 50
"""How many it has, the newest ones."""
OF = "tuner.retrains"
"""The tag that identifies the experiment of a study's retrainings."""


@dataclass(frozen=True, kw_only=True)
class RunContent:
    """The content of a retraining's run."""

    identity: str  # of the retraining; letters and digits
    name: str
    started_at: float
    ended_at: float
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    data: tuple[str, str]  # name and digest
    factory: str  # of the data
    lineage: tuple[str, Mapping[str, Any]]  # a file's name, and what it contains as JSON
    curve: Chunk
    status: str  # MLflow's


@dataclass(frozen=True, kw_only=True)
class ModelContent:
    """The model of a retraining."""

    module: Any  # a torch module that takes inputs of any real dtype
    example: np.ndarray  # [row, ...]
    outputs: np.ndarray  # [row, ...], the module's on the example
    features: Sequence[Feature]  # the names of input columns; empty: they are unnamed
    files: Mapping[str, bytes]  # safetensors, from which the version is loaded
    tags: Mapping[str, str]  # of its version


class RetrainingRuns:
    """The runs of one study's retrainings. Raises `UnavailableError` for errors of MLflow."""

    def __init__(self, client: MlflowClient, study: str, artifacts: Path | None) -> None:
        """Store models below `artifacts`; None: where the server decides."""
        self._client = client
        self._study = study
        with tracking_reached(client.tracking_uri):
            self._experiment = self._find_experiment(artifacts)

    def log(self, content: RunContent) -> str:
        """Create or complete the run; return its id."""
        with tracking_reached(self._client.tracking_uri):
            run = self._find(content.identity)
            if run is None:
                tags = {RETRAINING: content.identity, "mlflow.parentRunId": self._parent()}
                began, name = milliseconds(content.started_at), content.name[:NAME_LIMIT]
                with sent_once():
                    run = self._client.create_run(
                        self._experiment, start_time=began, tags=tags, run_name=name
                    )
                reach("retrain.run_created")
            run_id = str(run.info.run_id)
            at = milliseconds(content.ended_at)
            points = [Metric(key, value, at, 0) for key, value in content.metrics.items()]
            for some in all_points(content.curve):
                points += as_metrics(some)
            params = [Param(key, value) for key, value in content.params.items()]
            self._client.log_batch(run_id, params=params, tags=as_tags(content.tags))
            for first in range(0, len(points), BATCH):
                self._client.log_batch(run_id, metrics=points[first : first + BATCH])
            used = DatasetInput(_dataset(content), [InputTag("mlflow.data.context", "training")])
            self._client.log_inputs(run_id, datasets=[used])
            name, found = content.lineage
            self._client.log_text(run_id, json.dumps(found, indent=2), name)
            self._client.set_terminated(run_id, content.status, at)
        return run_id

    def register(
        self, registry: Registry, run_id: str, run: RunContent, content: ModelContent
    ) -> Version:
        """Log the model of a run and register it as the challenger.

        The logged model is for MLflow and its other users; only the run's `files` are read back.
        """
        with tracking_reached(self._client.tracking_uri):
            self._log_files(run_id, content.files)
        found = registry.find_by_run(run_id)
        if found is None:
            with tracking_reached(self._client.tracking_uri):
                logged = self._logged(run_id, run, content)
                self._link(run_id, run, logged.model_id)
            reach("retrain.model_logged")
            found = registry.add(logged.artifact_location, run_id, logged.model_id, content.tags)
            reach("retrain.version_created")
        registry.set_alias(CHALLENGER, found.number)
        return found

    def describe(
        self,
        registry: Registry,
        run_id: str,
        version: Version,
        page: Callable[[str, str | None, str], str],
        *,
        trial_run: str | None,
        trial_key: str,
    ) -> None:
        """Write a page in Markdown on a run and on its version, and link to both from the trial.

        `page` is called with the addresses of the run, of the trial's run, which is None if it is
        not here, and of the version. That run is written to only if it is of the trial `trial_key`
        of this study, or of one of its retunes.
        """
        trial = None
        with tracking_reached(self._client.tracking_uri):
            if trial_run is not None:
                with suppress(UnavailableError):  # deleted, or published to another MLflow
                    home = Links(experiment=experiment_of(self._client, trial_run), parent="")
                    trial = home.run(trial_run)
            run = Links(experiment=self._experiment, parent=run_id).study()
            own = f"#/models/{quote(version.model, safe='')}/versions/{version.number}"
            text = page(run, trial, own)
            self._client.set_tag(run_id, NOTE, text)
            if trial is not None:
                self._link_back(str(trial_run), trial_key, version, own, run)
        registry.describe(version.number, text)

    def _link_back(
        self, trial_run: str, trial_key: str, version: Version, own: str, run: str
    ) -> None:
        """Add a version that was trained with a trial's parameters to the trial's run, once."""
        found = self._client.get_run(trial_run)
        tags = found.data.tags
        study = tags.get("tuner.study", "")
        ours = study == self._study or study.startswith(derived(self._study, "retune "))
        if (
            not ours  # the row that names it may be forged
            or tags.get("tuner.trial") != trial_key
            or found.info.lifecycle_stage != LifecycleStage.ACTIVE
        ):
            return
        name = f"{version.model}/{version.number}"
        try:
            known = TypeAdapter(list[str]).validate_json(tags.get(VERSIONS, "[]"))
        except ValidationError:  # whoever else has written it
            known = []
        if name in known:
            return
        title = escape_markdown(f"version {version.number} of {version.model}")
        line = f"- Trained again: [{title}]({own}), [its run]({run})"
        note = tags.get(NOTE, "")
        self._client.set_tag(trial_run, NOTE, f"{note}\n\n{line}" if note else line)
        self._client.set_tag(trial_run, VERSIONS, json.dumps([*known, name][-MOST_VERSIONS:]))

    def log_drift(self, metrics: Mapping[str, float], step: int, at: float) -> None:
        """Log a retraining's results to the parent run's curves."""
        points = [Metric(key, value, milliseconds(at), step) for key, value in metrics.items()]
        with tracking_reached(self._client.tracking_uri):
            self._client.log_batch(self._parent(), metrics=points)

    def _log_files(self, run_id: str, files: Mapping[str, bytes]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, some in files.items():
                path = Path(folder) / StoredFile.of(name, some).artifact
                path.write_bytes(some)
                self._client.log_artifact(run_id, str(path))

    def _link(self, run_id: str, run: RunContent, model_id: str) -> None:
        """Link the model to the run, and log the run's metrics for the model."""
        at = milliseconds(run.ended_at)
        # without the data set: its digest would give each retraining separate columns on the page
        points = [Metric(key, value, at, 0, model_id) for key, value in run.metrics.items()]
        self._client.log_batch(run_id, metrics=points)
        outputs = self._client.get_run(run_id).outputs
        if not any(one.model_id == model_id for one in outputs.model_outputs):
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])

    def _logged(self, run_id: str, run: RunContent, content: ModelContent) -> LoggedModel:
        """Return the model logged by this run, logging it if missing."""
        found = self._client.search_logged_models(
            [self._experiment], filter_string=f"source_run_id = '{run_id}'"
        )
        for one in found:
            if one.status == LoggedModelStatus.READY:
                return one
            self._client.delete_logged_model(one.model_id)  # an interrupted call left it incomplete
        made = self._client.create_logged_model(
            self._experiment,
            name=model_title(content.tags["tuner.study"]),
            source_run_id=run_id,
            tags=dict(content.tags),
            params=dict(run.params),
            model_type="pytorch",
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            described = Model(
                run_id=run_id, model_id=made.model_id, artifact_path=made.artifact_location
            )
            example = content.example.astype(_public(content.example.dtype))
            mlflow.pytorch.save_model(
                content.module,
                path,
                mlflow_model=described,
                signature=ModelSignature(inputs=_schema(example), outputs=_schema(content.outputs)),
                input_example=example,
                # explicit, since inferring them takes ten seconds; without a local build's suffix
                pip_requirements=[
                    f"{name}=={version(name).partition('+')[0]}"
                    for name in ("torch", "numpy", "mlflow")
                ],
                serialization_format="pt2",
            )
            if content.features:  # afterwards, since a graph is saved with a signature of tensors
                assert described.signature is not None
                described.signature = ModelSignature(
                    inputs=_columns(content.features), outputs=described.signature.outputs
                )
                described.save(str(path / MLMODEL_FILE_NAME))
            self._client.log_model_artifacts(made.model_id, str(path))
        return self._client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)

    def _parent(self) -> str:
        """Return the id of the parent run of all retrainings, created if missing."""
        found = self._find(PARENT)
        if found is None:
            tags = {
                RETRAINING: PARENT,
                "tuner.retrains": self._study,
                "mlflow.source.name": "tuner",
            }
            name = derived(self._study, "retrain")
            with sent_once():
                found = self._client.create_run(self._experiment, tags=tags, run_name=name)
        return str(found.info.run_id)

    def _find(self, identity: str) -> Run | None:
        query = f"tags.`{RETRAINING}` = '{identity}'"
        found: Sequence[Run] = self._client.search_runs(
            [self._experiment], query, order_by=["attributes.start_time ASC"], max_results=1
        )
        return found[0] if found else None

    def _find_experiment(self, artifacts: Path | None) -> str:
        name = derived(self._study, "retrain")
        found = named_or_tagged(self._client, name, OF, self._study)
        if found is None:
            # a digest, since folder names are limited to 255 bytes and artifact URIs to 200
            digest = hashlib.sha256(self._study.encode()).hexdigest()[:16]
            location = None if artifacts is None else (artifacts / f"retrain-{digest}").as_uri()
            tags = {OF: self._study, **KIND}
            return str(self._client.create_experiment(name, location, tags=tags))
        return str(found.experiment_id)


def model_title(study: str) -> str:
    """Return the name of a study's logged model, without characters that MLflow rejects."""
    return re.sub(r"""[/:.%"']""", "_", study)


def _dataset(content: RunContent) -> Dataset:
    name, digest = content.data
    source = json.dumps({"tags": {"mlflow.source.name": content.factory}})
    known = content.lineage[1]
    profile = {"num_rows": sum(known["rows"].values()), "rows": known["rows"]}
    return Dataset(
        name=name,
        digest=digest,
        source_type="code",
        source=source,
        profile=json.dumps(profile | {"source": known["data_source"]}),
    )


def _schema(rows: np.ndarray) -> Schema:
    return Schema([TensorSpec(rows.dtype, (-1, *rows.shape[1:]))])


def _public(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which a logged model takes its inputs: any real numbers are float64."""
    return np.dtype(np.float64) if dtype.kind == "f" else dtype


COLUMN_TYPES = {
    "float64": DataType.double,
    "float32": DataType.double,  # MLflow refuses doubles where a signature has floats
    "int64": DataType.long,
    "int32": DataType.integer,
    "bool": DataType.boolean,
}


def _columns(features: Sequence[Feature]) -> Schema:
    return Schema([ColSpec(COLUMN_TYPES[one.dtype], name=one.name) for one in features])
