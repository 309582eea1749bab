"""The active range of a study's learning rate: the probe that sets it, and what extends it.

Every change of the range is kept among the study's attributes, which search reads together with the
trials, as of one revision: so a draw depends on the revision that it saw, and on nothing else. The
recorded range never changes.

One worker probes, under a claim in a row of `tuner_probes`; the first result that is committed
counts. A claim is not renewed: it ends with its worker, if that is seen to be gone, or when it
expires. Should two workers probe then, they find the same, and one of them is not heard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from tuner.config import ParameterValue
from tuner.ledger import rows
from tuner.ledger.managing import locked
from tuner.ledger.reading import Reader
from tuner.ledger.records import RANGES, StudyRecord
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import database_time, probes, studies

CLAIM_SECONDS = 120.0
"""How long others wait for a probe whose worker cannot be seen."""


@dataclass(frozen=True, kw_only=True)
class ActiveRange:
    """The rates that are drawn from a revision on, and why."""

    low: float
    high: float
    why: str  # a sentence
    trials: int = 0  # that had ended when it was set
    first: Sequence[Mapping[str, ParameterValue]] = ()  # what the first trials are given
    revision: int = 0  # of the study when it was set
    at: float = 0.0  # the database's time


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Whose turn it is to probe."""

    done: bool  # nobody's any more
    number: int | None = None  # the caller's, under this token; None: another worker's


def history(attrs: Mapping[str, Any], revision: int | None = None) -> list[ActiveRange]:
    """Give the ranges that were active up to a revision, the last one last."""
    every = [ActiveRange(**one) for one in attrs.get(RANGES, [])]
    return [one for one in every if revision is None or one.revision <= revision]


@retry_on_disconnect
def take_turn(ledger: Reader, study: StudyRecord, worker: str, gone: Callable[[str], bool]) -> Turn:
    """Claim a study's probe, unless it is done or somebody alive is at it."""
    with locked(ledger, study) as (tx, _):
        row = tx.execute(
            select(probes, (probes.c.expires_at < database_time()).label("expired")).where(
                probes.c.study_id == study.id
            )
        ).first()
        if row is not None and row.result is not None:
            return Turn(done=True)
        if row is not None and row.worker != worker and not row.expired and not gone(row.worker):
            return Turn(done=False)
        number = 1 if row is None else row.number + 1
        claim = {
            "number": number,
            "worker": worker,
            "expires_at": database_time() + CLAIM_SECONDS,
        }
        if row is None:
            tx.execute(insert(probes).values(study_id=study.id, **claim))
        else:
            tx.execute(update(probes).where(probes.c.study_id == study.id).values(**claim))
    return Turn(done=False, number=number)


@retry_on_disconnect
def finish(
    ledger: Reader, study: StudyRecord, result: Mapping[str, Any], found: ActiveRange | None
) -> None:
    """Commit what the probe found, and the range that follows; the first result stays."""
    with locked(ledger, study) as (tx, row):
        done = tx.execute(
            update(probes)
            .where(probes.c.study_id == study.id, probes.c.result.is_(None))
            .values(result=dict(result), ended_at=database_time())
        )
        if done.rowcount == 1:
            _add(tx, row, found)


@retry_on_disconnect
def extend(ledger: Reader, study: StudyRecord, after: int, found: ActiveRange) -> None:
    """Commit a wider range, unless the range has changed since the one of revision `after`."""
    with locked(ledger, study) as (tx, row):
        known = history(row.attrs)
        if known and known[-1].revision == after:
            _add(tx, row, found)


@retry_on_disconnect
def result(ledger: Reader, study: StudyRecord) -> Mapping[str, Any] | None:
    """Read what a study's probe found; None while there is none."""
    with ledger.engine.begin() as tx:
        found = tx.scalar(select(probes.c.result).where(probes.c.study_id == study.id))
    return None if found is None else dict(found)


def _add(tx: Connection, study: Row[Any], found: ActiveRange | None) -> None:
    revision = rows.next_revision(tx, study.id)
    if found is None:
        return
    now = tx.scalar(select(database_time()))
    entry = asdict(found) | {"revision": revision, "at": now}
    attrs = {**study.attrs, RANGES: [*study.attrs.get(RANGES, []), entry]}
    tx.execute(update(studies).where(studies.c.id == study.id).values(attrs=attrs))
