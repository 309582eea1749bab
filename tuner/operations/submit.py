"""Submit a study to the ledger; everything is checked before anything is created."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from tuner.analysis.verdicts import EARLY
from tuner.config import (
    AnyPruner,
    Branching,
    Grid,
    Halving,
    Patient,
    StudySpec,
    Table,
    reading,
    settings_of,
)
from tuner.config.grid import Grid as CellsOf
from tuner.config.retrain import NOT_STORED
from tuner.config.study import SECONDS
from tuner.core.environment import person
from tuner.core.errors import NotFoundError, UsageError
from tuner.core.file_stores import writing_to
from tuner.ledger import Ledger, Reader, StudyRecord, events
from tuner.ledger.database import Addresses
from tuner.ledger.events import Act
from tuner.operations.ownership import Ask, check, refuse
from tuner.training import loaders, shipping
from tuner.training.trainer import TRAIN_COLUMNS
from tuner.training.workloads import Workload
from tuner.worker.loading import PreparedWorkload, prepare_workload

log = logging.getLogger(__name__)


def prepare(spec: StudySpec, prefixes: Sequence[str]) -> PreparedWorkload:
    """Build the workload of a study; every worker's must have the same digests.

    Raise `WorkloadError` if it cannot be trained on this machine, and `UsageError` if it does not
    measure the study's metric.
    """
    for key in spec.retrain.notify.literals:
        raise UsageError(f"[retrain.notify] {key}: expected {NOT_STORED}, got something else")
    for key in spec.notify.literals:
        raise UsageError(f"[notify] {key}: expected {NOT_STORED}, got something else")
    prepared = prepare_workload(spec, prefixes)
    workload = prepared.workload
    rows = workload.rows if isinstance(workload, Workload) else workload.training_rows
    settings = settings_of(spec, {}, rows)  # raises where the budget needs the number of rows
    if isinstance(workload, Workload):
        _refuse_batch_size(workload, spec, settings.batch_size)
    measured = workload.metric_names if isinstance(workload, Workload) else None
    wanted = [("constraints", one.names, one.text) for one in spec.study.limits()]
    wanted += [("objectives", frozenset([o.metric]), o.metric) for o in spec.study.objectives[1:]]
    for key, names, text in wanted:
        wrong = names & set(TRAIN_COLUMNS)
        if measured is not None:
            wrong = names - {SECONDS, *measured}
        if wrong:
            which = "" if measured is None else f" ({', '.join(measured)})"
            raise UsageError(
                f"[study] {key}: expected metrics that {spec.workload.function} measures at "
                f"evaluations{which}, or seconds, got {', '.join(sorted(wrong))} in {text!r}"
            )
    if not isinstance(workload, Workload):
        if spec.study.metric in TRAIN_COLUMNS:
            raise UsageError(
                f"[study] metric: expected a metric that {spec.workload.function} reports at "
                f"evaluations, such as val_loss, got {spec.study.metric!r}, which is measured on "
                "batches"
            )
    elif spec.study.metric not in workload.metric_names:
        raise UsageError(
            f"[study] metric: expected a metric that {spec.workload.function} measures "
            f"({', '.join(workload.metric_names)}), got {spec.study.metric!r}"
        )
    return prepared


def _refuse_batch_size(workload: Workload, spec: StudySpec, size: int | str) -> None:
    """Raise `UsageError` or `WorkloadError` if batches come from a loader of another size."""
    train = workload.train
    fixed = workload.batches is not None or (train is not None and not loaders.is_of_size(train))
    if fixed and spec.space.batch_size is not None:
        hint = "" if train is None else "; make train a function of the batch size to search it"
        raise UsageError(
            "[space] batch_size: expected nothing, as the batches of "
            f"{spec.workload.function} come from a loader with its own size{hint}"
        )
    if train is not None:
        loaders.of_size(train, size)


def submit(
    ledger: Ledger, spec: StudySpec, description: Mapping[str, Any], ask: Ask = refuse
) -> tuple[StudyRecord, bool]:
    """Create the study or return the existing one, and whether it was created.

    `description` is that of its prepared workload. A study of that name with another space gets a
    new version. Raise `UsageError` if anything else but its budget differs, and `WorkloadError` if
    its code or data differ. `ask` is asked before a study of somebody else changes. A sampler or
    pruner that the file leaves open stays the one that the study was first submitted with.
    """
    spec = _with_known_search(ledger, spec)
    _refuse_changes(ledger, spec)
    _refuse_unknown_sources(ledger, spec)
    if _changes(ledger, spec):
        check(ledger, spec.study.name, ask)
    combinations = len(CellsOf(spec.space)) if isinstance(spec.search.sampler, Grid) else None
    limit = spec.budget.trials - spec.deciding_trials
    study, created = ledger.submit(
        spec,
        limit=limit,
        workload=description,
        combinations=combinations,
        act=Act(by=person()),
    )
    if created and (warning := early_pruning(spec)):
        log.warning(warning)
    return study, created


def ship(
    ledger: Ledger, places: Addresses, study: StudyRecord, prefixes: Sequence[str], act: Act
) -> str:
    """Store the code of a study beside the checkpoints, for workers that allow it.

    Return its SHA-256. Raise `UsageError` if it cannot be shipped, and `OutputError` if it cannot
    be stored.
    """
    packed = shipping.pack(study.spec.workload, prefixes)
    with writing_to(places.checkpoints):
        places.checkpoints.write(packed.key, packed.content)
    events.add(ledger, study.name, events.CHANGED, act, {events.SHIPPED: packed.digest})
    return packed.digest


def _changes(ledger: Reader, spec: StudySpec) -> bool:
    """Return whether a study exists and would not be as it is."""
    try:
        known = ledger.study(spec.study.name).spec
    except NotFoundError:
        return False
    return known.model_dump() != spec.model_dump()


def early_pruning(spec: StudySpec) -> str | None:
    """Return a warning if the pruner judges trials too early, else None."""
    pruner, length, first = spec.search.pruner.name, spec.length, spec.first_stop()
    if first is None or isinstance(spec.judge, Branching):
        return None
    schedules = len(spec.space.schedule)
    if first * EARLY < length:
        why = (
            "Before a ninth of the horizon, values hardly predict which trial will be best: on "
            "real curves their rank correlation with the final ones was 0.16 to 0.28 at a 27th, "
            "and asha from there lost the best trial in four of five studies."
        )
    elif first * 3 < length and schedules > 1:
        why = (
            f"Its {schedules} schedules differ in the middle, where late decays look bad: the rank "
            "correlation of raw values with the final ones was 0.18 at a ninth of the horizon, and "
            "0.43 at a third, in studies of narrow ranges."
        )
    else:
        return None
    unit = spec.unit.removesuffix("s")
    return (
        f"[search] pruner: {pruner} first stops trials at {unit} {first} of {length}. {why} "
        'Start it later, or omit the pruner to use the default, "one_rung" (docs/search.md).'
    )


def _with_known_search(ledger: Reader, spec: StudySpec) -> StudySpec:
    """Return the study with its stored sampler and pruner if its file leaves them open.

    Defaults may change: those of both, and those of their options. The first rung of asha and
    hyperband is stored with a new study; earlier versions began before a ninth of the horizon.
    """
    pruner, update = _from_a_ninth(spec.search.pruner, spec.length), dict[str, Any]()
    try:
        known = ledger.study(spec.study.name).spec.search
    except NotFoundError:
        update["pruner"] = pruner
        return spec.model_copy(update={"search": spec.search.model_copy(update=update)})
    named = spec.search.model_fields_set
    if "pruner" not in named:
        update["pruner"] = known.pruner
    elif pruner == known.pruner:
        update["pruner"] = pruner
    if "sampler" not in named or _leaves_open(spec.search.sampler, known.sampler):
        update["sampler"] = known.sampler
    return spec.model_copy(update={"search": spec.search.model_copy(update=update)})


def _leaves_open(sampler: Table, known: Table) -> bool:
    """Return whether a file's sampler contradicts no option of the stored one.

    Version 0.1.0 called Optuna's Gaussian process "gp".
    """
    named, stored = sampler.model_dump(exclude_unset=True), known.model_dump()
    if stored["name"] == "optuna_gp" and named["name"] == "gp":
        stored["name"] = "gp"
    return named.items() <= stored.items()


def _from_a_ninth(pruner: AnyPruner, steps: int) -> AnyPruner:
    """Return the pruner with its first rung set, at a ninth of the horizon or later."""
    if isinstance(pruner, Patient):
        wraps = _from_a_ninth(pruner.wraps, steps)
        return pruner.model_copy(update={"wraps": wraps})
    if not isinstance(pruner, Halving) or pruner.min_steps is not None:
        return pruner
    first = max(pruner.first_rung(steps), -(-steps // EARLY))
    return pruner.model_copy(update={"min_steps": first})


def changed_tables(ledger: Reader, spec: StudySpec) -> list[str]:
    """Return which tables a study has that may change and would; none of a new study."""
    try:
        known = ledger.study(spec.study.name).spec
    except NotFoundError:
        return []
    return [
        name
        for name in ("budget", "retrain", "notify")
        if getattr(known, name) != getattr(spec, name)
    ]


def in_words(
    ledger: Reader, study: StudyRecord, *, created: bool, changed: Sequence[str] = ()
) -> str:
    """Return a sentence about what was submitted, with the tables that have `changed`."""
    if not created:
        what = f"Changed: {', '.join(f'[{one}]' for one in changed)}" if changed else "No change"
        return f"Study {study.name!r} exists already, {_trials_in_words(study)}. {what}."
    if study.version == 1:
        return f"Study {study.name!r} submitted, {_trials_in_words(study)}."
    return (
        f"The space of study {study.name!r} has changed: version {study.version} submitted, "
        f"{study.limit} trials, and {ledger.imported(study.id)} of earlier versions imported. "
        f"Optuna and MLflow call it {study.title!r}."
    )


def _trials_in_words(study: StudyRecord) -> str:
    reserved = study.deciding_trials
    return f"{study.limit} trials" + (f" and {reserved} that decide" if reserved else "")


def _refuse_unknown_sources(ledger: Reader, spec: StudySpec) -> None:
    """Raise `UsageError` if a new study names a source that does not exist, or itself."""
    names = {one.name for one in ledger.studies()} if spec.search.learn_from else set[str]()
    if spec.study.name in names:
        return
    for name in spec.search.learn_from:
        if "*" not in name and name not in names:
            raise UsageError(
                f"[search] learn_from: expected an earlier study of this database, got {name!r}; "
                "`tuner studies` lists them"
            )


def _refuse_changes(ledger: Reader, spec: StudySpec) -> None:
    """Raise `UsageError` with every difference that is not allowed."""
    try:
        known = ledger.study(spec.study.name)
    except NotFoundError:
        return
    if reading.changed(known.spec.model_copy(update={"space": spec.space}), spec):
        raise UsageError(
            f"study {known.name!r} exists and differs from this file; only its budget may change, "
            "and its space, which creates a new version. Choose another name for the study, or "
            "undo:\n  " + "\n  ".join(reading.changed(known.spec, spec))
        )
