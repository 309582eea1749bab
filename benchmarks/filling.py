"""Filling a database with one study of many ended trials: in our tables, and in Optuna's.

Both get the same trials: 60 percent pruned, 35 completed and 5 diverged, drawn at random, each with
twenty reports. It is a benchmark's preparation, so rows are inserted in bulk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import optuna
from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Table, insert, update

from tuner.config import StudySpec
from tuner.core.outcome import COMPLETED, DIVERGED, PRUNED, RUNNING
from tuner.ledger import Ledger, StudyRecord
from tuner.ledger.tables import reports, studies, trials
from tuner.search.space import suggest

REPORTS = 20
PORTION = 5000
CREATED = 1.7e9
"""When all trials began, in seconds since 1970."""


def spec_of(name: str, *, pruner: str = "asha") -> StudySpec:
    """Return a typical study: a rate, three schedules, two optimizers, the defaults."""
    halving = {"name": pruner, "min_steps": 10}
    tables = {
        "study": {"name": name},
        "workload": {"factory": "studies.digits:mlp"},
        "training": {"steps": 10 * REPORTS + 10, "evaluate_every": 10},
        "space": {
            "lr": {"low": 1e-5, "high": 10.0},
            "schedule": [
                "constant",
                {"name": "cosine", "final": {"low": 0.0, "high": 0.1}},
                {"name": "step", "gamma": [0.1, 0.3, 0.5], "drops": {"low": 1, "high": 5}},
            ],
            "optimizer": [
                {"name": "sgd", "momentum": {"low": 0.1, "high": 0.9}},
                {"name": "adamw", "weight_decay": {"low": 5e-3, "high": 1.0}},
            ],
        },
        "search": {"pruner": halving if pruner in ("asha", "hyperband") else pruner},
        "budget": {"trials": 1_000_000},
    }
    return StudySpec.model_validate(tables)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial that has ended."""

    params: Mapping[str, Any]  # complete
    asked: FrozenTrial  # the searched ones, with their distributions
    kind: str
    value: float | None
    attrs: Mapping[str, Any]  # what Optuna's sampler and pruner keep
    reports: Mapping[int, float]


def ended(spec: StudySpec, count: int, seed: int = 0) -> Iterator[Ended]:
    """Return random trials; a rate near 0.03 is best."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plain = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    generator = np.random.default_rng(seed)
    kinds = generator.choice([PRUNED, COMPLETED, DIVERGED], size=count, p=[0.6, 0.35, 0.05])
    for kind in kinds.tolist():
        trial = plain.ask()
        params = suggest(trial, spec.space)
        loss = 1 + (math.log10(float(params["lr"])) + 1.5) ** 2 + 0.1 * generator.normal()
        reported = {step: loss * (1 + 10 / step) for step in range(10, 10 * REPORTS + 10, 10)}
        shared = {name: params[name] for name in ("lr", "optimizer", "schedule")}
        attrs = {"tpe:relative_params:0": json.dumps(shared)}
        for rung, step in enumerate(spec.rungs()):
            attrs[f"completed_rung_{rung}"] = reported[step]
        value = {PRUNED: reported[max(reported)], COMPLETED: loss, DIVERGED: None}[kind]
        asked = plain.tell(trial, state=TrialState.FAIL)
        yield Ended(
            params=params, asked=asked, kind=kind, value=value, attrs=attrs, reports=reported
        )  # fmt: skip


def fill(ledger: Ledger, study: StudyRecord, found: list[Ended]) -> None:
    """Insert ended trials into our tables, followed by one without parameters yet."""
    made, reported = [], []
    with ledger.engine.execution_options(writes=True).begin() as tx:
        for number, one in enumerate([*found, None]):
            row = {
                "id": study.id * 1_000_000 + number,
                "study_id": study.id,
                "number": number,
                "imported": False,
                "params": None if one is None else dict(one.params),
                "attrs": {} if one is None else dict(one.attrs),
                "asked_revision": None if one is None else number + 1,
                "state": RUNNING if one is None else one.kind,
                "reason": None if one is None else "As the benchmark has it.",
                "value": None if one is None or one.kind == PRUNED else one.value,
                "stopped_step": None,
                "steps": 0,
                "last_time": CREATED,
                "created_at": CREATED,
                "ended_at": None if one is None else CREATED + 60.0,
                "revision": number + 2,
            }
            made.append(row)
            reported += [
                {
                    "trial_id": row["id"],
                    "step": step,
                    "value": value,
                    "pruned": False,
                    "reason": f"Went on: val_loss was {value:.4g} at step {step}, where {number} "
                    f"of the {number} other trials there were lower.",
                }
                for step, value in (() if one is None else one.reports.items())
            ]
        _insert(tx, trials, made)
        _insert(tx, reports, reported)
        tx.execute(
            update(studies)
            .where(studies.c.id == study.id)
            .values(reserved=len(made), next_number=len(made), revision=len(made) + 1)
        )


def fill_optuna(storage: optuna.storages.RDBStorage, name: str, found: list[Ended]) -> None:
    """Insert the same trials into Optuna's tables, as a study of this name."""
    study = optuna.create_study(storage=storage, study_name=name)
    rows: dict[Any, list[dict[str, Any]]] = {}

    def add(model: Any, **values: Any) -> None:
        rows.setdefault(model, []).append(values)

    began = datetime.fromtimestamp(CREATED, UTC).replace(tzinfo=None)
    finite = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
    for number, one in enumerate(found):
        trial = study._study_id * 1_000_000 + number
        state = TrialState.COMPLETE if one.kind == COMPLETED else TrialState.PRUNED
        add(
            models.TrialModel,
            trial_id=trial,
            number=number,
            study_id=study._study_id,
            state=state,
            datetime_start=began,
            datetime_complete=began,
        )
        for key, value in one.asked.params.items():
            distribution = one.asked.distributions[key]
            add(
                models.TrialParamModel,
                trial_id=trial,
                param_name=key,
                param_value=distribution.to_internal_repr(value),
                distribution_json=distribution_to_json(distribution),
            )
        for key, value in one.attrs.items():
            add(
                models.TrialSystemAttributeModel,
                trial_id=trial,
                key=key,
                value_json=json.dumps(value),
            )
        if one.value is not None:
            add(
                models.TrialValueModel,
                trial_id=trial,
                objective=0,
                value=one.value,
                value_type=models.TrialValueModel.TrialValueType.FINITE,
            )
        for step, value in one.reports.items():
            add(
                models.TrialIntermediateValueModel,
                trial_id=trial,
                step=step,
                intermediate_value=value,
                intermediate_value_type=finite,
            )
    with storage.engine.begin() as tx:
        for model, made in rows.items():
            _insert(tx, model.__table__, made)


def _insert(tx: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    for first in range(0, len(rows), PORTION):
        tx.execute(insert(table), rows[first : first + PORTION])
