"""The weights of registered versions: identified by the ledger, read as data, rebuilt by workloads.

The registry names a version and MLflow stores its files, but neither is trusted: a file is used
only if its SHA-256 is the one that the ledger recorded when the version was made. The files are
safetensors, which contain no code; the code of the model is that of the workload's factory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tuner.core.errors import NotFoundError, UsageError
from tuner.core.features import Feature, FeatureType
from tuner.ledger import Ledger, Retraining, Retrainings
from tuner.ledger.retrainings import LOG
from tuner.tracking.mlflow.registry import Registry, Rows, StoredFile, Version
from tuner.training import models, workloads
from tuner.training.models import ModelMismatchError
from tuner.training.workloads import Workload

WEIGHTS, EXAMPLE = "weights", "example"
"""The files of a version."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FileRecord(_Record):
    """One file of a version, as the ledger knows it."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)  # bytes


class BuildRecord(_Record):
    """What builds the module of a version."""

    factory: str
    arguments: dict[str, Any]
    dtype: Literal["float32", "float64"]
    code: str  # digest of the factory's source
    on_bad: Literal["refuse", "drop_batch"] = "refuse"


class FeatureRecord(_Record):
    """A named input column of a version."""

    name: str
    dtype: FeatureType


class VersionRecord(_Record):
    """What the ledger knows of a version."""

    run_id: str
    version: int
    weights: FileRecord
    example: FileRecord
    build: BuildRecord
    features: tuple[FeatureRecord, ...] = ()  # unnamed, or of an earlier release


class _Result(_Record):
    log: VersionRecord


@dataclass(frozen=True, kw_only=True)
class StoredVersion:
    """The verified files of a version."""

    version: Version
    build: BuildRecord
    weights: bytes  # safetensors
    example: np.ndarray  # [row, ...]
    expected: np.ndarray  # [row, ...], the outputs on the example when the model was trained
    features: tuple[Feature, ...]  # the input columns; empty: they are unnamed

    @property
    def inputs(self) -> Rows:
        """The type and shape of input rows."""
        return Rows(dtype=str(self.example.dtype), shape=self.example.shape[1:])

    @property
    def outputs(self) -> Rows:
        """The type and shape of output rows."""
        return Rows(dtype=str(self.expected.dtype), shape=self.expected.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """The module of a version."""

    module: Any  # a torch module
    exact: bool  # whether it repeats its outputs of when it was trained to the last bit


def maker(ledger: Ledger, version: Version) -> Retraining | None:
    """Return the retraining that made a version; None if it is not in this ledger."""
    for one in Retrainings(ledger).of_model(version.model):
        logged = one.result.get(LOG, {})
        if (logged.get("version"), logged.get("run_id")) == (version.number, version.run_id):
            return one
    return None


def find(ledger: Ledger, version: Version) -> VersionRecord | None:
    """Return what the ledger knows of a version; None if it has no digest of its weights."""
    made = maker(ledger, version)
    try:
        return None if made is None else _Result.model_validate(made.result).log
    except ValidationError:
        return None


def read(ledger: Ledger, registry: Registry, version: Version) -> StoredVersion:
    """Read the files of a version. Raise `NotFoundError` if they are unknown, lost or changed."""
    known = find(ledger, version)
    if known is None:
        raise NotFoundError(
            f"the ledger has no digest of the weights of {_name(version)}: an earlier release made "
            "it, or no retraining of this ledger; train a new champion with `tuner retrain`"
        )
    return read_known(registry, version, known)


def read_known(registry: Registry, version: Version, known: VersionRecord) -> StoredVersion:
    """Read the files of a version that the ledger knows. Raise `NotFoundError`."""
    content = {
        name: registry.read(version, StoredFile(name=name, sha256=one.sha256, size=one.size))
        for name, one in ((WEIGHTS, known.weights), (EXAMPLE, known.example))
    }
    try:
        example, expected = models.example_from_bytes(content[EXAMPLE])
    except ModelMismatchError as error:
        raise NotFoundError(f"{_name(version)} cannot be read: {error}") from error
    features = tuple(Feature(one.name, one.dtype) for one in known.features)
    if features and example.shape[1:] != (len(features),):
        raise NotFoundError(
            f"{_name(version)} cannot be read: the ledger has {len(features)} named features, and "
            f"its example has rows of shape {example.shape[1:]}"
        )
    return StoredVersion(
        version=version,
        build=known.build,
        weights=content[WEIGHTS],
        example=example,
        expected=expected,
        features=features,
    )


def build(stored: StoredVersion, prefixes: Sequence[str]) -> Rebuilt:
    """Build the module of a version by the factory that it was trained with.

    Raise `WorkloadError` if the factory is not allowed, and `UsageError` if its code has changed.
    """
    made = stored.build
    code = workloads.code_digest(made.factory, prefixes)  # before the factory is called
    if code != made.code:
        raise UsageError(
            f"{_name(stored.version)} was trained by other code: expected {made.factory} with "
            f"{made.code} as its digest, got {code}; restore that code, or train a new champion "
            "with `tuner retrain`"
        )
    workload = workloads.load(made.factory, made.arguments, prefixes, on_bad=made.on_bad)
    return build_with(stored, workload, made.factory)


def build_with(stored: StoredVersion, workload: Workload, factory: str) -> Rebuilt:
    """Build the module of a version by the model of a workload.

    Raise `UsageError` if the weights do not fit it or it does not repeat its outputs.
    """
    try:
        module = models.rebuild(workload, stored.build.dtype, stored.weights)
    except ModelMismatchError as error:
        raise _changed(stored, factory, str(error)) from error
    outputs = models.predict(module, stored.example)
    if not models.close(outputs, stored.expected):
        raise _changed(stored, factory, "its outputs on the stored example differ")
    exact = models.fingerprint(outputs) == models.fingerprint(stored.expected)
    return Rebuilt(module=module, exact=exact)


def _changed(stored: StoredVersion, factory: str, why: str) -> UsageError:
    return UsageError(
        f"{_name(stored.version)} cannot be rebuilt by the present code of {factory}: {why}; "
        "restore the code that trained it, or give [retrain] model another name to start over"
    )


def as_json(
    files: Mapping[str, bytes], build: BuildRecord, features: Sequence[Feature]
) -> dict[str, Any]:
    """Return what the ledger stores of a version, beside its number and its run."""
    described = {name: StoredFile.of(name, content) for name, content in files.items()}
    return {
        **{name: {"sha256": one.sha256, "size": one.size} for name, one in described.items()},
        "build": build.model_dump(),
        "features": [vars(one) for one in features],
    }


def _name(version: Version) -> str:
    return f"version {version.number} of model {version.model!r}"
