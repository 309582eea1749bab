"""Small valid things, and short words for what many tests do to a ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import select, update

from tuner.curves import Chunk
from tuner.ledger import CheckpointRecord, Claim, Lease, Ledger, Report, StudyRecord
from tuner.ledger.tables import attempts, metadata
from tuner.outcome import COMPLETED, DIVERGED, PRUNED, Outcome
from tuner.spec import ParameterValue, Space, StudySpec, options

WORKLOAD: Mapping[str, Any] = {"code": "c0de", "data": "da7a"}
PARAMS = {"lr": 0.1, "schedule": "constant", "optimizer": "sgd"}


def spec(**overrides: Mapping[str, Any]) -> StudySpec:
    """Make a small valid study; each override is merged into the table of its name."""
    tables: dict[str, dict[str, Any]] = {
        "study": {"name": "small"},
        "workload": {"factory": "studies.digits:digits"},
        "training": {"steps": 100, "evaluate_every": 10},
        "space": {"lr": {"low": 1e-4, "high": 1.0}, "schedule": "constant", "optimizer": "sgd"},
        "search": {"sampler": "random", "pruner": "none"},
        "budget": {"trials": 10},
    }
    for name, table in overrides.items():
        tables[name] = {**tables.get(name, {}), **table}
    return StudySpec.model_validate(tables)


def complete(
    lr: float, schedule: str | dict[str, Any], optimizer: str | dict[str, Any]
) -> dict[str, ParameterValue]:
    """Give a trial's flat parameters; what is not said has its default."""
    space = Space.model_validate({"lr": lr, "schedule": schedule, "optimizer": optimizer})
    names = {"schedule": space.schedule[0].name, "optimizer": space.optimizer[0].name}
    entries = space.entries(**names)
    return {"lr": lr, **names, **{key: options(entry)[0] for key, entry in entries.items()}}


def submit(ledger: Ledger, **overrides: Mapping[str, Any]) -> StudyRecord:
    """Put a small study into the ledger."""
    made = spec(**overrides)
    study, _ = ledger.submit(made, limit=made.budget.trials, workload=WORKLOAD)
    return study


def claim(ledger: Ledger, study: StudyRecord, worker: str = "worker") -> Claim:
    """Take a trial that is known to be there."""
    claimed = ledger.claim(study.id, worker, {})
    assert claimed is not None
    return claimed


def rows(
    first_step: int,
    next_step: int,
    *,
    losses: Sequence[float] | None = None,
    evaluate_every: int = 10,
    time: float = 1000.0,
) -> Chunk:
    """Make the rows of some steps as a trainer measures them, a second a step from `time` on.

    Steps are evaluated regularly, and the one at step 0 belongs to the chunk that begins there.
    """
    steps = np.arange(first_step, next_step)
    at = np.array(
        [
            step
            for step in range(first_step, next_step + 1)
            if step % evaluate_every == 0 and (step > first_step or step == 0)
        ],
        dtype=np.int64,
    )
    loss = 1.0 / (1.0 + steps) if losses is None else np.array(losses, dtype=float)
    return Chunk(
        first_step=first_step,
        columns={"train_loss": loss, "lr": np.full(len(steps), 0.1), "grad_norm": loss},
        times=time + steps,
        eval_steps=at,
        eval_times=time + at,
        metrics={"val_loss": 2.0 / (1.0 + at)},
    )


def draw(ledger: Ledger, claimed: Claim, **params: Any) -> None:
    """Give a trial its parameters."""
    ledger.draw(claimed.lease, {**PARAMS, **params}, attrs={}, study_attrs={}, asked_revision=1)


def completed(value: float) -> Outcome:
    return Outcome(kind=COMPLETED, reason="Ran all steps.", value=value)


def diverged(step: int = 3) -> Outcome:
    return Outcome(kind=DIVERGED, reason="The loss was nan.", stopped_step=step)


def pruned(value: float = 1.0) -> Outcome:
    return Outcome(kind=PRUNED, reason="Others were better.", value=value)


def went_on(step: int, value: float) -> Report:
    return Report(step=step, value=value, pruned=False, reason="Went on.")


def checkpoint(step: int, path: str = "a.pt") -> CheckpointRecord:
    return CheckpointRecord(step=step, path=path, digest="d1935")


def expire(ledger: Ledger, lease: Lease) -> None:
    """Let a lease have expired an hour ago."""
    with ledger.engine.execution_options(writes=True).begin() as tx:
        here = attempts.c.id == lease.attempt_id
        tx.execute(update(attempts).where(here).values(expires_at=attempts.c.expires_at - 3600))


def contents(ledger: Ledger) -> dict[str, list[tuple[Any, ...]]]:
    """Read every row of every table of ours."""
    with ledger.engine.begin() as tx:
        return {
            table.name: [tuple(row) for row in tx.execute(select(table))]
            for table in metadata.sorted_tables
        }
