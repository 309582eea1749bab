"""MLflow's model registry: the versions of one model, and the aliases champion, challenger, canary.

A reader of `models:/NAME@champion` gets a complete version: its files and tags are written before
the single write that moves the alias. Versions are never deleted.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tuner.core.errors import NotFoundError
from tuner.ledger.database import is_refused, sent_once, tracking_reached

CHAMPION, CHALLENGER, CANARY = "champion", "challenger", "canary"
"""Aliases: of the version in use, the newest one, and one that is tried before it is promoted."""
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
class StoredFile:
    """A safetensors file of a version, among the artifacts of its run."""

    name: str
    sha256: str
    size: int  # bytes

    @property
    def artifact(self) -> str:
        """Its path in the run, which has the digest: other content never replaces it."""
        return f"{self.name}-{self.sha256[:16]}.safetensors"

    @classmethod
    def of(cls, name: str, content: bytes) -> StoredFile:
        """Return the digest and the size of content."""
        return cls(name=name, sha256=hashlib.sha256(content).hexdigest(), size=len(content))


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
                if self._is_missing(error):
                    return None
                raise
        return _version(found)

    def version(self, number: int) -> Version:
        """Return a version. Raise `NotFoundError` if it does not exist."""
        with self._reached():
            try:
                return _version(self._client.get_model_version(self.model, str(number)))
            except MlflowException as error:
                if not self._is_missing(error):
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

    def remove_alias(self, alias: str, number: int) -> None:
        """Remove an alias if it is of a version."""
        with self._reached():
            if alias in self._client.get_model_version(self.model, str(number)).aliases:
                self._client.delete_registered_model_alias(self.model, alias)

    def complete_tags(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set the tags of a version that it does not have; each is a request of its own."""
        missing = {key: value for key, value in tags.items() if version.tags.get(key) != value}
        self.tag(version.number, missing)

    def tag(self, number: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with self._reached():
            for key, value in tags.items():
                self._client.set_model_version_tag(self.model, str(number), key, value)

    def describe(self, number: int, text: str) -> None:
        """Write the description of a version, in Markdown."""
        with self._reached():
            self._client.update_model_version(self.model, str(number), text)

    def read(self, version: Version, file: StoredFile) -> bytes:
        """Return the content of a file. Raise `NotFoundError` unless it has this size and digest.

        Nothing larger is downloaded. The content is bytes: no code of MLflow interprets it.
        """
        try:
            listed = self._client.list_artifacts(version.run_id)
            sizes = {one.path: one.file_size for one in listed if not one.is_dir}
            if sizes.get(file.artifact) != file.size:
                got = "none" if file.artifact not in sizes else f"{sizes[file.artifact]} bytes"
                raise _unreadable(
                    version,
                    f"expected {file.artifact} of {file.size} bytes in run "
                    f"{version.run_id}, got {got}",
                )
            with tempfile.TemporaryDirectory() as folder:
                path = self._client.download_artifacts(version.run_id, file.artifact, folder)
                with Path(path).open("rb") as stream:
                    content = stream.read(file.size + 1)
        except (MlflowException, OSError) as error:
            why = (str(error).splitlines() or [""])[0]
            raise _unreadable(version, f"MLflow reported: {why}") from error
        got = hashlib.sha256(content).hexdigest()
        if got != file.sha256:
            raise _unreadable(
                version,
                f"expected {file.artifact} with the SHA-256 {file.sha256} "
                f"that the ledger has, got {got}",
            )
        return content

    def _is_missing(self, error: MlflowException) -> bool:
        """Return whether an error means that there is no such model, version or alias."""
        if is_refused(error):  # a server with accounts refuses what does not exist
            return not self._is_listed()
        # MLflow reports a missing alias as an invalid parameter
        return error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}

    def _is_listed(self) -> bool:
        token = None
        while True:
            page = self._client.search_registered_models(max_results=100, page_token=token)
            if any(one.name == self.model for one in page):
                return True
            token = page.token
            if not token:
                return False

    def _reached(self) -> Any:
        return tracking_reached(self._client.tracking_uri)


def _unreadable(version: Version, why: str) -> NotFoundError:
    return NotFoundError(
        f"version {version.number} of model {version.model!r} cannot be read: {why}; restore its "
        "files, or make another version the champion with `tuner rollback`"
    )


def _version(found: ModelVersion) -> Version:
    return Version(
        model=found.name,
        number=int(found.version),
        run_id=found.run_id,
        source=found.source,
        tags=dict(found.tags),
    )
