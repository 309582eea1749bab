"""What of the ledger has been published where, and who may publish it now."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
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
from tuner.ledger.tables import database_time, published_studies, published_trials, trials
from tuner.observability import metrics
from tuner.tracking.upserts import insert_new

CLAIM_SECONDS = 60.0
"""How long a publisher has a study after the last thing that it noted."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """How far one trial is published; what is None stays as it was."""

    trial_id: int
    external_id: str | None = None
    next_step: int | None = None  # rows below it are published
    final: bool | None = None  # the outcome is published too


class Publications:
    """The records of one target ("optuna" or "mlflow"), kept in the ledger's database.

    Invariants: a record exists before the thing that it is about does, so whoever finds one
    without an external id looks whether the thing exists before creating it; rows count as
    published only after they are; and nothing is noted by a publisher that lost its claim
    (`LeaseLost`): every such transaction begins with an UPDATE that must change the claim's row,
    and extends the claim.
    """

    def __init__(self, engine: Engine, target: str, publisher: str = "") -> None:
        """Without a publisher's identity there is only reading."""
        self._engine = engine
        self._target = target
        self._publisher = publisher

    def claim(self, study_id: int) -> bool:
        """Become the only one who publishes a study; tell whether that is so.

        Another's claim lasts for `CLAIM_SECONDS`, or until its process is known to be gone.
        """
        here = self._of_study(study_id)
        expired = published_studies.c.expires_at < database_time()
        query = (
            select(published_studies.c.publisher, expired.label("expired"))
            .where(here)
            .with_for_update()
        )
        try:
            with self._writing() as tx:
                row = tx.execute(query).first()
                if row is None:  # another may be making it at this moment
                    first = {"study_id": study_id, "target": self._target, "revision": 0}
                    insert_new(tx, published_studies, [first | {"expires_at": 0.0}])
                    row = tx.execute(query).one()
                free = row.publisher is None or row.expired or row.publisher == self._publisher
                if not (free or is_gone(row.publisher)):
                    return False
                until = database_time() + CLAIM_SECONDS
                tx.execute(
                    update(published_studies)
                    .where(here)
                    .values(publisher=self._publisher, expires_at=until)
                )
        except IntegrityError:  # the study has been deleted meanwhile
            return False
        return True

    def release(self, study_id: int) -> None:
        """Let others publish a study at once."""
        mine = and_(self._of_study(study_id), published_studies.c.publisher == self._publisher)
        with self._writing() as tx:
            tx.execute(update(published_studies).where(mine).values(expires_at=0.0))

    def study(self, study_id: int) -> tuple[str | None, int]:
        """Give a study's external id, and its revision when it was last published, 0: never."""
        with self._engine.begin() as tx:
            row = tx.execute(select(published_studies).where(self._of_study(study_id))).first()
        return (None, 0) if row is None else (row.external_id, row.revision)

    def note_study(self, study_id: int, external_id: str | None, revision: int) -> None:
        """Note that a study is published as of a revision."""
        with self._claimed(study_id) as tx:
            tx.execute(
                update(published_studies)
                .where(self._of_study(study_id))
                .values(external_id=external_id, revision=revision)
            )

    def external_ids(self, study_id: int) -> dict[int, str]:
        """Give the external id of each published trial, by its number."""
        query = (
            select(trials.c.number, published_trials.c.external_id)
            .join(trials, trials.c.id == published_trials.c.trial_id)
            .where(
                trials.c.study_id == study_id,
                published_trials.c.target == self._target,
                published_trials.c.external_id.is_not(None),
            )
        )
        with self._engine.begin() as tx:
            return {row.number: row.external_id for row in tx.execute(query)}

    def begin(self, study_id: int, trial_ids: Collection[int]) -> None:
        """Note that the trials' counterparts are about to be created."""
        rows = [
            {"trial_id": one, "target": self._target, "next_step": 0, "final": False}
            for one in trial_ids
        ]
        with self._claimed(study_id) as tx:
            insert_new(tx, published_trials, rows)

    def note(self, study_id: int, notes: Sequence[Note]) -> None:
        """Note how far trials are published, all at once."""
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
        """Forget what is published of a study, so that it is looked at and published again."""
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
        """Begin a transaction that stops unless the claim is ours; it extends the claim."""
        metrics.heartbeat(self._target)  # publishing a long study is many of these
        with self._writing() as tx:
            done = tx.execute(
                update(published_studies)
                .where(
                    self._of_study(study_id),
                    published_studies.c.publisher == self._publisher,
                    published_studies.c.expires_at > 0.0,  # not released
                )
                .values(expires_at=database_time() + CLAIM_SECONDS)
            )
            if done.rowcount != 1:
                raise LeaseLost("another recorder has taken over the study")
            yield tx

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._engine.execution_options(writes=True).begin() as tx:
            yield tx
