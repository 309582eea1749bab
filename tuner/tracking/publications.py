"""What of the ledger has been published where, and who may publish it now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Engine, and_, insert, select, update

from tuner.environment import is_gone
from tuner.errors import LeaseLost
from tuner.ledger.reading import read_trials
from tuner.ledger.records import TrialRecord
from tuner.ledger.tables import database_time, published_studies, published_trials, trials

CLAIM_SECONDS = 60.0
"""How long a publisher has a study after the last thing that it noted."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """How far one trial is published."""

    external_id: str | None  # None: somebody began to create it, perhaps it exists
    next_step: int = 0  # rows below it are published


class Publications:
    """The records of one target ("optuna" or "mlflow"), kept in the ledger's database.

    Invariants: a record exists before the thing that it is about does, so whoever finds one
    without an external id looks whether the thing exists before creating it; rows count as
    published only after they are; and nothing is noted by a publisher that lost its claim
    (`LeaseLost`): every such transaction begins with an UPDATE that must change the claim's row.
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
        with self._writing() as tx:
            expired = published_studies.c.expires_at < database_time()
            row = tx.execute(
                select(published_studies.c.publisher, expired.label("expired")).where(here)
            ).first()
            if row is None:
                tx.execute(
                    insert(published_studies).values(
                        study_id=study_id, target=self._target, revision=0, expires_at=0.0
                    )
                )
            elif not (row.expired or row.publisher == self._publisher or is_gone(row.publisher)):
                return False
            until = database_time() + CLAIM_SECONDS
            tx.execute(
                update(published_studies)
                .where(here)
                .values(publisher=self._publisher, expires_at=until)
            )
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

    def open_trials(self, study_id: int) -> list[tuple[TrialRecord, Publication | None]]:
        """Read the trials that are not published to their end, in the order of numbers."""
        closed = select(published_trials.c.trial_id).where(
            published_trials.c.target == self._target, published_trials.c.final
        )
        where = and_(trials.c.study_id == study_id, trials.c.id.not_in(closed))
        if self._target == "mlflow":  # imported trials have no run, but a number in Optuna
            where = and_(where, ~trials.c.imported)
        with self._engine.begin() as tx:
            found = read_trials(tx, where)
            rows = tx.execute(
                select(published_trials).where(
                    published_trials.c.target == self._target, ~published_trials.c.final
                )
            ).all()
        known = {
            row.trial_id: Publication(external_id=row.external_id, next_step=row.next_step)
            for row in rows
        }
        return [(trial, known.get(trial.id)) for trial in found]

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

    def begin(self, trial: TrialRecord) -> None:
        """Note that the trial's counterpart is about to be created."""
        with self._claimed(trial.study_id) as tx:
            tx.execute(
                insert(published_trials).values(
                    trial_id=trial.id, target=self._target, next_step=0, final=False
                )
            )

    def note(
        self,
        trial: TrialRecord,
        *,
        external_id: str | None = None,
        next_step: int | None = None,
        final: bool | None = None,
    ) -> None:
        """Note how far a trial is published; what is None stays as it is."""
        given = {"external_id": external_id, "next_step": next_step, "final": final}
        values = {name: value for name, value in given.items() if value is not None}
        with self._claimed(trial.study_id) as tx:
            tx.execute(update(published_trials).where(self._of_trial(trial.id)).values(**values))

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

    def _of_trial(self, trial_id: int) -> ColumnElement[bool]:
        of_target = published_trials.c.target == self._target
        return and_(published_trials.c.trial_id == trial_id, of_target)

    @contextmanager
    def _claimed(self, study_id: int) -> Iterator[Connection]:
        """Begin a transaction that stops unless the claim is ours; it extends the claim."""
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
