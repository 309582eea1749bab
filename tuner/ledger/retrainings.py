"""Retrainings in the ledger: at most one per study and run key, and at most one running per model.

Invariants, whichever process calls or dies:
- a study has at most one retraining per run key, and it ends once; one that ended as proposed or
  canary is decided on once;
- a model has at most one running retraining, and at most one canary;
- the result of a stage is committed under the lease's token, so a stale holder writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, select, tuple_
from sqlalchemy.exc import IntegrityError

from tuner.core.errors import (
    LeaseLost,
    NotFoundError,
    UnavailableError,
    UnreadableError,
    UsageError,
)
from tuner.ledger import events, locks, notifications
from tuner.ledger.decoding import checked, is_time, readable, studies_of
from tuner.ledger.events import Act
from tuner.ledger.lease_writer import LeaseWriter
from tuner.ledger.leases import RETRAININGS, Gone, Lease, State, renewed
from tuner.ledger.notifications import Notice
from tuner.ledger.reading import Reader
from tuner.ledger.records import StudyRecord
from tuner.ledger.retraining_tables import retrainings
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import database_time, studies

TRAIN, EVALUATE, LOG, PROMOTE, DONE = "train", "evaluate", "log", "promote", "done"
"""The stages, in their order."""
PROMOTED, KEPT, FAILED = "promoted", "kept", "failed"
"""The outcomes."""
PROPOSED, REJECTED = "proposed", "rejected"
"""Two more, if a person promotes: the challenger has won and waits; it was not approved."""
CANARY = "canary"
"""One more: the challenger has won, and is tried before it is promoted."""
UNDECIDED = (PROPOSED, CANARY)
SUCCEEDED = (PROMOTED, KEPT, PROPOSED, CANARY, REJECTED)
"""Those of a retraining that has trained and judged a challenger."""


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """One row of `tuner_retrainings`."""

    id: int
    study: str
    run_key: str
    model: str
    stage: str  # what is to be done next
    outcome: str | None
    reason: str | None
    result: Mapping[str, Any]  # by stage
    worker: str | None
    token: int
    live: bool
    expires_at: float
    created_at: float
    ended_at: float | None

    @property
    def lease(self) -> Lease:
        """The claim under which it was read."""
        return Lease(table=RETRAININGS, row_id=self.id, token=self.token)


class Retrainings(LeaseWriter):
    """The retrainings in one database. Thread-safe, as `Reader` is."""

    def __init__(self, ledger: Reader) -> None:
        """Lease for as long as `ledger` does, or where it only reads, for `LEASE_SECONDS`."""
        leases = ledger if isinstance(ledger, LeaseWriter) else LeaseWriter(ledger.engine)
        super().__init__(
            ledger.engine, leases.lease_seconds, ledger.retry_timeout, leases.grace_seconds
        )

    def claim(
        self,
        study: str,
        run_key: str,
        model: str,
        worker: str,
        gone: Gone = lambda _: False,
    ) -> tuple[Retraining, str | None]:
        """Claim a retraining, a new one or one that is not held, unless it has ended.

        Return the retraining and None, or, while a process holds this one or another one of the
        model, that retraining and the identity of its holder.
        """
        try:
            return self._claim(study, run_key, model, worker, gone, count())
        except IntegrityError as error:  # rows that the indexes see otherwise than our conditions
            raise UnreadableError(
                f"a retraining of model {model!r} cannot be read: live: {error.orig}"
            ) from error

    @retry_on_disconnect
    def _claim(
        self,
        study: str,
        run_key: str,
        model: str,
        worker: str,
        gone: Gone,
        calls: Iterator[int],
    ) -> tuple[Retraining, str | None]:
        """Claim; a retried call may find that its first try was committed."""
        repeated = next(calls) > 0
        with self._writing() as tx:
            locks.take(tx, locks.RETRAIN)
            here = and_(retrainings.c.study == study, retrainings.c.run_key == run_key)
            row = tx.execute(select(retrainings).where(here)).first()
            known = None if row is None else _of(row)  # refused before it is claimed
            if known is not None and known.stage == DONE:
                return known, None
            now = tx.scalar(select(database_time()))
            assert now is not None
            at_model = and_(retrainings.c.model == model, retrainings.c.live)
            holder = tx.execute(select(retrainings).where(at_model)).first()
            if holder is not None and not (repeated and holder.worker == worker):
                if self._state(tx, RETRAININGS, holder.id, gone) is State.HELD:
                    return known or _of(holder), holder.worker
                # not by its record: the row may be unreadable
                RETRAININGS.release(
                    tx, Lease(table=RETRAININGS, row_id=holder.id, token=holder.token)
                )
            if row is None:
                new = {"study": study, "run_key": run_key, "model": model, "created_at": now}
                empty = {"stage": TRAIN, "result": {}, "token": 0, "live": False, "expires_at": 0.0}
                tx.execute(insert(retrainings).values(**new, **empty))
            row_id = tx.execute(select(retrainings.c.id).where(here)).scalar_one()
            lease = RETRAININGS.take(tx, row_id, worker, self.lease_seconds, model=model)
            taken = RETRAININGS.row(tx, lease)
        return _of(taken), None

    @retry_on_disconnect
    def claim_undecided(
        self, study: str, run_key: str | None, worker: str, gone: Gone = lambda _: False
    ) -> Retraining:
        """Claim one that is proposed or a canary, to decide on it: of a key, or the newest one.

        Raise `NotFoundError` if there is none, `UsageError` if it was decided, and
        `UnavailableError` while another process retrains the model or decides.
        """
        c = retrainings.c
        wanted = c.outcome.in_(UNDECIDED) if run_key is None else c.run_key == run_key
        query = select(retrainings).where(c.study == study, wanted).order_by(c.id.desc())
        with self._writing() as tx:
            locks.take(tx, locks.RETRAIN)
            row = tx.execute(query).first()
            if row is None:
                which = "waits for approval" if run_key is None else f"has the key {run_key!r}"
                raise NotFoundError(f"no retraining of study {study!r} {which}")
            known = _of(row)
            if known.outcome not in UNDECIDED:
                raise UsageError(
                    f"the retraining {known.run_key!r} of study {study!r} is "
                    f"{known.outcome or 'not ended'}, expected a proposed one or a canary; "
                    "`tuner retrain NAME --history` lists them"
                )
            here = and_(c.model == known.model, c.live)
            for holder in tx.execute(select(retrainings).where(here)).all():
                if self._state(tx, RETRAININGS, holder.id, gone) is State.HELD:
                    raise UnavailableError(
                        f"{holder.worker} has the retraining {holder.run_key!r} of model "
                        f"{known.model!r}; try later"
                    )
                lost = Lease(table=RETRAININGS, row_id=holder.id, token=holder.token)
                RETRAININGS.release(tx, lost)
            lease = RETRAININGS.take(tx, known.id, worker, self.lease_seconds)
            return _of(RETRAININGS.row(tx, lease))

    @retry_on_disconnect
    def advance(self, held: Retraining, stage: str, found: Mapping[str, Any]) -> Retraining:
        """Commit the result of the present stage, and which one is next.

        Raise `LeaseLost` when another process has claimed the retraining.
        """
        result = {**held.result, held.stage: dict(found)}
        return self._change(held, stage=stage, result=result)

    @retry_on_disconnect
    def end(
        self,
        held: Retraining,
        outcome: str,
        reason: str,
        notices: Sequence[Notice] = (),
        act: tuple[str, Act] | None = None,
    ) -> Retraining:
        """Commit the outcome, the notifications of it, and who decided. Raise `LeaseLost`."""
        return self._change(
            held,
            stage=DONE,
            outcome=outcome,
            reason=reason,
            live=False,
            ended_at=database_time(),
            notices=notices,
            act=act,
        )

    @retry_on_disconnect
    def release(self, held: Retraining) -> None:
        """Leave it to the next claim, at its present stage."""
        with self._writing() as tx:
            RETRAININGS.release(tx, held.lease)

    @retry_on_disconnect
    def read(self, study: str, run_key: str) -> Retraining | None:
        """Read a retraining; return None if there is none of that key."""
        here = and_(retrainings.c.study == study, retrainings.c.run_key == run_key)
        with self._reading() as tx:
            row = tx.execute(select(retrainings).where(here)).first()
        return None if row is None else _of(row)

    @retry_on_disconnect
    def history(self, study: str) -> list[Retraining]:
        """Read all retrainings of a study, oldest first."""
        query = select(retrainings).where(retrainings.c.study == study).order_by(retrainings.c.id)
        with self._reading() as tx:
            return list(readable(_of, tx.execute(query)))

    @retry_on_disconnect
    def of_model(self, model: str) -> list[Retraining]:
        """Read all retrainings of a model, of whatever study, newest first."""
        query = (
            select(retrainings)
            .where(retrainings.c.model == model)
            .order_by(retrainings.c.id.desc())
        )
        with self._reading() as tx:
            return list(readable(_of, tx.execute(query)))

    @retry_on_disconnect
    def canaries(self, model: str | None = None) -> list[Retraining]:
        """Read the retrainings whose challengers are tried, of a model or of all, oldest first."""
        query = select(retrainings).where(retrainings.c.outcome == CANARY)
        if model is not None:
            query = query.where(retrainings.c.model == model)
        with self._reading() as tx:
            return list(readable(_of, tx.execute(query.order_by(retrainings.c.id))))

    @retry_on_disconnect
    def promoted(self, model: str) -> list[Retraining]:
        """Read the retrainings that promoted a version of a model, the newest first."""
        query = (
            select(retrainings)
            .where(retrainings.c.model == model, retrainings.c.outcome == PROMOTED)
            .order_by(retrainings.c.ended_at.desc(), retrainings.c.id.desc())
        )
        with self._reading() as tx:
            return list(readable(_of, tx.execute(query)))

    def _change(
        self,
        held: Retraining,
        notices: Sequence[Notice] = (),
        act: tuple[str, Act] | None = None,
        **values: Any,
    ) -> Retraining:
        """Write under the fence; a change that was committed before under this token is kept."""
        with self._writing() as tx:
            fenced = RETRAININGS.fence(tx, [held.lease], {**renewed(self.lease_seconds), **values})
            if fenced:
                notifications.put(tx, notices)
                if act is not None:
                    version = held.result[LOG]["version"]
                    done = {"run_key": held.run_key, "model": held.model, "version": version}
                    done["outcome"] = values["outcome"]
                    events.record(tx, held.study, *act, **done)
            row = RETRAININGS.row(tx, held.lease)
        if row is None or not (fenced or _is_as(row, values)):
            raise LeaseLost(
                f"the retraining {held.run_key!r} of {held.study!r} was given up for lost and its "
                "token is refused; another process has it, and the same call waits for its result"
            )
        return _of(row)


def _is_as(row: Any, values: Mapping[str, Any]) -> bool:
    """Return whether a row is as a call has left it whose connection was lost."""
    return all(getattr(row, key) == values[key] for key in ("stage", "outcome") if key in values)


def _of(row: Any) -> Retraining:
    """Return the record of a row. Raise `UnreadableError`."""
    title = f"the retraining {row.run_key!r:.60} of study {row.study!r:.60}"
    found = Retraining(**checked(title, retrainings, row))
    missing = _needed(found) - found.result.keys()
    if missing or (found.outcome is None) != (found.stage != DONE):
        raise UnreadableError(
            f"{title} cannot be read: result: expected those of the stages before {found.stage!r}, "
            f"got {', '.join(sorted(found.result)) or 'none'} and the outcome {found.outcome!r}"
        )
    if found.outcome in SUCCEEDED and found.result[LOG]["version"] is None:
        raise UnreadableError(f"{title} cannot be read: it has made no version")
    return found


def _needed(one: Retraining) -> set[str]:
    """Return the stages whose results a retraining must have at its stage."""
    if one.stage == TRAIN:
        return set()
    has_failed = one.result.get(TRAIN, {}).get("failed") is not None
    needed = {TRAIN} if has_failed or one.stage == EVALUATE else {TRAIN, EVALUATE}
    return needed | ({LOG} if one.stage in (PROMOTE, DONE) else set())


@dataclass(frozen=True, kw_only=True)
class Overdue:
    """A study of which no retraining has succeeded for longer than `[retrain] overdue_hours`."""

    study: StudyRecord
    since: float  # the last success, else when the study was submitted
    hours: float  # that have passed


@retry_on_disconnect
def overdue(ledger: Reader, now: float | None = None) -> list[Overdue]:
    """Read the studies whose retraining is overdue; `now` replaces the database's clock."""
    c, r = studies.c, retrainings.c
    newest = select(c.name, func.max(c.version)).group_by(c.name)
    limited = and_(
        tuple_(c.name, c.version).in_(newest),
        c.spec.like('%"overdue_hours":%'),  # most have none, and need not be read
        c.spec.not_like('%"overdue_hours":null%'),
    )
    with ledger.engine.begin() as tx:
        at = tx.scalar(select(database_time())) if now is None else now
        known = studies_of(tx.execute(select(studies).where(limited).order_by(c.id)).all())
        ended = tx.execute(
            select(r.study, func.max(r.ended_at).label("at"))
            .where(r.study.in_([one.name for one in known]), r.outcome.in_(SUCCEEDED))
            .group_by(r.study)
        )
        last = {row.study: row.at for row in ended if is_time(row.at)}
    assert at is not None
    found = []
    for one in known:
        since = max(last.get(one.name, 0.0), one.created_at)
        hours, limit = (at - since) / 3600, one.spec.retrain.overdue_hours
        if limit is not None and hours > limit:
            found.append(Overdue(study=one, since=since, hours=hours))
    return found


def unreadable(ledger: Reader) -> list[tuple[str, str]]:
    """Read why retrainings cannot be read, each with the name of its study."""
    found = []
    with ledger.engine.begin() as tx:
        for row in tx.execute(select(retrainings).order_by(retrainings.c.id)):
            try:
                _of(row)
            except UnreadableError as error:
                found.append((str(row.study), str(error)))
    return found


def forget(tx: Connection, study: str) -> None:
    """Delete the retrainings of a study that is being deleted."""
    tx.execute(delete(retrainings).where(retrainings.c.study == study))
