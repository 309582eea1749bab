"""Checks before anything is trained: data, model, gate and notifications."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuner.analysis import deciding
from tuner.config import StudySpec
from tuner.core import run_keys
from tuner.core.errors import NotFoundError, UsageError
from tuner.ledger import Ledger, Retraining, Retrainings, StudyRecord, TrialRecord
from tuner.ledger.database import Addresses, tracking_client
from tuner.ledger.retrainings import LOG
from tuner.observability import notify
from tuner.retraining import versions
from tuner.retraining.versions import StoredVersion, VersionRecord
from tuner.tracking.mlflow.registry import Registry, Rows, Version
from tuner.training import models, trainer_choice
from tuner.training.device import use_threads
from tuner.training.workloads import Workload

KEY_LIMIT = 200
SOME = 5
"""How many names a message lists."""

Tune = Callable[[StudySpec], tuple[StudyRecord, TrialRecord | None]]
"""Trains a study to its end, or resumes it; returns it and its best trial."""


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The champion, which challengers are compared with."""

    version: Version
    module: Any  # a torch module; None: the ledger has no digest of its weights


@dataclass(frozen=True, kw_only=True)
class Job:
    """A retraining whose inputs are checked: all that its stages need."""

    ledger: Ledger
    places: Addresses
    study: StudyRecord
    run_key: str
    prefixes: tuple[str, ...]
    spec: StudySpec  # the study's, with the fresh data
    workload: Workload  # the fresh one
    registry: Registry
    best: TrialRecord  # the one that the study decided to use, else its best one
    metric: str  # of the gate
    tune: Tune
    force: bool  # promote even if the key is older than the champion's

    @property
    def data_time(self) -> float | None:
        """The time that the run key names, in seconds since 1970; None if it names none."""
        return run_keys.time_of(self.run_key, self.spec.retrain.key_format)

    def seed(self, index: int) -> int:
        """Return the seed of a challenger, which differs from every trial's."""
        key = int(hashlib.sha256(self.run_key.encode()).hexdigest()[:8], 16)
        sequence = np.random.SeedSequence([self.spec.study.seed, key, index, 2])
        return int(sequence.generate_state(1, np.uint32)[0])

    def champions_origin(self) -> Retraining | None:
        """Return the retraining that made the champion; None if it is not in this ledger."""
        champion = self.registry.champion()
        if champion is None:
            return None
        known = Retrainings(self.ledger).promoted(self.registry.model)
        mine = (one for one in known if one.result[LOG]["version"] == champion.number)
        return next(mine, None)

    def champion(self) -> Champion | None:
        """Load the champion; None if there is none. Raises `UsageError` when it does not fit.

        It is built by the fresh workload, so the data that it was trained on may be gone.
        """
        found = self.registry.champion()
        if found is None:
            return None
        known = versions.find(self.ledger, found)
        if known is None:
            return Champion(version=found, module=None)
        return Champion(version=found, module=self.build(found, known))

    def build(self, version: Version, known: VersionRecord) -> Any:
        """Build the module of a version by the fresh workload, as `champion` does."""
        stored = versions.read_known(self.registry, version, known)
        _refuse_misfit(stored, self.workload, self.spec)
        own = self.workload.of(stored.build.arguments)  # of the arguments that it was trained with
        return versions.build_with(stored, own, self.spec.workload.function).module


def model_name(study: StudyRecord) -> str:
    """Return the name of a study's model in the registry. Raise `UsageError` if invalid.

    By default it is that of the study, with dots for slashes, which MLflow refuses in such names.
    """
    name = study.spec.retrain.model or study.name.replace("/", ".")
    if any(one in name for one in "/:%\"'"):
        raise UsageError(
            f"[retrain] model: expected a name without / : % or quotes, got {name!r}, the study's; "
            "give the model one of its own"
        )
    return name


def registry_of(places: Addresses, study: StudyRecord) -> Registry:
    """Open the registry of a study's model."""
    return Registry(tracking_client(places), model_name(study))


