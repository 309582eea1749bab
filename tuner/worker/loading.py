"""Build the workload of a study and compare it with the submitted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.config import Space, StudySpec
from tuner.config.study import WorkloadTable
from tuner.ledger import StudyRecord
from tuner.ledger.versions import refuse_other_workload
from tuner.search import custom
from tuner.training import code_files, trainer_choice
from tuner.training.trainer_choice import Trained
from tuner.training.workloads import Workload


@dataclass(frozen=True, kw_only=True)
class PreparedWorkload:
    """A workload that is built, and its description for the ledger."""

    table: WorkloadTable  # what it was built from
    space: Space
    prefixes: tuple[str, ...]
    workload: Trained
    description: Mapping[str, Any]  # digests of code and data, and their sizes


def prepare_workload(spec: StudySpec, prefixes: Sequence[str]) -> PreparedWorkload:
    """Build the workload of a study, and load a sampler of its own. Raise `WorkloadError`."""
    trainer_choice.refuse_asked(spec)
    code_files.digests(spec.workload, prefixes)  # as of before the import
    workload = trainer_choice.load(spec, prefixes)
    custom.load(spec, prefixes)
    return PreparedWorkload(
        table=spec.workload,
        space=spec.space,
        prefixes=tuple(prefixes),
        workload=workload,
        description=_description(spec, workload, prefixes),
    )


def load_workload(
    study: StudyRecord, prefixes: Sequence[str], prepared: PreparedWorkload | None = None
) -> Trained:
    """Return the workload of a study: `prepared` if it is this one, else a new one.

    Raise `WorkloadError` if its digests are not those that were submitted; that of the code is
    compared before anything is imported.
    """
    trainer_choice.refuse_asked(study.spec)
    table = study.spec.workload
    known = prepared and (prepared.table, prepared.space, prepared.prefixes)
    if prepared is None or known != (table, study.spec.space, tuple(prefixes)):
        code = trainer_choice.code_digest(table, prefixes)
        files = code_files.digests(table, prefixes)
        own = custom.code_digest(study.spec, prefixes)
        here = {**study.workload, "code": code, "files": files, **own}
        refuse_other_workload(study.name, table.function, study.workload, here)
        prepared = prepare_workload(study.spec, prefixes)
    own = custom.code_digest(study.spec, prefixes)
    here = {**prepared.description, "sampler": None, **own}
    refuse_other_workload(study.name, table.function, study.workload, here)
    return prepared.workload


def _description(spec: StudySpec, workload: Trained, prefixes: Sequence[str]) -> dict[str, Any]:
    """Return digests of code and data, and their sizes."""
    found = {
        "code": trainer_choice.code_digest(spec.workload, prefixes),
        "files": code_files.digests(spec.workload, prefixes),
        "data": workload.data_digest,
        "data_name": workload.data_name,
        **custom.code_digest(spec, prefixes),
        "baseline_loss": None,
        "training_rows": None if isinstance(workload, Workload) else workload.training_rows,
        "validation_rows": None,
    }
    if not isinstance(workload, Workload):
        return found
    in_memory = workload.train is None
    return found | {
        "baseline_loss": workload.baseline_loss,
        "training_rows": len(workload.train_inputs) if in_memory else workload.rows,
        "validation_rows": len(workload.validation_inputs) or None,
        **({"keeps_last": True} if workload.keeps_last else {}),
    }
