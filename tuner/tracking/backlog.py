"""Unpublished parts of the ledger, with queries that are cheap when nothing is new."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Engine, and_, case, func, literal_column, null, or_, select, tuple_

from tuner.core import curves
from tuner.core.curves import Chunk
from tuner.core.errors import UnreadableError
from tuner.core.outcome import RUNNING
from tuner.core.text import as_count
from tuner.ledger.decoding import checked, environment_of, log_once, readable
from tuner.ledger.reading import read_trials
from tuner.ledger.records import LARGEST, TrialRecord, is_count, is_external_id
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
    """The progress of a study and of its publication; equal marks mean that nothing is new."""

    study_id: int
    name: str
    revision: int
    external_id: str | None  # of the study in the target; None: not published
    published: int  # the revision that was last published; 0: none
    live: int  # the sum of the ids of live attempts
    steps: int  # the sum of the steps of their trials
    silent: int  # live attempts without new measurements for a while


@dataclass(frozen=True, kw_only=True)
class OpenTrial:
    """A trial that is not completely published, and its progress."""

    id: int
    number: int
    running: bool
    drawn: bool  # parameters are drawn
    steps: int
    begun: bool  # its counterpart in the target may exist
    external_id: str | None
    next_step: int  # rows below it are published


class Backlog:
    """Reads what is not published to one target ("optuna" or "mlflow").

    For each study it remembers the number below which all trials are completely published, so
    that a long study costs a read of its last trials only. A republished study is read from its
    first trial.
    """

    def __init__(self, engine: Engine, target: str) -> None:
        self._engine = engine
        self._target = target
        self._marks = _marks(target)  # built once: building takes as long as executing
        self._unreadable: set[int] = set()  # ids of trials, left out from now on
        self._lowest: dict[
            int, tuple[int, int]
        ] = {}  # by study: the number, the published revision

    def marks(self, names: Sequence[str] = ()) -> list[Mark]:
        """Return the marks of the studies with these names, or of all; one small query."""
        query = self._marks
        if names:
            query = query.where(studies.c.name.in_(names))
        with self._engine.begin() as tx:
            return list(readable(_mark, tx.execute(query)))

    def open(self, mark: Mark) -> list[OpenTrial]:
        """Return the trials that are not completely published, ordered by number."""
        lowest, published = self._lowest.get(mark.study_id, (0, 0))
        if mark.external_id is None or mark.published < published:
            lowest = 0
        publication = and_(
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
            .outerjoin(published_trials, publication)
            .where(
                trials.c.study_id == mark.study_id,
                trials.c.number.between(lowest, LARGEST),
                trials.c.steps.between(0, LARGEST),
                or_(published_trials.c.final.is_(None), ~published_trials.c.final),
            )
            .order_by(trials.c.number)
        )
        if self._target == "mlflow":  # imported trials have no run
            query = query.where(~trials.c.imported)
        highest = select(func.max(trials.c.number)).where(
            trials.c.study_id == mark.study_id, trials.c.number <= LARGEST
        )
        with self._engine.begin() as tx:
            last = tx.scalar(highest)
            rows = [row for row in tx.execute(query) if row.id not in self._unreadable]
        found = list(readable(self._open_trial, rows))
        after = 0 if last is None else last + 1
        lowest = found[0].number if found else after
        self._lowest[mark.study_id] = (lowest, mark.published)
        return found

    def trials(self, ids: Sequence[int]) -> dict[int, TrialRecord]:
        """Return trials by their ids, without those that cannot be read."""
        with self._engine.begin() as tx:
            found = {trial.id: trial for trial in read_trials(tx, trials.c.id.in_(ids))}
        self._unreadable |= set(ids) - found.keys()
        return found

    def leave_out(self, trial: TrialRecord, error: UnreadableError) -> None:
        """Publish a trial that cannot be published no more in this process."""
        log_once(f"trial {trial.number} of study {trial.study_id} is not published: {error}")
        self._unreadable.add(trial.id)

    def environments(self, wanted: Sequence[TrialRecord]) -> dict[int, Mapping[str, Any]]:
        """Return the environment of the first attempt at each trial, by trial id.

        A trial whose environment cannot be read is left out.
        """
        query = select(attempts.c.trial_id, attempts.c.environment).where(
            attempts.c.trial_id.in_([one.id for one in wanted]), attempts.c.number == 1
        )
        with self._engine.begin() as tx:
            stored = {row.trial_id: row.environment for row in tx.execute(query)}
        found = {}
        for trial in wanted:
            try:
                found[trial.id] = environment_of(trial.number, stored.get(trial.id))
            except UnreadableError as error:
                self.leave_out(trial, error)
        return found

    def tracebacks(self, ids: Sequence[int]) -> dict[int, str]:
        """Return the last traceback of each trial that has any, by trial id."""
        query = (
            select(attempts.c.trial_id, attempts.c.traceback)
            .where(attempts.c.trial_id.in_(ids), attempts.c.traceback.is_not(None))
            .order_by(attempts.c.number)
        )
        with self._engine.begin() as tx:
            return {row.trial_id: str(row.traceback) for row in tx.execute(query)}

    def chunks(self, wanted: Sequence[TrialRecord], rows: int) -> list[tuple[TrialRecord, Chunk]]:
        """Return the next unpublished chunks of trials, in order, limited to about `rows` rows.

        At least one chunk is returned if there is any, and with it one without rows that follows
        it, which a trial ends with if its last evaluation was late. Chunks committed after the
        trial was read are omitted: which of their points count depends on the outcome. A chunk that
        cannot be read is an empty one at the end of its trial.
        """
        by_id = {trial.id: trial for trial in wanted}
        keys = []
        with self._engine.begin() as tx:
            for index, row in enumerate(tx.execute(self._unpublished(list(by_id)))):
                trial = by_id[row.trial_id]
                if not (is_count(row.first_step) and is_count(row.next_step)):
                    continue
                has_rows = row.first_step < trial.steps
                if has_rows and (rows <= 0 or index == CHUNKS_AT_ONCE):
                    break
                if has_rows or (row.next_step == trial.steps and trial.state != RUNNING):
                    keys.append((row.trial_id, row.first_step))
                    rows -= row.next_step - row.first_step
            query = (
                select(chunks.c.trial_id, chunks.c.first_step, chunks.c.next_step, chunks.c.data)
                .where(tuple_(chunks.c.trial_id, chunks.c.first_step).in_(keys))
                .order_by(chunks.c.trial_id, chunks.c.first_step)
            )
            found = tx.execute(query).all() if keys else []
        return [(by_id[row.trial_id], _chunk(row, by_id[row.trial_id])) for row in found]

    def _open_trial(self, row: Any) -> OpenTrial:
        """Return a trial that is not completely published. Raise `UnreadableError`."""
        key = row.external_id
        known = is_count(as_count(key)) if self._target == "optuna" else is_external_id(key)
        if not ((known or key is None) and is_count(row.next_step)):
            raise UnreadableError(f"the publication of trial {row.number} cannot be read")
        return OpenTrial(**row._mapping)

    def _unpublished(self, ids: Sequence[int]) -> Any:
        publication = and_(
            published_trials.c.trial_id == chunks.c.trial_id,
            published_trials.c.target == self._target,
        )
        return (
            select(chunks.c.trial_id, chunks.c.first_step, chunks.c.next_step)
            .join(published_trials, publication)
            .where(
                chunks.c.trial_id.in_(ids),
                chunks.c.first_step >= published_trials.c.next_step,
            )
            .order_by(chunks.c.trial_id, chunks.c.first_step)
            .limit(CHUNKS_AT_ONCE + 1)
        )


def _chunk(row: Any, trial: TrialRecord) -> Chunk:
    """Return a chunk; one that cannot be read is empty, and at the end of its trial."""
    try:
        chunk = Chunk.from_bytes(row.first_step, row.data)
        if chunk.next_step == row.next_step and (len(chunk.times) or row.next_step == trial.steps):
            return chunk
        error = ValueError(f"rows from step {row.first_step} on are not as many as expected")
    except ValueError as found:
        error = found
    log_once(f"trial {trial.number} of study {trial.study_id}: {error}; they are not published")
    return curves.empty(trial.steps)


def _mark(row: Any) -> Mark:
    """Return a mark. Raise `UnreadableError`."""
    checked(f"study {row.name!r:.60}", studies, row)
    counts = (row.published, row.live, row.steps, row.silent)
    is_known = row.external_id is None or is_external_id(row.external_id)
    if not (is_known and all(isinstance(one, int) for one in counts)):
        raise UnreadableError(f"the publication of study {row.name!r:.60} cannot be read")
    return Mark(**row._mapping)


def _marks(target: str) -> Any:
    live = (  # `live` as literal text, since SQLite matches its partial index textually
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
    publication = and_(
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
        .outerjoin(published_studies, publication)
        .outerjoin(live, live.c.study_id == studies.c.id)
        .order_by(studies.c.id)
    )


def batches(trials: Sequence[OpenTrial], size: int) -> Iterator[Sequence[OpenTrial]]:
    """Yield consecutive batches of at most `size` trials."""
    for first in range(0, len(trials), size):
        yield trials[first : first + size]
