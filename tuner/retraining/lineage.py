"""The lineage of a model version: its data, code, environment and trial, and links to them.

The ledger stores it with the training, so that it is of the process that trained. MLflow has it as
tags of run and version, as the file `lineage.json` of the run, and as a page of the version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tuner.core import run_keys
from tuner.core.curves import LATEST
from tuner.core.environment import describe
from tuner.core.redaction import redacted
from tuner.ledger.publications import Publications
from tuner.retraining.checking import Job
from tuner.retraining.training import Origin
from tuner.tracking.notes import escape_markdown
from tuner.training import bad_data, code_files
from tuner.training.workloads import code_digest

FILE = "lineage.json"
"""The file of a retraining's run."""
LONGEST = 4000
"""The longest JSON that is a tag."""


Time: TypeAlias = Annotated[float, Field(ge=0, le=LATEST)]
"""Seconds since 1970."""


class Environment(BaseModel):
    """Where a training ran."""

    model_config = ConfigDict(frozen=True, extra="allow")

    git_commit: str | None
    git_dirty: bool | None


class Lineage(BaseModel):
    """The data, code, environment and trial of a training."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    data_time: Time | None  # that the run key names
    forced: bool
    data: str  # digest
    data_name: str
    data_source: str
    rows: dict[str, int]  # by part
    batches: dict[str, dict[str, int]]  # rows by batch and part
    left_out: dict[str, str]
    factory: str
    code: str  # digest of the factory's module
    files: dict[str, str]  # digests of the module and of what it imports from its package
    package: str  # digest of those
    environment: Environment
    trial_run_id: str | None  # in MLflow


def stored(found: Mapping[str, Any]) -> Lineage | None:
    """Return what the ledger has; None if an earlier release trained, or it cannot be read."""
    try:
        return Lineage.model_validate(found)
    except ValidationError:
        return None


def of(job: Job, origin: Origin) -> Lineage:
    """Return the lineage of a training in this process."""
    files = code_files.digests(job.spec.workload, job.prefixes)
    workload = job.workload
    return Lineage(
        data_time=job.data_time,
        forced=job.force,
        data=workload.data_digest,
        data_name=workload.data_name,
        data_source=redacted(workload.data_source),
        rows=bad_data.rows(workload),
        batches=bad_data.rows_by_batch(workload),
        left_out=dict(workload.left_out),
        factory=job.spec.workload.function,
        code=code_digest(job.spec.workload.function, job.prefixes),
        files=files,
        package=_digest(files),
        environment=Environment(**describe(job.spec.training.device)),
        trial_run_id=_run_of(job, origin),
    )


def tags(found: Lineage) -> dict[str, str]:
    """Return the tags of run and version."""
    environment = found.environment
    made = {
        "tuner.data_digest": found.data,
        "tuner.code_digest": found.code,
        "tuner.package_digest": found.package,
        "tuner.rows": json.dumps(found.rows),
        "tuner.environment": environment.model_dump_json(),
        **_if_any("tuner.data_source", found.data_source),
        **_if_any("tuner.trial_run_id", found.trial_run_id),
    }
    for name, value in (
        ("tuner.batch_rows", found.batches),
        ("tuner.left_out", found.left_out),
    ):
        text = json.dumps(value)
        if value and len(text) <= LONGEST:
            made[name] = text
    if found.data_time is not None:
        made["tuner.data_time"] = run_keys.iso(found.data_time)
    if environment.git_commit:
        made["mlflow.source.git.commit"] = environment.git_commit
        made["tuner.git_dirty"] = str(environment.git_dirty).lower()
    return made


def page(
    found: Lineage,
    *,
    origin: Mapping[str, Any],
    reason: str,
    run: str,
    trial: str | None,
    version: str,
) -> str:
    """Return a page in Markdown with links to data, trial, curve, decision and version.

    `run`, `trial` and `version` are addresses of pages; `trial` is None if the run of the trial
    is not in MLflow.
    """
    name = f"trial {origin['trial']} of {escape_markdown(origin['study'])}"
    rows = ", ".join(f"{count} {part}" for part, count in found.rows.items())
    batches = f" in {len(found.batches)} batches" if found.batches else ""
    source = f" from {escape_markdown(found.data_source)}" if found.data_source else ""
    git = found.environment.git_commit
    code = f"{escape_markdown(found.factory)}, package `{found.package}`"
    data = (
        f"{escape_markdown(found.data_name)}{source}: {rows} rows{batches}, digest "
        f"`{found.data}` ([rows a batch]({_file(run)}))"
    )
    lines = (
        ("Data", data),
        ("Trial", f"[{name}]({trial})" if trial else name),
        ("Curve", f"[of this training]({_tab(run, 'model-metrics')})"),
        ("Decision", escape_markdown(reason)),
        ("Code", f"{code}, git `{git}`" if git else code),
        ("Environment", f"[packages and machine]({_file(run)})"),
        ("Model", f"[this version]({version}), [its run]({run})"),
    )
    return "\n".join(f"- **{title}**: {text}" for title, text in lines)


def _file(run: str) -> str:
    return _tab(run, f"artifacts/{FILE}")


def _tab(run: str, tab: str) -> str:
    address, _, query = run.partition("?")
    return f"{address}/{tab}?{query}"


def _if_any(key: str, value: str | None) -> dict[str, str]:
    return {key: value} if value else {}


def _digest(files: Mapping[str, str]) -> str:
    content = "\n".join(f"{name} {digest}" for name, digest in sorted(files.items()))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _run_of(job: Job, origin: Origin) -> str | None:
    """Return the id of the run of the trial whose parameters are trained; None if unpublished."""
    known = [one for one in job.ledger.studies() if one.name == origin.study]
    study = next((one for one in known if one.version == origin.version), None)
    if study is None:
        return None
    return (
        Publications(job.ledger.engine, "mlflow")
        .external_ids(study.id, [origin.trial])
        .get(origin.trial)
    )
