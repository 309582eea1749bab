"""Projects: limits on what their studies take together, their weights, and who may change these.

A project is what is before the first slash of its studies' names; it has a row only if somebody has
set something. On PostgreSQL only the owner of the tables may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, func, or_, select

from tuner.core.errors import UnreadableError
from tuner.ledger import events, locks
from tuner.ledger.database.upserts import insert
from tuner.ledger.decoding import checked, is_number, readable
from tuner.ledger.events import Act
from tuner.ledger.reading import Reader
from tuner.ledger.records import is_count
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import (
    IS_LIVE,
    attempts,
    database_time,
    project_of,
    projects,
    studies,
    trials,
)

WEEK = 7 * 86_400.0


@dataclass(frozen=True, kw_only=True)
class Quota:
    """What the studies of a project may take together; None: any number."""

    workers: int | None = None  # that train them at a time
    steps_week: float | None = None  # of the trials that trained in the last seven days

    @classmethod
    def of(cls, workers: object, steps_week: object) -> Quota:
        """Return the quota of a row; what is no number limits nothing."""
        return cls(
            workers=workers if is_count(workers) else None,  # type: ignore[arg-type]
            steps_week=steps_week if is_number(steps_week) else None,  # type: ignore[arg-type]
        )

    def refusal(self, tx: Connection, project: str, worker: str) -> str | None:
        """Return why a worker gets no trial of a project now; None if it may have one.

        The caller's transaction is the only one that claims trials within a quota.
        """
        if self.workers is None and self.steps_week is None:
            return None
        locks.take(tx, locks.QUOTA)
        return self.reached(tx, project, worker)

    def reached(self, tx: Connection, project: str, worker: str = "") -> str | None:
        """Return which limit of a project is reached, beside what `worker` takes."""
        if self.workers is not None:
            busy = workers_of(tx, project, worker)
            if busy >= self.workers:
                return f"project {project!r} has its quota of {self.workers} workers at a time"
        if self.steps_week is not None:
            steps = steps_of(tx, project)
            if steps >= self.steps_week:
                return (
                    f"project {project!r} has trained {steps:,.0f} steps in seven days, of a quota "
                    f"of {self.steps_week:,.0f}"
                )
        return None


@dataclass(frozen=True, kw_only=True)
class Project:
    """One row of `tuner_projects`, or a project without any."""

    name: str
    quota: Quota = Quota()
    shared: bool = False
    weight: float = 1.0  # its share of common workers


@retry_on_disconnect
def read(ledger: Reader) -> dict[str, Project]:
    """Read the projects for which something is set, by their names."""
    with ledger.engine.begin() as tx:
        rows = tx.execute(select(projects).order_by(projects.c.name))
        return {one.name: one for one in readable(_of, rows)}


def project(ledger: Reader, name: str) -> Project:
    """Read one project."""
    return read(ledger).get(name, Project(name=name))


@retry_on_disconnect
def put(ledger: Reader, changed: Project, act: Act) -> None:
    """Set what is given of a project."""
    values = {
        "workers": changed.quota.workers,
        "steps_week": changed.quota.steps_week,
        "shared": changed.shared,
        "weight": changed.weight,
    }
    with ledger.engine.execution_options(writes=True).begin() as tx:
        row = insert(tx, projects).values(name=changed.name, **values)
        tx.execute(row.on_conflict_do_update(index_elements=[projects.c.name], set_=values))
        events.record(tx, history_name(changed.name), events.PROJECT, act, **values)


def history_name(project: str) -> str:
    """Return the name under which the history of a project itself is kept."""
    return f"{project}/"


@retry_on_disconnect
def reached(ledger: Reader, of: Project) -> str | None:
    """Read which limit of a project is reached; None if none is."""
    with ledger.engine.begin() as tx:
        return of.quota.reached(tx, of.name)


@retry_on_disconnect
def taken(ledger: Reader, name: str) -> Quota:
    """Read what the studies of a project take now."""
    with ledger.engine.begin() as tx:
        return Quota(workers=workers_of(tx, name), steps_week=steps_of(tx, name))


def workers_of(tx: Connection, project: str, but: str = "") -> int:
    """Count the workers that train studies of a project, without one of them."""
    query = (
        select(func.count(attempts.c.worker.distinct()))
        .select_from(attempts.join(trials).join(studies))
        .where(IS_LIVE, attempts.c.worker != but, project_of(studies.c.name) == project)
    )
    return int(tx.scalar(query) or 0)


def steps_of(tx: Connection, project: str) -> float:
    """Sum the steps of the trials of a project that trained in the last seven days."""
    recent = or_(trials.c.ended_at.is_(None), trials.c.ended_at > database_time() - WEEK)
    ours = and_(project_of(studies.c.name) == project, ~trials.c.imported)
    query = select(func.sum(trials.c.steps)).select_from(trials.join(studies)).where(recent, ours)
    return float(tx.scalar(query) or 0)


def _of(row: Row[Any]) -> Project:
    found = checked("a project", projects, row)
    quota = Quota(workers=found["workers"], steps_week=found["steps_week"])
    weight = found["weight"] or 1.0
    if weight < 0.0:
        raise UnreadableError(f"a project cannot be read: weight: expected above 0, got {weight}")
    return Project(name=found["name"], quota=quota, shared=found["shared"], weight=weight)
