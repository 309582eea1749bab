"""MLflow's model registry: the versions of one model, and the aliases champion and challenger.

A reader of `models:/NAME@champion` gets a complete version: its files and tags are written before
the single write that moves the alias. Versions are never deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from tuner.core.errors import NotFoundError
from tuner.ledger.database import sent_once, tracking_reached

CHAMPION, CHALLENGER = "champion", "challenger"
RETRAINING = "tuner.retraining"
"""The tag of runs, models and versions that identifies their retraining."""
REPLACES = "tuner.replaces"
"""The tag of a promoted version with the previous champion."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a model."""

    model: str
    number: int
    run_id: str
    source: str
    tags: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The type and shape of a model's input or output rows."""

    dtype: str  # numpy's name
    shape: tuple[int, ...]  # of one row

    def __str__(self) -> str:
        return f"rows of shape {self.shape} of {self.dtype}"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A loaded version of a model."""

    version: Version
    module: Any  # a torch module
    example: np.ndarray  # [row, ...]
    inputs: Rows
    outputs: Rows


class Registry:
    """The versions of one model. Raises `UnavailableError` for errors of MLflow."""

    def __init__(self, client: MlflowClient, model: str) -> None:
        self._client = client
        self.model = model

    def champion(self) -> Version | None:
        """Return the champion, or None if there is none."""
        with self._reached():
            try:
                found = self._client.get_model_version_by_alias(self.model, CHAMPION)
            except MlflowException as error:
                if _is_missing(error):
                    return None
                raise
        return _version(found)

    def version(self, number: int) -> Version:
        """Return a version. Raise `NotFoundError` if it does not exist."""
        with self._reached():
            try:
                return _version(self._client.get_model_version(self.model, str(number)))
            except MlflowException as error:
                if not _is_missing(error):
                    raise
        raise NotFoundError(f"model {self.model!r} has no version {number} in the registry")

    def find_by_run(self, run_id: str) -> Version | None:
        """Return the version created from a run, or None."""
        with self._reached():
            found = self._client.search_model_versions(f"run_id = '{run_id}'")
        return next((_version(one) for one in found if one.name == self.model), None)

    def add(self, source: str, run_id: str, model_id: str, tags: Mapping[str, str]) -> Version:
        """Create a version of a logged model, and the registered model if missing."""
        with self._reached():
            try:
                self._client.create_registered_model(self.model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            with sent_once():
                made = self._client.create_model_version(
                    self.model, source, run_id=run_id, model_id=model_id, tags=dict(tags)
                )
        return _version(made)

    def set_alias(self, alias: str, number: int) -> None:
        """Move an alias to a version, atomically."""
        with self._reached():
            self._client.set_registered_model_alias(self.model, alias, str(number))

    def tag(self, number: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with self._reached():
            for key, value in tags.items():
                self._client.set_model_version_tag(self.model, str(number), key, value)

    def load(self, version: Version) -> Loaded:
        """Load a version, executing no code from its files. Raise `NotFoundError` if unreadable."""
        what = f"version {version.number} of model {version.model!r}"
        try:
            folder = Path(
                download_artifacts(
                    artifact_uri=version.source, tracking_uri=self._client.tracking_uri
                )
            )
            about = Model.load(str(folder))
            module = mlflow.pytorch.load_model(str(folder))
        except (MlflowException, OSError) as error:
            raise NotFoundError(
                f"{what} cannot be read at {version.source}; restore its files, or make another "
                f"version the champion with `tuner rollback`. MLflow reported: "
                f"{(str(error).splitlines() or [''])[0]}"
            ) from error
        example = about.load_input_example(str(folder))
        inputs, outputs = _rows(about.get_input_schema()), _rows(about.get_output_schema())
        return Loaded(
            version=version,
            module=module,
            example=np.asarray(example, dtype=inputs.dtype),
            inputs=inputs,
            outputs=outputs,
        )

    def _reached(self) -> Any:
        return tracking_reached(self._client.tracking_uri)


def _rows(schema: Any) -> Rows:
    (only,) = schema.inputs
    return Rows(dtype=str(only.type), shape=tuple(only.shape[1:]))


def _version(found: ModelVersion) -> Version:
    return Version(
        model=found.name,
        number=int(found.version),
        run_id=found.run_id,
        source=found.source,
        tags=dict(found.tags),
    )


def _is_missing(error: MlflowException) -> bool:
    # MLflow reports a missing alias as an invalid parameter
    return error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
