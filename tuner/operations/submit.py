"""Putting a study into the ledger: what is checked before anything is created."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tuner.analysis.verdicts import EARLY
from tuner.config import Grid, Space, StudySpec, options, reading
from tuner.config.retrain import NOT_STORED
from tuner.core.errors import NotFoundError, UsageError
from tuner.ledger import Ledger, Reader, StudyRecord
from tuner.training import choosing
from tuner.training.loop import OWN_NAMES
from tuner.training.workloads import Workload
from tuner.worker.loading import described

log = logging.getLogger(__name__)


def prepare(spec: StudySpec, prefixes: Sequence[str]) -> dict[str, Any]:
    """Build a study's workload and describe it; a worker's must be the same.

    Raises `WorkloadError` when it cannot be trained here and `UsageError` when it does not
    measure what the study is judged by.
    """
    for key in spec.retrain.notify.literals:
        raise UsageError(f"[retrain.notify] {key}: expected {NOT_STORED}, got something else")
    workload = choosing.load(spec, prefixes)
    if not isinstance(workload, Workload):
        if spec.study.metric in OWN_NAMES:
            raise UsageError(
                f"[study] metric: expected one that {spec.workload.function} reports at "
                f"evaluations, such as val_loss, got {spec.study.metric!r}, which is of batches"
            )
    elif spec.study.metric not in workload.metric_names:
        raise UsageError(
            f"[study] metric: expected one that {spec.workload.function} measures "
            f"({', '.join(workload.metric_names)}), got {spec.study.metric!r}"
        )
    return described(spec, workload, prefixes)


def submit(
    ledger: Ledger, spec: StudySpec, described: Mapping[str, Any]
) -> tuple[StudyRecord, bool]:
    """Create the study, or return the one that exists; the flag says whether it was created.

    A study of that name with another space gets a new version. Raises `UsageError` when one
    differs in more than that and its budget, and `WorkloadError` when its code or data do.
    A study whose file names no pruner keeps the one that it was first submitted with.
    """
    spec = _with_known_pruner(ledger, spec)
    _refuse_changes(ledger, spec)
    combinations = grid_size(spec.space) if isinstance(spec.search.sampler, Grid) else None
    limit = spec.budget.trials
    study, created = ledger.submit(spec, limit=limit, workload=described, combinations=combinations)
    if created and (said := early_pruning(spec)):
        log.warning(said)
    return study, created


def early_pruning(spec: StudySpec) -> str | None:
    """Return a warning where the pruner judges trials before their values say much."""
    pruner, steps, first = spec.search.pruner.name, spec.training.steps, spec.first_stop()
    if first is None or first * EARLY >= steps:
        return None
    return (
        f"[search] pruner: {pruner} first stops trials at step {first} of {steps}. Before a ninth "
        "of the horizon values hardly tell which trial will be best, so good ones are lost. Let "
        'it begin later, or leave the pruner out for "halving", the default (docs/search.md).'
    )


def _with_known_pruner(ledger: Reader, spec: StudySpec) -> StudySpec:
    """Return the study with its stored pruner where its file names none: defaults may change."""
    if "pruner" in spec.search.model_fields_set:
        return spec
    try:
        known = ledger.study(spec.study.name).spec.search.pruner
    except NotFoundError:
        return spec
    search = spec.search.model_copy(update={"pruner": known})
    return spec.model_copy(update={"search": search})


def in_words(ledger: Reader, study: StudyRecord, *, created: bool) -> str:
    """Say what was submitted."""
    if not created:
        return f"Study {study.name!r} was there already, {study.limit} trials."
    if study.version == 1:
        return f"Study {study.name!r} submitted, {study.limit} trials."
    return (
        f"The space of study {study.name!r} has changed: version {study.version} submitted, "
        f"{study.limit} trials, and {ledger.imported(study.id)} of earlier versions imported. "
        f"Optuna and MLflow call it {study.title!r}."
    )


def grid_size(space: Space) -> int:
    """Count the combinations of a space of values and lists."""

    def size(choices: Sequence[Any]) -> int:
        entries = [choice.entries() for choice in choices]
        return sum(math.prod(len(options(entry)) for _, entry in group) for group in entries)

    return len(options(space.lr)) * size(space.schedule) * size(space.optimizer)


def _refuse_changes(ledger: Reader, spec: StudySpec) -> None:
    """Raise `UsageError` with everything that differs but may not."""
    try:
        known = ledger.study(spec.study.name)
    except NotFoundError:
        return
    if reading.changed(known.spec.model_copy(update={"space": spec.space}), spec):
        raise UsageError(
            f"study {known.name!r} exists and differs from this file; only its budget may change, "
            "and its space, which makes a new version of it. Give the study another name, or "
            "undo:\n  " + "\n  ".join(reading.changed(known.spec, spec))
        )