def prepare(
    ledger: Ledger,
    places: Addresses,
    study: StudyRecord,
    run_key: str,
    prefixes: Sequence[str],
    tune: Tune,
    *,
    force: bool = False,
) -> Job:
    """Build the fresh data, and check all that can be wrong. Raises `UsageError`."""
    table = study.spec.retrain
    if not run_key or len(run_key) > KEY_LIMIT or not run_key.isprintable():
        raise UsageError(
            f"run key: expected 1 to {KEY_LIMIT} printable characters, such as a date, got "
            f"{run_key[:KEY_LIMIT]!r}"
        )
    if table.key_format is not None and run_keys.time_of(run_key, table.key_format) is None:
        example = run_keys.key_of(study.created_at, "UTC", table.key_format)
        raise UsageError(
            f"run key: expected [retrain] key_format {table.key_format!r}, such as {example}, and "
            f"nothing else before a space, got {run_key!r}"
        )
    spec = with_fresh_data(study, run_key)
    use_threads(study.threads)
    workload = trainer_choice.load(spec, prefixes)
    if not isinstance(workload, Workload):
        raise UsageError(
            f"study {study.name!r} has a train function, whose model is not known here; expected "
            "[workload] factory, or [retrain] factory"
        )
    if study.spec.study.objectives:
        raise UsageError(
            f"study {study.name!r} has several objectives, so no trial is the one to train again; "
            "put the parameters of a trial of its front into a study of one objective"
        )
    best = deciding.chosen(ledger, study)
    if best is None:
        raise UsageError(
            f"study {study.name!r} has no completed trial, so there are no parameters to train "
            f"again; `tuner run` it first"
        )
    if best.infeasible:
        raise UsageError(
            f"no trial of study {study.name!r} satisfies its constraints, so there are no "
            "parameters to train again; raise its budget, or relax [study] constraints"
        )
    job = Job(
        ledger=ledger,
        places=places,
        study=study,
        run_key=run_key,
        prefixes=tuple(prefixes),
        spec=spec,
        workload=workload,
        registry=registry_of(places, study),
        best=best,
        metric=table.gate.metric or study.spec.study.metric,
        tune=tune,
        force=force,
    )
    _refuse_few_rows(job)
    _refuse_gate(job)
    notify.check(table.notify)
    _refuse_lost_model(job)
    return job


def with_fresh_data(study: StudyRecord, run_key: str) -> StudySpec:
    """Return the specification of a study with the data of a run key."""
    table = study.spec.retrain
    tables = study.spec.model_dump(mode="json")
    tables["training"] |= {"threads": study.threads}
    factory = table.factory or study.spec.workload.function
    arguments: Mapping[str, Any] = study.spec.workload.arguments
    if table.key_argument is not None:
        arguments = {**arguments, table.key_argument: run_key}
    tables["workload"] = {"factory": factory, "arguments": dict(arguments)}
    if study.spec.workload.train is not None and table.factory is None:
        tables["workload"] = {"train": factory, "arguments": dict(arguments)}
    if study.spec.workload.command is not None and table.factory is None:
        tables["workload"] = study.spec.workload.model_dump(mode="json")
    return StudySpec.model_validate_json(json.dumps(tables))


def _refuse_few_rows(job: Job) -> None:
    """Raise `UsageError` if there are fewer rows than the study asks for."""
    table, workload = job.spec.retrain, job.workload
    held = "held-out rows" if workload.holdout is not None else "validation rows"
    left_out = ", ".join(workload.left_out)
    for title, minimum, what, rows in (
        ("data", table.data.minimum_rows, "training rows", workload.rows),
        ("gate", table.gate.minimum_rows, held, len(workload.held_out[0])),
    ):
        if minimum > 1 and (rows is None or rows < minimum):
            raise UsageError(
                f"[retrain.{title}] minimum_rows: expected at least {minimum} {what} of "
                f"{job.spec.workload.function}, got {'an unknown number' if rows is None else rows}"
                + (f", without the bad batches {left_out}" if left_out else "")
            )


