"""Retrainings in the ledger: once a key, one at a time a model, stage by stage under a lease.

Invariants, whoever calls and whatever dies:
- a study has one retraining of a key, and it ends once;
- of a model at most one retraining is live;
- what a stage found is committed under the lease's token, so who has lost the lease writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from tuner.core.errors import LeaseLost
from tuner.ledger.leasing import LEASE_SECONDS
from tuner.ledger.reading import Reader
from tuner.ledger.retraining_tables import retrainings
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import database_time

TRAIN, EVALUATE, LOG, PROMOTE, DONE = "train", "evaluate", "log", "promote", "done"
"""The stages, in their order."""
PROMOTED, KEPT, FAILED = "promoted", "kept", "failed"
"""The outcomes."""
CLAIMING = 0x72657472
"""Of PostgreSQL's advisory lock on claiming a retraining."""


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
    result: Mapping[str, Any]  # what each stage found, by its name
    worker: str | None
    token: int
    live: bool
    expires_at: float
    created_at: float
    ended_at: float | None


class Retrainings(Reader):
    """The retrainings in one database. Thread-safe, as `Reader` is."""

    def __init__(self, ledger: Reader, lease_seconds: float = LEASE_SECONDS) -> None:
        super().__init__(ledger.engine, ledger.retry_timeout)
        self.lease_seconds = lease_seconds
        self._writes = ledger.engine.execution_options(writes=True)

    def claim(
        self,
        study: str,
        run_key: str,
        model: str,
        worker: str,
        gone: Callable[[str], bool] = lambda _: False,
    ) -> tuple[Retraining, str | None]:
        """Take up a retraining, a new one or one whose last worker is gone, unless it has ended.

        The second thing given is who is in the way: at this one, or at another one of the model,
        which is then what is given first. None and a live retraining mean that it is the caller's;
        its `token` is the fence.
        """
        return self._claim(study, run_key, model, worker, gone, count())

    @retry_on_disconnect
    def _claim(
        self,
        study: str,
        run_key: str,
        model: str,
        worker: str,
        gone: Callable[[str], bool],
        calls: Iterator[int],
    ) -> tuple[Retraining, str | None]:
        """Claim; a call that is repeated may find that it has it."""
        repeated = next(calls) > 0
        with self._writes.begin() as tx:
            if tx.dialect.name == "postgresql":
                tx.execute(select(func.pg_advisory_xact_lock(CLAIMING)))
            here = and_(retrainings.c.study == study, retrainings.c.run_key == run_key)
            row = tx.execute(select(retrainings).where(here)).first()
            if row is not None and row.stage == DONE:
                return _of(row), None
            now = tx.scalar(select(database_time()))
            assert now is not None
            at_model = and_(retrainings.c.model == model, retrainings.c.live)
            holder = tx.execute(select(retrainings).where(at_model)).first()
            if holder is not None and not (repeated and holder.worker == worker):
                if holder.expires_at >= now and not gone(holder.worker):
                    return _of(row or holder), holder.worker
                end = update(retrainings).where(retrainings.c.id == holder.id)
                tx.execute(end.values(live=False))
            if row is None:
                new = {"study": study, "run_key": run_key, "model": model, "created_at": now}
                empty = {"stage": TRAIN, "result": {}, "token": 0, "live": False, "expires_at": 0.0}
                tx.execute(insert(retrainings).values(**new, **empty))
            taken = tx.execute(
                update(retrainings)
                .where(here)
                .values(
                    live=True,
                    model=model,
                    worker=worker,
                    token=retrainings.c.token + 1,
                    expires_at=now + self.lease_seconds,
                )
                .returning(*retrainings.c)
            ).one()
        return _of(taken), None

    @retry_on_disconnect
    def advance(self, held: Retraining, stage: str, found: Mapping[str, Any]) -> Retraining:
        """Commit what the stage that is being done found, and which one is next.

        Raises `LeaseLost` when another has taken the retraining up.
        """
        result = {**held.result, held.stage: dict(found)}
        return self._change(held, stage=stage, result=result)

    @retry_on_disconnect
    def end(self, held: Retraining, outcome: str, reason: str) -> Retraining:
        """Commit how it ended. Raises `LeaseLost`."""
        return self._change(
            held,
            stage=DONE,
            outcome=outcome,
            reason=reason,
            live=False,
            ended_at=database_time(),
        )

    @retry_on_disconnect
    def release(self, held: Retraining) -> None:
        """Leave it to whoever takes it up next, where it is."""
        with self._writes.begin() as tx:
            tx.execute(update(retrainings).where(_held(held)).values(live=False))

    def renew(self, held: Retraining) -> bool:
        """Move the lease's expiry on; tell whether it is still ours."""
        with self._writes.begin() as tx:
            renewed = {"expires_at": database_time() + self.lease_seconds}
            done = tx.execute(update(retrainings).where(_held(held)).values(**renewed))
        return done.rowcount == 1

    @retry_on_disconnect
    def read(self, study: str, run_key: str) -> Retraining | None:
        """Read a retraining; None if there is none of that key."""
        here = and_(retrainings.c.study == study, retrainings.c.run_key == run_key)
        with self._reading() as tx:
            row = tx.execute(select(retrainings).where(here)).first()
        return None if row is None else _of(row)

    @retry_on_disconnect
    def history(self, study: str) -> list[Retraining]:
        """Read all retrainings of a study, oldest first."""
        query = select(retrainings).where(retrainings.c.study == study).order_by(retrainings.c.id)
        with self._reading() as tx:
            return [_of(row) for row in tx.execute(query)]

    @retry_on_disconnect
    def promoted(self, model: str) -> list[Retraining]:
        """Read the retrainings that promoted a version of a model, the newest first."""
        query = (
            select(retrainings)
            .where(retrainings.c.model == model, retrainings.c.outcome == PROMOTED)
            .order_by(retrainings.c.ended_at.desc(), retrainings.c.id.desc())
        )
        with self._reading() as tx:
            return [_of(row) for row in tx.execute(query)]

    @retry_on_disconnect
    def now(self) -> float:
        """Read the database's clock, in seconds since 1970."""
        with self._reading() as tx:
            return float(tx.execute(select(database_time())).scalar_one())

    def _change(self, held: Retraining, **values: Any) -> Retraining:
        """Write under the fence. A call whose connection was lost after its commit goes through."""
        renewed = {"expires_at": database_time() + self.lease_seconds, **values}
        with self._writes.begin() as tx:
            row = tx.execute(
                update(retrainings).where(_held(held)).values(**renewed).returning(*retrainings.c)
            ).first()
            if row is None:
                row = _committed(tx, held, values)
        return _of(row)


def _committed(tx: Connection, held: Retraining, values: Mapping[str, Any]) -> Any:
    """Find that a change was committed under this token. Raises `LeaseLost` when it was not."""
    here = and_(retrainings.c.id == held.id, retrainings.c.token == held.token)
    row = tx.execute(select(retrainings).where(here)).first()
    if row is None or row.stage != values["stage"]:
        raise LeaseLost(
            f"the retraining {held.run_key!r} of {held.study!r} was given up for lost and its "
            "token is refused; another process has it, and the same call waits for its result"
        )
    return row


def _held(held: Retraining) -> Any:
    return and_(retrainings.c.id == held.id, retrainings.c.token == held.token, retrainings.c.live)


def _of(row: Any) -> Retraining:
    return Retraining(**row._mapping)


def forget(tx: Connection, study: str) -> None:
    """Delete the retrainings of a study that is being deleted."""
    tx.execute(delete(retrainings).where(retrainings.c.study == study))
