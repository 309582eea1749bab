"""Putting a study into the ledger: what is checked before anything is created."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tuner import studyfile
from tuner.errors import NotFoundError, UsageError, WorkloadError
from tuner.ledger import Ledger, Reader, StudyRecord
from tuner.spec import Grid, Space, StudySpec, options
from tuner.training import workloads
from tuner.training.workloads import Workload


def prepare(spec: StudySpec, prefixes: Sequence[str]) -> dict[str, Any]:
    """Build a study's workload and describe it; a worker's must be the same.

    Raises `WorkloadError` when it cannot be trained here and `UsageError` when it does not
    measure what the study is judged by.
    """
    workload = workloads.load(spec.workload.factory, spec.workload.arguments, prefixes)
    if spec.study.metric not in workload.metric_names:
        raise UsageError(
            f"[study] metric: expected one that {spec.workload.factory} measures "
            f"({', '.join(workload.metric_names)}), got {spec.study.metric!r}"
        )
    return _described(spec, workload, prefixes)


def submit(
    ledger: Ledger, spec: StudySpec, described: Mapping[str, Any]
) -> tuple[StudyRecord, bool]:
    """Create the study, or give the one that exists; the flag says whether it was created.

    Raises `UsageError` when a study of that name differs in more than its budget.
    """
    _refuse_changes(ledger, spec)
    limit = spec.budget.trials
    if isinstance(spec.search.sampler, Grid):
        limit = min(limit, grid_size(spec.space))
    return ledger.submit(spec, limit=limit, workload=described)


def _described(spec: StudySpec, workload: Workload, prefixes: Sequence[str]) -> dict[str, Any]:
    return {
        "code": workloads.code_digest(spec.workload.factory, prefixes),
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
    here = _described(spec, workload, prefixes)
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
