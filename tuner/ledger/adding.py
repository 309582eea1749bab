"""Trials that a person adds to a study, beside those that its sampler draws.

An added trial is reserved within the budget, as every trial is, and waits for the next claim, which
takes waiting trials before new ones. Its fixed parameters are an attribute of Optuna's own, so its
attempt draws only what is not fixed, and Optuna's tools show it as enqueued or as a retry.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, TypeAlias

from sqlalchemy import Connection, Row, select, update

from tuner.config import ParameterValue
from tuner.core.errors import UsageError
from tuner.core.outcome import FAILED
from tuner.ledger import events, rows
from tuner.ledger.decoding import are_trial_attrs
from tuner.ledger.events import Act
from tuner.ledger.managing import locked
from tuner.ledger.reading import Reader, read_trials
from tuner.ledger.records import (
    ADDED,
    ENQUEUED,
    EXTENSION,
    FIXED,
    HISTORY,
    OPEN,
    PARENT,
    PAUSED,
    REASON,
    RETRIED,
    RETRY,
    SEED,
    StudyRecord,
    TrialRecord,
    is_count,
    reserved_for_deciding,
    specification,
)
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import studies, trials

Attrs: TypeAlias = Mapping[str, Any]
"""Attributes of one new trial."""


def enqueue(
    ledger: Reader,
    study: StudyRecord,
    params: Mapping[str, ParameterValue],
    *,
    raise_budget: bool = False,
    act: Act | None = None,
) -> int:
    """Add a trial with these parameters; those that are left out are drawn. Return its number.

    Raise `UsageError` if the study is stopped or has ended, or if its budget is spent and is not to
    be raised.
    """
    attrs = {FIXED: dict(params), ADDED: ENQUEUED}
    key, done = uuid.uuid4().hex, (act, events.ENQUEUED)
    (number,) = add(ledger, study, lambda _: [attrs], raise_budget, key, count(), *done)
    return number


def retry(
    ledger: Reader,
    study: StudyRecord,
    numbers: Sequence[int] | None = None,
    *,
    raise_budget: bool = False,
    act: Act | None = None,
) -> dict[int, int]:
    """Add a trial with the parameters of each failed trial that was not retried yet.

    A failed trial keeps its outcome, its run and its curve. `numbers` are the failed trials to
    retry, by default all. Return the numbers of the new trials by those of the failed ones. Raise
    `UsageError` as `enqueue` does.
    """

    def wanted(tx: Connection) -> list[Attrs]:
        failed = (trials.c.study_id == study.id) & ~trials.c.imported & (trials.c.state == FAILED)
        retried = set(_retries(tx, study.id))
        return [
            {
                FIXED: dict(trial.params),
                ADDED: RETRY,
                RETRIED: trial.number,
                HISTORY: [*trial.attrs.get(HISTORY, ()), trial.number],
            }
            for trial in read_trials(tx, failed, with_reports=False)
            if trial.params is not None
            and trial.number not in retried
            and (numbers is None or trial.number in numbers)
        ]

    key, done = uuid.uuid4().hex, (act, events.RETRIED)
    new = add(ledger, study, wanted, raise_budget, key, count(), *done)
    return {old: number for old, number in retries(ledger, study).items() if number in new}


def extend(
    ledger: Reader,
    study: StudyRecord,
    parent: StudyRecord,
    parents: Sequence[tuple[TrialRecord, int]],
    act: Act | None = None,
    params: Mapping[str, ParameterValue] | None = None,
) -> dict[int, int]:
    """Add to a study with a longer horizon a trial for each of these trials of its parent.

    `parents` are trials with their seeds, which the new ones share, and their parameters too unless
    `params` are others. The budget is raised by as many
    as were not added before. Return the new trials' numbers by those of all extended ones.
    """

    def wanted(tx: Connection) -> list[Attrs]:
        known = _extensions(tx, study.id)
        return [
            {
                FIXED: dict(params or trial.params or {}),
                ADDED: EXTENSION,
                PARENT: {"study": parent.title, "trial": trial.number},
                SEED: seed,
            }
            for trial, seed in parents
            if trial.number not in known
        ]

    details = {"of": parent.name, "trials": [trial.number for trial, _ in parents]}
    key, done = uuid.uuid4().hex, (act, events.EXTENDED, details)
    add(ledger, study, wanted, True, key, count(), *done)
    with ledger.engine.begin() as tx:
        return _extensions(tx, study.id)


@retry_on_disconnect
def retries(ledger: Reader, study: StudyRecord) -> dict[int, int]:
    """Read the numbers of all retries, by those of the failed trials."""
    with ledger.engine.begin() as tx:
        return _retries(tx, study.id)


def added(tx: Connection, study_id: int) -> int:
    """Count the added trials of a study; they are not combinations of its grid."""
    return sum(ADDED in attrs for _, attrs in attributes(tx, study_id))


@retry_on_disconnect
def add(
    ledger: Reader,
    study: StudyRecord,
    wanted: Callable[[Connection], Sequence[Attrs]],
    raise_budget: bool,
    idempotency_key: str,
    calls: Iterator[int],
    act: Act | None = None,
    action: str = events.ENQUEUED,
    details: Mapping[str, Any] | None = None,
) -> list[int]:
    """Add trials with the `wanted` attributes; a retried call finds those that it added before.

    With `act` record the event `action`, with the new trials' numbers unless others are given.
    """
    key = f"{ADDED}:key"
    repeated = next(calls) > 0
    with locked(ledger, study) as (tx, row):
        if repeated and (before := _with_key(tx, study.id, key, idempotency_key)):
            return before
        _refuse_closed(row)
        new = [{**attrs, key: idempotency_key} for attrs in wanted(tx)]
        if not new:
            return []
        _make_room(tx, row, len(new), raise_budget=raise_budget)
        numbers = [trial.number for trial in rows.reserve(tx, row, len(new), new)]
        raised = {"raised_budget": True} if row.reserved + len(new) > row.limit else {}
        events.record(
            tx, study.name, action, act, **{"trials": numbers, **raised, **(details or {})}
        )
        return numbers


def _with_key(tx: Connection, study_id: int, key: str, value: str) -> list[int]:
    return [number for number, attrs in attributes(tx, study_id) if attrs.get(key) == value]


def _extensions(tx: Connection, study_id: int) -> dict[int, int]:
    found = [(attrs.get(PARENT), number) for number, attrs in attributes(tx, study_id)]
    return {int(parent["trial"]): number for parent, number in found if parent is not None}


def _retries(tx: Connection, study_id: int) -> dict[int, int]:
    found = [(attrs.get(RETRIED), number) for number, attrs in attributes(tx, study_id)]
    return {old: number for old, number in found if old is not None}


def attributes(tx: Connection, study_id: int) -> list[tuple[int, Attrs]]:
    """Read the numbers and attributes of the trials whose attributes can be read."""
    query = select(trials.c.number, trials.c.attrs).where(trials.c.study_id == study_id)
    return [
        (row.number, row.attrs)
        for row in tx.execute(query.order_by(trials.c.number))
        if is_count(row.number) and are_trial_attrs(row.attrs)
    ]


def _refuse_closed(study: Row[Any]) -> None:
    if study.state in (OPEN, PAUSED):
        return
    raise UsageError(
        f"study {study.name!r} is {study.state}, so no trial can be added: "
        f"{study.attrs.get(REASON, 'a newer version of it took its place.')} "
        + (
            "A larger budget continues it"
            if study.state == "ended"
            else "`tuner resume` reopens a stopped study"
        )
    )


def _make_room(tx: Connection, study: Row[Any], wanted: int, *, raise_budget: bool) -> None:
    """Raise the budget of trials if it is too small for so many more. Raise `UsageError`."""
    needed = study.reserved + wanted
    if needed <= study.limit:
        return
    spec = specification(study.spec)
    whole = needed + reserved_for_deciding(spec, study.limit)
    if not raise_budget:
        left = max(study.limit - study.reserved, 0)
        raise UsageError(
            f"study {study.name!r} has {left or 'no'} trial{'s' * (left != 1)} left in its budget "
            f"of {study.limit}, expected {wanted}; add --raise-budget to allow {needed} trials, or "
            f"set budget.trials={whole} in its file"
        )
    budget = spec.budget.model_copy(update={"trials": max(whole, spec.budget.trials)})
    text = spec.model_copy(update={"budget": budget}).model_dump_json()
    changed = update(studies).where(studies.c.id == study.id).values(limit=needed, spec=text)
    tx.execute(changed)
