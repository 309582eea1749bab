"""Putting a study into the ledger: what is checked before anything is created."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tuner import studyfile
from tuner.errors import NotFoundError, UsageError, WorkloadError
from tuner.ledger import Ledger, Reader, StudyRecord
from tuner.spec import Grid, Space, StudySpec, options
from tuner.training import workloads
from tuner.training.workloads import Workload


def submit(ledger: Ledger, spec: StudySpec, prefixes: Sequence[str]) -> tuple[StudyRecord, bool]:
    """Create the study, or give the one that exists; the flag says whether it was created.

    Raises `UsageError` when a study of that name differs in more than its budget, and
    `WorkloadError` when its workload cannot be trained here.
    """
    _refuse_changes(ledger, spec)
    workload = workloads.load(spec.workload.factory, spec.workload.arguments, prefixes)
    if spec.study.metric not in ("val_loss", *workload.metrics):
        known = ", ".join(("val_loss", *workload.metrics))
        raise UsageError(
            f"[study] metric: expected one that {spec.workload.factory} measures ({known}), "
            f"got {spec.study.metric!r}"
        )
    limit = spec.budget.trials
    if isinstance(spec.search.sampler, Grid):
        limit = min(limit, grid_size(spec.space))
    return ledger.submit(spec, limit=limit, workload=described(spec, workload))


def described(spec: StudySpec, workload: Workload) -> dict[str, Any]:
    """Say which code and data a study is about; a worker's must be the same."""
    return {
        "code": workloads.code_digest(spec.workload.factory),
        "data": workload.data_digest,
        "data_name": workload.data_name,
        "baseline_loss": workload.baseline_loss,
        "training_rows": len(workload.train_inputs),
        "validation_rows": len(workload.validation_inputs),
    }


def load_workload(study: StudyRecord, prefixes: Sequence[str]) -> Workload:
    """Build a study's workload. Raises `WorkloadError` when it is not what was submitted."""
    spec = study.spec
    workload = workloads.load(spec.workload.factory, spec.workload.arguments, prefixes)
    here = described(spec, workload)
    for what in ("code", "data"):
        if here[what] != study.workload[what]:
            raise WorkloadError(
                f"the {what} of {spec.workload.factory} is not what study "
                f"{study.name!r} was submitted with (digest {study.workload[what]}, here "
                f"{here[what]}); restore it, or submit the study under another name"
            )
    return workload


def grid_size(space: Space) -> int:
    """Count the combinations of a space of values and lists."""

    def size(choices: Sequence[Any]) -> int:
        entries = [choice.entries() for choice in choices]
        return sum(math.prod(len(options(entry)) for _, entry in group) for group in entries)

    return len(options(space.lr)) * size(space.schedule) * size(space.optimizer)


def _refuse_changes(ledger: Reader, spec: StudySpec) -> None:
    try:
        known = ledger.study(spec.study.name)
    except NotFoundError:
        return
    changes = studyfile.changed(known.spec, spec)
    if changes:
        raise UsageError(
            f"study {known.name!r} exists and differs from this file; only its budget may change. "
            "Give the study another name, or undo:\n  " + "\n  ".join(changes)
        )
