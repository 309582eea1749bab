"""Which workers executors have started for a study, and the handles by which engines know them.

A launch is committed before its engine is asked, under a key by which the engine's job is named. If
the launcher dies before the engine's answer is committed, the job is found by that name.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, update

from tuner.core.environment import Person
from tuner.ledger.database.upserts import insert_new
from tuner.ledger.decoding import checked, environment_of, readable
from tuner.ledger.reading import Reader
from tuner.ledger.records import StudyIdentity
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import attempts, database_time, launches, studies, trials


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One row of `tuner_launches`."""

    key: str
    study_id: int
    executor: str
    workers: int
    handles: tuple[str, ...]  # empty until the engine has answered
    os_user: str
    host: str
    created_at: float
    ended_at: float | None


def add(
    ledger: Reader, study: StudyIdentity, executor: str, workers: int, person: Person
) -> Launch:
    """Commit that workers are about to be started, under a new key."""
    return _add(ledger, secrets.token_hex(6), study.id, executor, workers, person)


@retry_on_disconnect
def _add(
    ledger: Reader, key: str, study_id: int, executor: str, workers: int, person: Person
) -> Launch:
    values: dict[str, Any] = {
        "key": key,
        "study_id": study_id,
        "executor": executor,
        "workers": workers,
        "handles": [],
        "os_user": person.os_user,
        "host": person.host,
    }
    with ledger.engine.execution_options(writes=True).begin() as tx:
        insert_new(tx, launches, [values | {"created_at": tx.scalar(select(database_time()))}])
        return _of(tx.execute(select(launches).where(launches.c.key == key)).one())


@retry_on_disconnect
def answered(ledger: Reader, key: str, handles: Sequence[str]) -> None:
    """Commit the handles of the workers of a launch."""
    _change(ledger, key, handles=list(handles))


@retry_on_disconnect
def ended(ledger: Reader, key: str) -> None:
    """Commit that all workers of a launch have ended."""
    _change(ledger, key, ended_at=database_time())


@retry_on_disconnect
def of_study(ledger: Reader, name: str, *, running: bool = False) -> list[Launch]:
    """Read the launches for all versions of a study, oldest first; or those not seen to end."""
    query = select(launches).join(studies, launches.c.study_id == studies.c.id)
    query = query.where(studies.c.name == name).order_by(launches.c.created_at, launches.c.key)
    if running:
        query = query.where(launches.c.ended_at.is_(None))
    with ledger.engine.begin() as tx:
        return list(readable(_of, tx.execute(query)))


@retry_on_disconnect
def environments(ledger: Reader, name: str, since: float) -> dict[tuple[str, int], Any]:
    """Read the environments of workers that executors have started, by launch and index in it.

    Each is as of the last attempt of the worker at a trial of the study, of those since a time.
    """
    mine = (
        select(func.max(attempts.c.id))
        .join(trials, trials.c.id == attempts.c.trial_id)
        .join(studies, studies.c.id == trials.c.study_id)
        .where(studies.c.name == name, attempts.c.started_at >= since)
        .group_by(attempts.c.worker)
    )
    query = select(attempts.c.trial_id, attempts.c.environment).where(attempts.c.id.in_(mine))
    found = {}
    with ledger.engine.begin() as tx:
        read = readable(
            lambda row: environment_of(row.trial_id, row.environment),
            tx.execute(query.order_by(attempts.c.id)),
        )
        for one in read:
            if "launch" in one and "index" in one:
                found[one["launch"], one["index"]] = one
    return found


@retry_on_disconnect
def age(ledger: Reader, launch: Launch) -> float:
    """Return the seconds since a launch, by the database's clock."""
    with ledger.engine.begin() as tx:
        return float(tx.execute(select(database_time() - launch.created_at)).scalar_one())


def _change(ledger: Reader, key: str, **values: Any) -> None:
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(launches).where(launches.c.key == key).values(**values))


def _of(row: Any) -> Launch:
    """Return the record of a row. Raise `UnreadableError`."""
    values = dict(checked(f"launch {row.key!r:.40}", launches, row))
    return Launch(**values | {"handles": tuple(values["handles"])})
