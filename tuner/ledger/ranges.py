"""The active range of a study's learning rate: the probe that sets it, and what extends it.

Every change of the range is kept among the study's attributes, which search reads together with the
trials, as of one revision: so a draw depends only on the revision that it saw. The recorded range
never changes.

One worker at a time probes a study, under a lease in a row of `tuner_probes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from tuner.config import ParameterValue
from tuner.core.errors import LeaseLost, UnreadableError
from tuner.ledger import rows
from tuner.ledger.decoding import study_of
from tuner.ledger.lease_writer import LeaseWriter
from tuner.ledger.leases import PROBES, Gone, Lease, State
from tuner.ledger.managing import locked
from tuner.ledger.reading import Reader
from tuner.ledger.records import RANGES, StudyRecord
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import database_time, probes, studies


@dataclass(frozen=True, kw_only=True)
class ActiveRange:
    """The rates that trials are drawn from, from a revision on, and the reason."""

    low: float
    high: float
    why: str  # a sentence
    trials: int = 0  # that had ended when it was set
    first: Sequence[Mapping[str, ParameterValue]] = ()  # what the first trials are given
    revision: int = 0  # of the study when it was set
    at: float = 0.0  # the database's time


@dataclass(frozen=True, kw_only=True)
class ProbeClaim:
    """The answer to a claim on a study's probe."""

    done: bool  # the probe has its result
    lease: Lease | None = None  # the caller's; None if done, or while another worker probes


def history(attrs: Mapping[str, Any], revision: int | None = None) -> list[ActiveRange]:
    """Return the ranges that were active up to a revision, in order."""
    every = [ActiveRange(**one) for one in attrs.get(RANGES, [])]
    return [one for one in every if revision is None or one.revision <= revision]


@retry_on_disconnect
def claim_probe(
    ledger: LeaseWriter, study: StudyRecord, worker: str, gone: Gone = lambda _: False
) -> ProbeClaim:
    """Claim a study's probe, unless it has a result or another worker holds it."""
    with locked(ledger, study) as (tx, _):
        row = tx.execute(select(probes).where(probes.c.study_id == study.id)).first()
        if row is None:
            empty = {"number": 0, "worker": worker, "expires_at": 0.0}
            tx.execute(insert(probes).values(study_id=study.id, **empty))
        elif row.result is not None:
            return ProbeClaim(done=True)
        elif row.worker != worker:
            state = PROBES.state(tx, study.id, gone, grace_seconds=ledger.grace_seconds)
            if state is State.HELD:
                return ProbeClaim(done=False)
        lease = PROBES.take(tx, study.id, worker, ledger.lease_seconds)
    return ProbeClaim(done=False, lease=lease)


@retry_on_disconnect
def release_probe(ledger: LeaseWriter, study: StudyRecord, lease: Lease) -> None:
    """Leave a probe without a result to the next worker."""
    with locked(ledger, study) as (tx, _):
        PROBES.release(tx, lease)


@retry_on_disconnect
def finish_probe(
    ledger: LeaseWriter,
    study: StudyRecord,
    lease: Lease,
    result: Mapping[str, Any],
    found: ActiveRange | None,
) -> None:
    """Commit the result of a probe and the range that follows. Raise `LeaseLost`."""
    with locked(ledger, study) as (tx, row):
        ended = {"result": dict(result), "ended_at": database_time()}
        if PROBES.fence(tx, [lease], ended):
            _add(tx, row, found)
            return
        probed = PROBES.row(tx, lease)
        if probed is None or probed.result is None:  # else a call whose connection was lost
            raise LeaseLost(
                f"the probe of {study.name!r} was given up for lost and its token is refused; "
                "another worker probes the study"
            )


@retry_on_disconnect
def extend(ledger: Reader, study: StudyRecord, after: int, found: ActiveRange) -> None:
    """Commit a wider range, unless the range has changed since that of revision `after`."""
    with locked(ledger, study) as (tx, row):
        known = history(study_of(row).attrs)
        if known and known[-1].revision == after:
            _add(tx, row, found)


@retry_on_disconnect
def result(ledger: Reader, study: StudyRecord) -> Mapping[str, Any] | None:
    """Read the result of a study's probe; return None while there is none."""
    with ledger.engine.begin() as tx:
        found = tx.scalar(select(probes.c.result).where(probes.c.study_id == study.id))
    if not isinstance(found, dict | None):
        raise UnreadableError(
            f"the probe of {study.name!r} cannot be read: result: got {found!r:.60}"
        )
    return found


def _add(tx: Connection, study: Row[Any], found: ActiveRange | None) -> None:
    attrs = study_of(study).attrs
    revision = rows.next_revision(tx, study.id)
    if found is None:
        return
    now = tx.scalar(select(database_time()))
    entry = asdict(found) | {"revision": revision, "at": now}
    attrs = {**attrs, RANGES: [*attrs.get(RANGES, []), entry]}
    tx.execute(update(studies).where(studies.c.id == study.id).values(attrs=attrs))
