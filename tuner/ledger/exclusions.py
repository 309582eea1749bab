"""Which workers leave which studies alone for a while, and why, so that `tuner status` shows it.

Nothing is decided by these rows: a worker knows by itself what it leaves alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, select, update

from tuner.ledger.database.upserts import insert
from tuner.ledger.decoding import checked, readable
from tuner.ledger.reading import Reader
from tuner.ledger.records import StudyIdentity
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import database_time, exclusions


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """A study that a worker leaves alone."""

    worker: str
    seconds: float  # from now on
    failures: int  # attempts in a row; 0: it could not be built
    reason: str  # of the last one, a sentence

    @property
    def sentence(self) -> str:
        """Why it is left alone."""
        failed = f"{self.failures} attempts in a row failed" if self.failures else "it cannot start"
        return f"{failed} there. {self.reason}"


@retry_on_disconnect
def put(ledger: Reader, study: StudyIdentity, exclusion: Exclusion) -> None:
    """Record that a worker leaves a study alone from now on."""
    values = {
        "ends_at": database_time() + exclusion.seconds,
        "failures": exclusion.failures,
        "reason": exclusion.reason,
    }
    with ledger.engine.execution_options(writes=True).begin() as tx:
        row = insert(tx, exclusions).values(study_id=study.id, worker=exclusion.worker, **values)
        keys = [exclusions.c.study_id, exclusions.c.worker]
        tx.execute(row.on_conflict_do_update(index_elements=keys, set_=values))


@retry_on_disconnect
def remove(ledger: Reader, study: StudyIdentity, worker: str) -> None:
    """Record that a worker leaves a study alone no longer."""
    here = and_(exclusions.c.study_id == study.id, exclusions.c.worker == worker)
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(exclusions).where(here).values(ends_at=database_time()))


def read(tx: Connection, study_ids: Collection[int]) -> dict[int, list[Exclusion]]:
    """Read which workers leave studies alone now, by the studies' ids."""
    c = exclusions.c
    seconds = (c.ends_at - database_time()).label("seconds")
    query = select(c.study_id, c.worker, c.ends_at, c.failures, c.reason, seconds).where(
        c.study_id.in_(study_ids), c.ends_at > database_time()
    )
    found: dict[int, list[Exclusion]] = {}
    for row in readable(_checked, tx.execute(query.order_by(c.worker))):
        found.setdefault(row["study_id"], []).append(
            Exclusion(
                worker=row["worker"],
                seconds=row["seconds"],
                failures=row["failures"],
                reason=row["reason"],
            )
        )
    return found


def _checked(row: Row[Any]) -> Mapping[str, Any]:
    return checked("a row of a study that is left alone", exclusions, row)
