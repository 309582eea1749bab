"""Publication state per target, and the publishers' leases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    bindparam,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from tuner.core.environment import is_gone
from tuner.core.errors import LeaseLost
from tuner.ledger.database.upserts import insert_new
from tuner.ledger.leases import PUBLICATIONS, Gone, Lease, State
from tuner.ledger.records import is_count, is_external_id
from tuner.ledger.tables import published_studies, published_trials, trials

CLAIM_SECONDS = 60.0
"""How long a publisher has a study after its last record."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """How far one trial is published; a field that is None stays as it was."""

    trial_id: int
    external_id: str | None = None
    next_step: int | None = None  # rows below it are published
    final: bool | None = None  # the outcome is published too


class Publications:
    """What of the ledger is published to one target, "optuna" or "mlflow".

    Invariants: the intent is recorded before the external object is created; so without an external
    id, search for it before creating it. Rows count as published only after they are. A publisher
    that has lost its lease records nothing (`LeaseLost`).

    The lease on a study is renewed by every record, not in the background: a publisher that hangs
    in a call to its target loses the study to another one.
    """

    def __init__(
        self,
        engine: Engine,
        target: str,
        publisher: str = "",
        *,
        heartbeat: Callable[[], None] = lambda: None,
        grace_seconds: float = CLAIM_SECONDS,
    ) -> None:
        """Call `heartbeat` at every record. Without a publisher's identity, only read."""
        self._engine = engine
        self._grace_seconds = grace_seconds
        self._target = target
        self._publisher = publisher
        self._heartbeat = heartbeat
        self._leases = PUBLICATIONS[target]

    def claim(self, study_id: int, gone: Gone = is_gone) -> bool:
        """Become the only publisher of a study; return whether that succeeded."""
        mine = self._publisher
        try:
            with self._writing() as tx:
                state = self._state(tx, study_id, gone)
                if state is None:  # another may be inserting it at this moment
                    first = {"study_id": study_id, "target": self._target, "revision": 0}
                    insert_new(tx, published_studies, [first | {"expires_at": 0.0}])
                    state = self._state(tx, study_id, gone)
                if state is State.HELD and self._leases.row(tx, self.lease(study_id)) is None:
                    return False
                self._leases.take(tx, study_id, mine, CLAIM_SECONDS, token=mine)
        except IntegrityError:  # the study has been deleted meanwhile
            return False
        return True

    def lease(self, study_id: int) -> Lease:
        """Return this publisher's lease on a study that it has claimed."""
        return Lease(table=self._leases, row_id=study_id, token=self._publisher)

    def release(self, study_id: int) -> None:
        """Release this publisher's lease on a study."""
        with self._writing() as tx:
            self._leases.release(tx, self.lease(study_id))

    def study(self, study_id: int) -> tuple[str | None, int]:
        """Return a study's external id, and its revision when last published, 0 if never.

        What cannot be read of them is None and 0.
        """
        with self._engine.begin() as tx:
            row = tx.execute(select(published_studies).where(self._of_study(study_id))).first()
        if row is None:
            return None, 0
        known = row.external_id if is_external_id(row.external_id) else None
        return known, row.revision if is_count(row.revision) else 0

    def note_study(self, study_id: int, external_id: str | None, revision: int) -> None:
        """Record that a study is published as of a revision."""
        with self._claimed(study_id) as tx:
            tx.execute(
                update(published_studies)
                .where(self._of_study(study_id))
                .values(external_id=external_id, revision=revision)
            )

    def external_ids(self, study_id: int, numbers: Collection[int] | None = None) -> dict[int, str]:
        """Return the external ids of published trials by number, without unreadable ones.

        With `numbers`, return those of these trials.
        """
        query = (
            select(trials.c.number, published_trials.c.external_id)
            .join(trials, trials.c.id == published_trials.c.trial_id)
            .where(
                trials.c.study_id == study_id,
                published_trials.c.target == self._target,
                published_trials.c.external_id.is_not(None),
            )
        )
        if numbers is not None:
            query = query.where(trials.c.number.in_(numbers))
        with self._engine.begin() as tx:
            return {
                row.number: row.external_id
                for row in tx.execute(query)
                if is_external_id(row.external_id) and is_count(row.number)
            }

    def begin(self, study_id: int, trial_ids: Collection[int]) -> None:
        """Record that the trials' counterparts are about to be created."""
        rows = [
            {"trial_id": one, "target": self._target, "next_step": 0, "final": False}
            for one in trial_ids
        ]
        with self._claimed(study_id) as tx:
            insert_new(tx, published_trials, rows)

    def note(self, study_id: int, notes: Sequence[Note]) -> None:
        """Record how far trials are published, all at once."""
        kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for one in notes:
            given = {"external_id": one.external_id, "next_step": one.next_step, "final": one.final}
            values = {name: value for name, value in given.items() if value is not None}
            kinds.setdefault(tuple(values), []).append(values | {"of_trial": one.trial_id})
        with self._claimed(study_id) as tx:
            for names, rows in kinds.items():
                here = self._of_trial(bindparam("of_trial"))
                changed: Mapping[str, Any] = {name: bindparam(name) for name in names}
                tx.execute(update(published_trials).where(here).values(changed), rows)

    def forget(self, study_id: int) -> None:
        """Delete what is recorded of a study, so that it is checked and republished."""
        of_study = select(trials.c.id).where(trials.c.study_id == study_id)
        unknown = {"external_id": None, "next_step": 0, "final": False}
        with self._claimed(study_id) as tx:
            tx.execute(
                update(published_trials)
                .where(
                    published_trials.c.trial_id.in_(of_study),
                    published_trials.c.target == self._target,
                )
                .values(**unknown)
            )
            tx.execute(
                update(published_studies)
                .where(self._of_study(study_id))
                .values(external_id=None, revision=0)
            )

    def _of_study(self, study_id: int) -> ColumnElement[bool]:
        of_target = published_studies.c.target == self._target
        return and_(published_studies.c.study_id == study_id, of_target)

    def _of_trial(self, trial_id: Any) -> ColumnElement[bool]:
        of_target = published_trials.c.target == self._target
        return and_(published_trials.c.trial_id == trial_id, of_target)

    @contextmanager
    def _claimed(self, study_id: int) -> Iterator[Connection]:
        """Begin a transaction that renews the lease on a study. Raise `LeaseLost`."""
        self._heartbeat()  # publishing a long study is many of these
        with self._writing() as tx:
            if not self._leases.renew(tx, [self.lease(study_id)], CLAIM_SECONDS):
                raise LeaseLost("another recorder has taken over the study")
            yield tx

    def _state(self, tx: Connection, study_id: int, gone: Gone) -> State | None:
        return self._leases.state(tx, study_id, gone, grace_seconds=self._grace_seconds)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._engine.execution_options(writes=True).begin() as tx:
            yield tx
