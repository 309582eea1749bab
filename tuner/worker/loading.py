"""Building a study's workload, and comparing it with the one that was submitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuner.config import StudySpec
from tuner.ledger import StudyRecord
from tuner.ledger.versions import refuse_other_workload
from tuner.training import trainer_choice, workloads
from tuner.training.trainer_choice import Trained
from tuner.training.workloads import Workload


def load_workload(study: StudyRecord, prefixes: Sequence[str]) -> Trained:
    """Return a study's workload. Raises `WorkloadError` when it is not what was submitted."""
    spec = study.spec
    workload = trainer_choice.load(spec, prefixes)
    found = described(spec, workload, prefixes)
    refuse_other_workload(study.name, spec.workload.function, study.workload, found)
    return workload


def described(spec: StudySpec, workload: Trained, prefixes: Sequence[str]) -> dict[str, Any]:
    """Return what the ledger keeps of a workload: digests of code and data, and their sizes."""
    found = {
        "code": workloads.code_digest(spec.workload.function, prefixes),
        "data": workload.data_digest,
        "data_name": workload.data_name,
        "baseline_loss": None,
        "training_rows": None,  # only their function knows
        "validation_rows": None,
    }
    if not isinstance(workload, Workload):
        return found
    return found | {
        "baseline_loss": workload.baseline_loss,
        "training_rows": len(workload.train_inputs),
        "validation_rows": len(workload.validation_inputs),
    }
