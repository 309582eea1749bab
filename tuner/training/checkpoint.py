"""Checkpoints: states as bytes, verified by digest when they are read from a store."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import torch

from tuner.core.file_stores import FileStore


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another kind; its trial must start again."""


def to_bytes(state: dict[str, Any]) -> bytes:
    """Serialize nested dicts and lists of tensors, numbers, strings, booleans and None."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> dict[str, Any]:
    """Return the state in `content`, tensors on the CPU, without running code from it.

    Raise `CheckpointError` if the bytes are not a state.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the type depends on where the damage is
        raise CheckpointError(
            f"expected a checkpoint, got {len(content)} bytes that torch cannot load "
            f"({type(error).__name__}); start the trial from an older checkpoint or from step 0"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"expected a checkpoint, got a {type(state).__name__}")
    return state


def matching(content: bytes, expected: Mapping[str, Any], trial: int) -> dict[str, Any]:
    """Return the state of a trainer's snapshot.

    Raise `ValueError` if its `fingerprint` differs from `expected`.
    """
    state = from_bytes(content)
    found = state.get("fingerprint", {})
    differences = [
        f"{key}: expected {expected.get(key)!r}, got {found.get(key)!r}"
        for key in sorted({*expected, *found})
        if found.get(key) != expected.get(key)
    ]
    if differences:
        raise ValueError(
            f"the snapshot does not fit trial {trial} ({'; '.join(differences)}); start the trial "
            "from step 0, or resume it under the conditions of the snapshot"
        )
    return state


def write(store: FileStore, key: str, content: bytes) -> str:
    """Write a file into a store, and return its SHA-256 for `read`."""
    store.write(key, content)
    return hashlib.sha256(content).hexdigest()


def read(store: FileStore, key: str, digest: str) -> bytes:
    """Return the content of a file. Raise `CheckpointError` unless it has this SHA-256."""
    try:
        content = store.read(key)
    except OSError as error:
        raise CheckpointError(
            f"{store}/{key}: expected a checkpoint, got {error.strerror or error}; start the trial "
            "from an older checkpoint or from step 0"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise CheckpointError(
            f"{store}/{key}: expected a checkpoint with SHA-256 {digest}, got {len(content)} bytes "
            f"with {found}; it is damaged or another one: start the trial from an older checkpoint "
            "or from step 0"
        )
    return content
