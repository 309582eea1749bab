"""Contradictions between tables of a study file that are valid by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tuner.config.mistakes import Mistake, Place, shown
from tuner.config.retrain import NOT_STORED, RetrainTable
from tuner.config.search import (
    CMAES,
    GP,
    QMC,
    TPE,
    AnyPruner,
    Auto,
    Comparing,
    Grid,
    Halving,
    Listed,
    OptunaGP,
    Patient,
    Random,
)
from tuner.config.space import Space
from tuner.config.study import ProbeTable, SearchTable, StudyTable, TrainingTable, WorkloadTable
from tuner.config.values import Entry, Range, Table


def contradictions(tables: Mapping[str, Table]) -> Iterator[Mistake]:
    """Yield the contradictions between valid tables."""
    space, search, training = (tables.get(name) for name in ("space", "search", "training"))
    if isinstance(training, TrainingTable):
        yield from _incompatible(training, tables.get("workload"))
    yield from _gate_without_direction(tables.get("study"), tables.get("retrain"))
    yield from _not_probed(tables)
    yield from _stored_addresses(tables.get("retrain"))
    if not isinstance(search, SearchTable):
        return
    if isinstance(search.sampler, Grid) and isinstance(space, Space):
        for place, entry in _entries(space):
            if isinstance(entry, Range):
                got = shown(entry.model_dump(exclude={"log"}))
                yield Mistake(place, 'a value or a list, as the sampler is "grid"', got)
    listed = search.sampler.params if isinstance(search.sampler, Listed) else ()
    for place, combinations in ((("sampler", "params"), listed), (("first",), search.first)):
        for index, params in enumerate(combinations):
            if isinstance(space, Space):
                for key, expected in space.missing(params).items():
                    got = shown(params.get(key))
                    yield Mistake(("search", *place, key, index), expected, got)
    if isinstance(search.sampler, CMAES) and isinstance(space, Space) and not space.shared_ranges():
        expected = 'a range, as the sampler is "cmaes", which searches ranges alone'
        yield Mistake(("space", "lr"), expected, shown(space.lr))
    if isinstance(training, TrainingTable):
        yield from _rungs_too_late(("search", "pruner"), search.pruner, training)


def _stored_addresses(retrain: Table | None) -> Iterator[Mistake]:
    """Find addresses of notifications; the messages do not show them."""
    if isinstance(retrain, RetrainTable):
        for key in retrain.notify.literals:
            yield Mistake(("retrain", "notify", key), NOT_STORED, "something else")


def _not_probed(tables: Mapping[str, Table]) -> Iterator[Mistake]:
    """Yield settings that cannot be combined with a probe."""
    probe, workload, space, search = map(tables.get, ("probe", "workload", "space", "search"))
    if not isinstance(probe, ProbeTable) or not probe.enabled:
        return
    place = ("probe", "enabled")
    if isinstance(workload, WorkloadTable) and workload.train is not None:
        expected = "false, since a train function cannot train many rates at a time"
        yield Mistake(place, expected, "true")
    if isinstance(space, Space) and not isinstance(space.lr, Range):
        yield Mistake(("space", "lr"), "a range, as [probe] is enabled", shown(space.lr))
    known = (Auto, TPE, Random, GP, OptunaGP, QMC)
    if isinstance(search, SearchTable) and not isinstance(search.sampler, known):
        expected = "one of auto, tpe, random, gp, optuna_gp, qmc, as [probe] is enabled"
        yield Mistake(("search", "sampler"), expected, shown(search.sampler.name))


def _gate_without_direction(study: Table | None, retrain: Table | None) -> Iterator[Mistake]:
    """Yield a missing direction of a gate whose metric is not the study's."""
    if isinstance(study, StudyTable) and isinstance(retrain, RetrainTable):
        gate = retrain.gate
        if gate.metric not in (None, study.metric) and gate.direction is None:
            expected = f'"minimize" or "maximize", as {gate.metric} is not the study\'s metric'
            yield Mistake(("retrain", "gate", "direction"), expected, "nothing")


def _incompatible(training: TrainingTable, workload: Table | None) -> Iterator[Mistake]:
    """Yield settings of [training] that exclude each other or have no effect."""
    if isinstance(workload, WorkloadTable) and workload.train is not None:
        for key in (
            "batch_size",
            "dtype",
            "clip_norm",
            "accumulate",
            "precision",
            "trainer",
            "slots",
        ):
            if key in training.model_fields_set:
                hint = "; pass it in [workload.arguments]"
                expected = "nothing, since a train function has its own training loop"
                yield Mistake(("training", key), expected, shown(getattr(training, key)), hint)
        return
    if training.precision and training.dtype != "float32":
        expected = 'nothing, or dtype = "float32", the type of the parameters in mixed precision'
        yield Mistake(("training", "precision"), expected, shown(training.precision))
    size = training.batch_size
    if isinstance(size, int) and training.accumulate > size:
        expected = f"at most the {size} rows of [training] batch_size"
        yield Mistake(("training", "accumulate"), expected, shown(training.accumulate))


def _entries(space: Space) -> Iterator[tuple[Place, Entry]]:
    yield ("space", "lr"), space.lr
    for group, choices in (("schedule", space.schedule), ("optimizer", space.optimizer)):
        for choice in choices:
            for key, entry in choice.entries():
                yield ("space", group, *key.split(".")), entry


def _rungs_too_late(place: Place, pruner: AnyPruner, training: TrainingTable) -> Iterator[Mistake]:
    """Yield settings that leave no rung, so that the pruner would never prune."""
    below = f"a number below the {training.steps} of [training] steps, so that there is a rung"
    settings: list[tuple[Place, int | None]] = []
    if isinstance(pruner, Halving):
        settings.append(((*place, "min_steps"), pruner.min_steps))
    elif isinstance(pruner, Comparing):
        settings.append(((*place, "warmup_steps"), pruner.warmup_steps))
    if isinstance(pruner, Comparing | Patient):
        settings.append((("training", "evaluate_every"), training.evaluate_every))
    late = [(at, steps) for at, steps in settings if steps is not None and steps >= training.steps]
    for at, steps in late:
        yield Mistake(at, below, str(steps))
    if isinstance(pruner, Patient):
        if not late:
            yield from _impatient(place, pruner, training)
        yield from _rungs_too_late((*place, "wraps"), pruner.wraps, training)


def _impatient(place: Place, pruner: Patient, training: TrainingTable) -> Iterator[Mistake]:
    """Yield a patience that no trial can exhaust."""
    reports = len(pruner.rungs(training.steps, training.evaluation_interval))
    if reports < 2:
        expected = 'enough steps for two reports before the end, as the pruner is "patient"'
        yield Mistake(("training", "steps"), expected, str(training.steps))
    elif pruner.patience > reports - 2:
        expected = f"a number of at most {reports - 2}, as a trial reports {reports} times"
        yield Mistake((*place, "patience"), expected, str(pruner.patience))