def _refuse_gate(job: Job) -> None:
    gate, workload = job.spec.retrain.gate, job.workload
    if job.metric not in workload.metric_names:
        raise UsageError(
            f"[retrain.gate] metric: expected one that {job.spec.workload.function} measures "
            f"({', '.join(workload.metric_names)}), got {job.metric!r}"
        )
    if job.spec.study.metric not in workload.metric_names:
        raise UsageError(
            f"[retrain] factory: expected data with the study's metric {job.spec.study.metric!r}, "
            f"got one of {', '.join(workload.metric_names)}"
        )
    for title, names, known in (
        ("slices", gate.slices or (), workload.slices),
        ("margins", gate.margins, workload.slices if gate.slices is None else gate.slices),
    ):
        if missing := [name for name in names if name not in known]:
            raise UsageError(
                f"[retrain.gate] {title}: expected slices of the workload "
                f"({', '.join(known) or 'none'}), got {', '.join(missing)}"
            )
    if job.spec.retrain.do != "refit" and workload.holdout is None:
        raise UsageError(
            f"[retrain] do: {job.spec.retrain.do!r} chooses by the validation rows, so champion "
            f"and challenger need others to be compared by; expected a holdout of "
            f'{job.spec.workload.function}, or do = "refit"'
        )
    fresh = models.fresh_model(workload, job.spec)
    models.refuse_unstorable(fresh)
    models.row_values(fresh, workload, job.spec, job.metric)  # refuses what is no mean over rows


def _refuse_lost_model(job: Job) -> None:
    """Raise `NotFoundError` if a champion was promoted by this ledger and is gone."""
    if job.champion() is not None:
        return
    for earlier in Retrainings(job.ledger).promoted(job.registry.model):
        number = earlier.result[LOG]["version"]
        raise NotFoundError(
            f"model {job.registry.model!r} has no champion in the registry, though the retraining "
            f"{earlier.run_key!r} made version {number} of it the champion; restore it, let "
            f"`tuner rollback {job.study.name} --to VERSION` name another, or give [retrain] model "
            "another name to start over"
        )


def _refuse_misfit(champion: StoredVersion, workload: Workload, spec: StudySpec) -> None:
    example = models.example_of(workload, spec)
    outputs = models.predict(models.fresh_model(workload, spec), example)
    for what, known, here in (
        ("inputs", champion.inputs, example),
        ("outputs", champion.outputs, outputs),
    ):
        got = Rows(dtype=str(here.dtype), shape=here.shape[1:])
        if got != known:
            raise UsageError(
                f"the data does not fit the signature of {champion.version.model!r}, version "
                f"{champion.version.number}: {what}: expected {known}, got {got} from "
                f"{spec.workload.function}; fix the data, or give [retrain] model another name"
            )
    known_names = [one.name for one in champion.features]
    names = [one.name for one in models.features_of(workload, spec)]
    if known_names and names != known_names:
        raise UsageError(
            f"the data does not fit the signature of {champion.version.model!r}, version "
            f"{champion.version.number}: features: {_difference(known_names, names)} in "
            f"{spec.workload.function}; fix the data, or give [retrain] model another name"
        )


def _difference(known: Sequence[str], names: Sequence[str]) -> str:
    """Return how names of columns differ from those that are known."""
    missing = [one for one in known if one not in names]
    unknown = [one for one in names if one not in known]
    if not missing and not unknown:
        index = next(at for at, one in enumerate(names) if one != known[at])
        return f"expected {known[index]!r} as column {index + 1}, got {names[index]!r}"
    parts = [
        f"{title} {', '.join(map(repr, some[:SOME]))}{' and others' if len(some) > SOME else ''}"
        for title, some in (("missing", missing), ("unknown", unknown))
        if some
    ]
    return " and ".join(parts)
