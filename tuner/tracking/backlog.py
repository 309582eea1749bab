"""What of the ledger is not published yet, asked so that it is cheap when nothing is new."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Engine, and_, case, func, literal_column, null, or_, select, tuple_

from tuner.core.curves import Chunk
from tuner.core.outcome import RUNNING
from tuner.ledger.reading import read_trials
from tuner.ledger.records import TrialRecord
from tuner.ledger.tables import (
    SILENT_FOR,
    SILENT_SECONDS,
    attempts,
    chunks,
    published_studies,
    published_trials,
    studies,
    trials,
)

CHUNKS_AT_ONCE = 1000


class Mark(NamedTuple):
    """Where a study and its publication stand; while it stays the same, nothing is new."""

    study_id: int
    name: str
    revision: int
    external_id: str | None  # of the study, where it is published; None: not yet
    published: int  # the revision as of which it was last published; 0: never
    live: int  # the attempts that are live, told by the sum of their ids,
    steps: int  # and by the rows that their trials have
    silent: int  # attempts of which nothing has been measured for a while


@dataclass(frozen=True, kw_only=True)
class OpenTrial:
    """A trial that is not published to its end, and how far it is."""

    id: int
    number: int
    running: bool
    drawn: bool  # it has parameters
    steps: int
    begun: bool  # its counterpart perhaps exists
    external_id: str | None
    next_step: int  # rows below it are published


class Backlog:
    """What one target ("optuna" or "mlflow") lacks.

    Of each study it remembers the number below which all trials are published to their ends, so
    that a look at a long study reads its last trials only; a study that is published anew is
    looked at from its first trial on.
    """

    def __init__(self, engine: Engine, target: str) -> None:
        self._engine = engine
        self._target = target
        self._marks = _marks(target)  # made once: making it takes as long as asking it
        self._lowest: dict[int, tuple[int, int]] = {}  # by study: the number, the mark's revision

    def marks(self, names: Sequence[str] = ()) -> list[Mark]:
        """Read where the studies of these names, or all, stand; one small query."""
        query = self._marks
        if names:
            query = query.where(studies.c.name.in_(names))
        with self._engine.begin() as tx:
            return [Mark(**row._mapping) for row in tx.execute(query)]

    def open(self, mark: Mark) -> list[OpenTrial]:
        """Read the trials that are not published to their end, in the order of numbers."""
        lowest, published = self._lowest.get(mark.study_id, (0, 0))
        if mark.external_id is None or mark.published < published:
            lowest = 0
        here = and_(
            published_trials.c.trial_id == trials.c.id,
            published_trials.c.target == self._target,
        )
        query = (
            select(
                trials.c.id,
                trials.c.number,
                (trials.c.state == RUNNING).label("running"),
                trials.c.params.is_not(null()).label("drawn"),
                trials.c.steps,
                published_trials.c.trial_id.is_not(None).label("begun"),
                published_trials.c.external_id,
                func.coalesce(published_trials.c.next_step, 0).label("next_step"),
            )
            .outerjoin(published_trials, here)
            .where(
                trials.c.study_id == mark.study_id,
                trials.c.number >= lowest,
                or_(published_trials.c.final.is_(None), ~published_trials.c.final),
            )
            .order_by(trials.c.number)
        )
        if self._target == "mlflow":  # imported trials have no run, but a number in Optuna
            query = query.where(~trials.c.imported)
        ever = select(func.max(trials.c.number)).where(trials.c.study_id == mark.study_id)
        with self._engine.begin() as tx:
            last = tx.scalar(ever)
            found = [OpenTrial(**row._mapping) for row in tx.execute(query)]
        after = 0 if last is None else last + 1
        lowest = found[0].number if found else after
        self._lowest[mark.study_id] = (lowest, mark.published)
        return found

    def trials(self, ids: Sequence[int]) -> dict[int, TrialRecord]:
        """Read some trials whole, by their ids."""
        with self._engine.begin() as tx:
            return {trial.id: trial for trial in read_trials(tx, trials.c.id.in_(ids))}

    def environments(self, ids: Sequence[int]) -> dict[int, Mapping[str, Any]]:
        """Read the environment of the first attempt at each of some trials, by their ids."""
        query = select(attempts.c.trial_id, attempts.c.environment).where(
            attempts.c.trial_id.in_(ids), attempts.c.number == 1
        )
        with self._engine.begin() as tx:
            return {row.trial_id: row.environment for row in tx.execute(query)}

    def tracebacks(self, ids: Sequence[int]) -> dict[int, str]:
        """Read the last traceback of each of some trials that has any, by their ids."""
        query = (
            select(attempts.c.trial_id, attempts.c.traceback)
            .where(attempts.c.trial_id.in_(ids), attempts.c.traceback.is_not(None))
            .order_by(attempts.c.number)
        )
        with self._engine.begin() as tx:
            return {row.trial_id: row.traceback for row in tx.execute(query)}

    def chunks(self, wanted: Sequence[TrialRecord], rows: int) -> list[tuple[TrialRecord, Chunk]]:
        """Read the next chunks of trials that are not published, in order, up to so many rows.

        At least one, if there is any. Chunks that were committed after the trial was read are
        left out: its outcome says which of their points count.
        """
        by_id = {trial.id: trial for trial in wanted}
        keys = []
        with self._engine.begin() as tx:
            for row in tx.execute(self._unpublished(list(by_id))):
                trial = by_id[row.trial_id]
                if row.first_step < trial.steps or row.next_step == trial.steps == 0:
                    keys.append((row.trial_id, row.first_step))
                    rows -= row.next_step - row.first_step
                if rows <= 0:
                    break
            query = (
                select(chunks.c.trial_id, chunks.c.first_step, chunks.c.data)
                .where(tuple_(chunks.c.trial_id, chunks.c.first_step).in_(keys))
                .order_by(chunks.c.trial_id, chunks.c.first_step)
            )
            found = tx.execute(query).all() if keys else []
        return [(by_id[r.trial_id], Chunk.from_bytes(r.first_step, r.data)) for r in found]

    def _unpublished(self, ids: Sequence[int]) -> Any:
        here = and_(
            published_trials.c.trial_id == chunks.c.trial_id,
            published_trials.c.target == self._target,
        )
        return (
            select(chunks.c.trial_id, chunks.c.first_step, chunks.c.next_step)
            .join(published_trials, here)
            .where(
                chunks.c.trial_id.in_(ids),
                chunks.c.first_step >= published_trials.c.next_step,
            )
            .order_by(chunks.c.trial_id, chunks.c.first_step)
            .limit(CHUNKS_AT_ONCE)
        )


def _marks(target: str) -> Any:
    live = (  # as text: SQLite knows its index of live attempts by the very words
        select(
            trials.c.study_id,
            func.sum(attempts.c.id).label("ids"),
            func.sum(trials.c.steps).label("steps"),
            func.sum(case((SILENT_FOR > SILENT_SECONDS, 1), else_=0)).label("silent"),
        )
        .select_from(attempts)
        .join(trials, trials.c.id == attempts.c.trial_id)
        .where(literal_column(f"{attempts.name}.live"))
        .group_by(trials.c.study_id)
        .subquery()
    )
    here = and_(
        published_studies.c.study_id == studies.c.id,
        published_studies.c.target == target,
    )
    return (
        select(
            studies.c.id.label("study_id"),
            studies.c.name,
            studies.c.revision,
            published_studies.c.external_id,
            func.coalesce(published_studies.c.revision, 0).label("published"),
            func.coalesce(live.c.ids, 0).label("live"),
            func.coalesce(live.c.steps, 0).label("steps"),
            func.coalesce(live.c.silent, 0).label("silent"),
        )
        .outerjoin(published_studies, here)
        .outerjoin(live, live.c.study_id == studies.c.id)
        .order_by(studies.c.id)
    )


def batches(found: Sequence[OpenTrial], size: int) -> Iterator[Sequence[OpenTrial]]:
    """Cut what is open into pieces."""
    for first in range(0, len(found), size):
        yield found[first : first + size]
