"""Small valid things, and short words for what many tests do to a ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from sqlalchemy import and_, select, update

from tuner.config import ParameterValue, Space, StudySpec
from tuner.core import curves
from tuner.core.curves import Chunk
from tuner.core.outcome import COMPLETED, DIVERGED, PRUNED, Outcome
from tuner.ledger import CheckpointRecord, Claim, Lease, Ledger, Report, StudyRecord
from tuner.ledger.retrainings import LOG
from tuner.ledger.tables import metadata
from tuner.search import Search
from tuner.search.mirror import Mirror
from tuner.search.search import Draw

WORKLOAD: Mapping[str, Any] = {"code": "c0de", "data": "da7a", "training_rows": 100}
WIDE = {
    "lr": {"low": 1e-4, "high": 1.0},
    "schedule": [
        "constant",
        {"name": "cosine", "final": {"low": 0.0, "high": 0.1}},
        {"name": "step", "gamma": [0.1, 0.5], "drops": {"low": 1, "high": 5}},
    ],
    "optimizer": [
        {"name": "sgd", "momentum": {"low": 0.1, "high": 0.9}, "nesterov": [False, True]},
        {"name": "adamw", "beta1": [0.8, 0.9]},
    ],
}
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
        merged = {**tables.get(name, {}), **table}
        tables[name] = {key: value for key, value in merged.items() if value is not None}
    return StudySpec.model_validate(tables)


def complete(
    lr: float, schedule: str | dict[str, Any], optimizer: str | dict[str, Any]
) -> dict[str, ParameterValue]:
    """Give a trial's flat parameters; what is not said has its default."""
    space = Space.model_validate({"lr": lr, "schedule": schedule, "optimizer": optimizer})
    return space.example()


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


def checkpoint(step: int, trial: int = 0, attempt: int = 1) -> CheckpointRecord:
    return CheckpointRecord(study_id=1, trial=trial, step=step, attempt=attempt, digest="d1935")


def expire(ledger: Ledger, lease: Lease) -> None:
    """Let a lease of any kind have expired an hour ago."""
    table = lease.table
    here = and_(table.id == lease.row_id, table.token == lease.token)
    with ledger.engine.execution_options(writes=True).begin() as tx:
        earlier = {"expires_at": table.expires_at - 3600}
        tx.execute(update(table.id.table).where(here, table.scope).values(earlier))


def contents(ledger: Ledger) -> dict[str, list[tuple[Any, ...]]]:
    """Read every row of every table of ours."""
    with ledger.engine.begin() as tx:
        return {
            table.name: [tuple(row) for row in tx.execute(select(table))]
            for table in metadata.sorted_tables
        }


def drawn(ledger: Ledger, study: StudyRecord, search: Search) -> tuple[Claim, Draw]:
    """Claim a trial and give it what the search draws."""
    held = claim(ledger, study)
    made = search.draw(held.trial.number)
    ledger.draw(
        held.lease,
        made.params,
        attrs=made.attrs,
        study_attrs=made.study_attrs,
        asked_revision=made.revision,
    )
    return held, made


def decided(ledger: Ledger, search: Search, held: Claim, step: int, value: float) -> bool:
    """Report at a rung as a worker does; tell whether the trial was pruned there."""
    decision = search.decide(held.trial.number, step, value)
    report = Report(step=step, value=value, pruned=decision.prune, reason=decision.reason)
    if decision.prune:
        outcome = Outcome(kind=PRUNED, reason=decision.reason, value=value)
        ledger.finish(held.lease, outcome, report=report, attrs=decision.attrs)
    else:
        ledger.report(held.lease, curves.empty(), report, attrs=decision.attrs)
    return decision.prune


def history(ledger: Ledger, study: StudyRecord, outcomes: Sequence[Outcome]) -> None:
    """Run trials to their ends, as drawn by one search."""
    search = Search(study, ledger, ("tests.",))
    for outcome in outcomes:
        held, _ = drawn(ledger, study, search)
        ledger.finish(held.lease, outcome)


def mirror_of(ledger: Ledger, study: StudyRecord) -> Mirror:
    """Read all trials of a study into a mirror."""
    mirror = Mirror(study.spec)
    mirror.refresh(ledger.searched(study.id, 0))
    return mirror


def cases(table: str) -> list[tuple[str, str]]:
    """Read pairs of an override and its line, which is indented and may be broken."""
    blocks = [block.splitlines() for block in table.strip().split("\n\n")]
    return [
        (first, " ".join(line.strip() for line in rest))
        for first, *rest in blocks
        if not first.startswith("# ")
    ]


def end_retraining(retrainings, held, reason="It broke."):
    """End a retraining whose workload raised, as `tuner retrain` does, with all results."""
    params = {"lr": 0.1, "schedule": "constant", "optimizer": "sgd"}
    origin = {"study": held.study, "version": 1, "trial": 0, "best": 0}
    origin |= {"params": params, "lr_range": [0.1, 0.1]}
    found = {"origin": origin, "value": None, "failed": reason, "retuned": None}
    held = retrainings.advance(held, LOG, found)
    held = retrainings.advance(held, LOG, {"run_id": None, "version": None, "champion": 1})
    return retrainings.end(held, "failed", reason)


@contextmanager
def unchecked(execute: Callable[[str], Any]) -> Iterator[None]:
    """Let a transaction on SQLite write any row, as whoever can write the file can.

    The checks are triggers: they are dropped, and are there again when others look.
    """
    ours = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'tuner_check%'"
    triggers = execute(ours).fetchall()
    for name, _ in triggers:
        execute(f"DROP TRIGGER {name}")
    yield
    for _, statement in triggers:
        execute(statement)
