"""Reading the ledger."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    Engine,
    LargeBinary,
    Row,
    Text,
    and_,
    case,
    false,
    func,
    null,
    or_,
    select,
    type_coerce,
)

from tuner.config import Parameter, StudySpec, misfits, unfit
from tuner.core import curves
from tuner.core.curves import LATEST, Chunk
from tuner.core.errors import NotFoundError, UnreadableError
from tuner.core.outcome import COMPLETED, DIVERGED, KINDS, PRUNED, RUNNING
from tuner.ledger.decoding import (
    attempt_of,
    checked,
    is_number,
    is_time,
    readable,
    searched_trial_of,
    studies_of,
    study_of,
    trial_of,
    unreadable_study_of,
)
from tuner.ledger.records import (
    FIXED,
    AttemptRecord,
    Changes,
    CheckpointRecord,
    Report,
    Searched,
    SearchedTrial,
    Silence,
    StudyIdentity,
    StudyRecord,
    TrialRecord,
    UnreadableStudy,
    is_count,
)
from tuner.ledger.retrying import RETRY_SECONDS, retry_on_disconnect
from tuner.ledger.rows import last_checkpoints, read_checkpoints
from tuner.ledger.tables import (
    IS_LIVE,
    IS_RUNNING,
    IS_VALUED,
    SILENT_FOR,
    SILENT_SECONDS,
    VIOLATION,
    attempts,
    checkpoints,
    chunks,
    database_time,
    has_live_attempt,
    probes,
    published_studies,
    published_trials,
    read_json,
    reports,
    studies,
    trials,
)

PORTION = 5000
"""Rows that are held at a time of a result that may be large."""
CURVES = 500
"""Curves that one statement reads."""
CANDIDATES = 10
"""Best trials that are read until one can be read."""
LAST = 500
"""Trials, those that changed last, that `status` reads to see whether they can be read."""
STATES, RANKED = (*KINDS, RUNNING), (COMPLETED, PRUNED, DIVERGED)
"""The states of trials, and those that rank first, in this order."""
SEARCHED = tuple(one.name for one in fields(SearchedTrial) if one.name != "reports")
NUMBER = SEARCHED.index("number")
TEXTS = tuple(name for name in SEARCHED if isinstance(trials.c[name].type, JSON))
"""The columns of trials that search reads; which of them is the number, and which hold JSON."""


class Reader:
    """Reads the ledger. Thread-safe: every call uses a connection of its own."""

    def __init__(self, engine: Engine, retry_timeout: float = RETRY_SECONDS) -> None:
        """Retry calls that lose their connection for `retry_timeout` seconds."""
        self.engine = engine
        self.retry_timeout = retry_timeout

    def versions(self, name: str) -> list[StudyRecord]:
        """Read all versions of a study, oldest first. Raises `NotFoundError`."""
        self.study(name)
        return [study for study in self.studies() if study.name == name]

    def study(self, name: str) -> StudyRecord:
        """Read the newest version of a study. Raises `NotFoundError` and `UnreadableError`."""
        return study_of(self._newest(name))

    def identity(self, name: str) -> StudyIdentity:
        """Read what names the newest version of a study. Raises `NotFoundError`."""
        row = self._newest(name)
        return unreadable_study_of(row) or study_of(row)

    @retry_on_disconnect
    def study_by_id(self, study_id: int) -> StudyRecord | None:
        """Read a study; return None if it was deleted. Raises `UnreadableError`."""
        with self._reading() as tx:
            row = tx.execute(select(studies).where(studies.c.id == study_id)).first()
        return None if row is None else study_of(row)

    @retry_on_disconnect
    def study_titled(self, title: str) -> StudyRecord | None:
        """Read the study with a title; return None if there is none. Raises `UnreadableError`."""
        name, _, version = title.rpartition(" v")
        wanted = and_(studies.c.name == title, studies.c.version == 1)
        if re.fullmatch("[0-9]{1,9}", version):
            later = and_(studies.c.name == name, studies.c.version == int(version))
            wanted = or_(wanted, later)
        with self._reading() as tx:
            row = tx.execute(select(studies).where(wanted)).first()
        return None if row is None else study_of(row)

    @retry_on_disconnect
    def _newest(self, name: str) -> Row[Any]:
        newest = select(studies).where(studies.c.name == name).order_by(studies.c.version.desc())
        with self._reading() as tx:
            row = tx.execute(newest).first()
            if row is None:
                names = tx.scalars(select(studies.c.name).order_by(studies.c.id)).all()
                known = (
                    ", ".join(dict.fromkeys(map(str, names)))
                    or "none yet; `tuner run FILE` makes one"
                )
                raise NotFoundError(f"there is no study {name!r}; studies here: {known}")
        return row

    @retry_on_disconnect
    def studies(self) -> list[StudyRecord]:
        """Read all studies that can be read, oldest first."""
        with self._reading() as tx:
            return studies_of(tx.execute(select(studies).order_by(studies.c.id)))

    def unreadable_studies(self) -> list[UnreadableStudy]:
        """Read why studies cannot be read, oldest first."""
        return self.sorted_studies()[1]

    @retry_on_disconnect
    def sorted_studies(self) -> tuple[list[StudyRecord], list[UnreadableStudy]]:
        """Read all studies, oldest first, and why others cannot be read."""
        known: list[StudyRecord] = []
        unreadable: list[UnreadableStudy] = []
        with self._reading() as tx:
            for row in tx.execute(select(studies).order_by(studies.c.id)):
                try:
                    known.append(study_of(row))
                except UnreadableError:
                    fault = unreadable_study_of(row)
                    assert fault is not None
                    unreadable.append(fault)
        return known, unreadable

    def unreadable_trials(self, study_id: int) -> list[tuple[int | None, str]]:
        """Read why trials of a study cannot be read, each with its number if it has one."""
        return self.sorted_trials(study_id)[1]

    @retry_on_disconnect
    def sorted_trials(
        self, study_id: int, most: int | None = None
    ) -> tuple[list[TrialRecord], list[tuple[int | None, str]]]:
        """Read the trials of a study in order, and why others, of these numbers, cannot be read.

        With `most`, read only so many of them, those that changed last.
        """
        found: list[TrialRecord] = []
        unreadable: list[tuple[int | None, str]] = []
        here = trials.c.study_id == study_id
        if most is not None:
            last = (trials.c.revision.desc(), trials.c.number.desc())
            here = trials.c.id.in_(select(trials.c.id).where(here).order_by(*last).limit(most))
        with self._reading() as tx:
            rows = tx.execute(select(trials).where(here).order_by(trials.c.number)).all()
            read = _trial_reader(tx, _reports(tx, here))
            for row in rows:
                try:
                    found.append(read(row))
                except UnreadableError as error:
                    number = row.number if is_count(row.number) else None
                    unreadable.append((number, str(error)))
        return found, unreadable

    @retry_on_disconnect
    def unreadable_rows(self, study_id: int) -> list[tuple[int | None, str]]:
        """Read why other rows of a study's trials cannot be read, each with its trial's number.

        The content of curves is not read.
        """
        of_study = trials.c.study_id == study_id
        queries = {
            table: select(*[c for c in table.c if not isinstance(c.type, LargeBinary)],
                          trials.c.number.label("trial"))
            .join(trials, trials.c.id == table.c.trial_id).where(of_study)
            for table in (attempts, chunks, reports, checkpoints, published_trials)
        } | {
            table: select(*table.c, null().label("trial")).where(table.c.study_id == study_id)
            for table in (probes, published_studies)
        }  # fmt: skip
        found: list[tuple[int | None, str]] = []
        with self._reading() as tx:
            for table, query in queries.items():
                for row in tx.execute(query):
                    number = row.trial if is_count(row.trial) else None
                    where = "" if number is None else f" of trial {number}"
                    try:
                        checked(f"a row{where} in {table.name}", table, row)
                    except UnreadableError as error:
                        found.append((number, str(error)))
        return found

    @retry_on_disconnect
    def ended(self, study_id: int) -> list[tuple[int, int]]:
        """Read the ids and numbers of the trials that have ended."""
        query = select(trials.c.id, trials.c.number).where(
            trials.c.study_id == study_id, trials.c.state != RUNNING
        )
        with self._reading() as tx:
            return [(row.id, row.number) for row in tx.execute(query) if is_count(row.number)]

    @retry_on_disconnect
    def last_checkpoint(self, trial_id: int) -> CheckpointRecord | None:
        """Read the last checkpoint of a trial; of one that has ended, the one that it keeps."""
        with self._reading() as tx:
            return last_checkpoints(tx, [trial_id]).get(trial_id)

    @retry_on_disconnect
    def changes(self, study_id: int, since: int, *, with_reports: bool = True) -> Changes:
        """Read the trials that changed after revision `since`, in one snapshot."""
        with self._reading() as tx:
            revision, attrs = _seen(tx, study_id)
            if revision == since:
                return Changes(revision=since, attrs=attrs)
            found = read_trials(tx, _changed(study_id, since), with_reports=with_reports)
        return Changes(revision=revision, attrs=attrs, trials=found)

    @retry_on_disconnect
    def searched(self, study_id: int, since: int) -> Searched:
        """Read for search the trials that changed after revision `since`, in one snapshot."""
        with self._reading() as tx:
            if since > 0:
                return _searched_since(tx, study_id, since)
            revision, attrs = _seen(tx, study_id)
            found = read_searched(tx, trials.c.study_id == study_id)
        return Searched(revision=revision, attrs=attrs, trials=found)

    @retry_on_disconnect
    def trials(self, study_id: int) -> list[TrialRecord]:
        """Read all trials of a study in the order of their numbers."""
        with self._reading() as tx:
            return read_trials(tx, trials.c.study_id == study_id)

    @retry_on_disconnect
    def completed(self, study_id: int) -> list[TrialRecord]:
        """Read the completed trials of a study in order of number, without their reports."""
        here = and_(trials.c.study_id == study_id, trials.c.state == COMPLETED)
        with self._reading() as tx:
            return read_trials(tx, here, with_reports=False)

    @retry_on_disconnect
    def numbered(self, study_id: int, numbers: Collection[int]) -> list[TrialRecord]:
        """Read the trials with these numbers, in order, without their reports."""
        here = and_(trials.c.study_id == study_id, trials.c.number.in_(numbers))
        with self._reading() as tx:
            return read_trials(tx, here, with_reports=False)

    @retry_on_disconnect
    def ranked(
        self, study: StudyRecord, most: int, states: Collection[str] = STATES
    ) -> list[TrialRecord]:
        """Read the first trials by `tuner.analysis.ranking.ranked`, without their reports."""
        of_them = and_(trials.c.study_id == study.id, trials.c.state.in_(states))
        place = case(*((trials.c.state == one, at) for at, one in enumerate(RANKED)), else_=3)
        reached = case((trials.c.state == PRUNED, -trials.c.steps), else_=0)
        order = (place, VIOLATION, reached, trials.c.value.is_(None), _loss(study), trials.c.number)
        query = select(trials.c.id).where(of_them).order_by(*order).limit(most + CANDIDATES)
        with self._reading() as tx:
            found = list(tx.scalars(query))
            read = {
                one.id: one for one in read_trials(tx, trials.c.id.in_(found), with_reports=False)
            }
        return [read[one] for one in found if one in read][:most]

    def best_first(self, study: StudyRecord) -> Iterator[TrialRecord]:
        """Yield the completed trials, best first, as `ranked`; read more only as they are asked."""
        most, seen = CANDIDATES, 0
        while True:
            found = self.ranked(study, most, (COMPLETED,))
            yield from found[seen:]
            if len(found) < most:
                return
            seen, most = len(found), 8 * most

    @retry_on_disconnect
    def first_ended(
        self, study_id: int, states: Collection[str], most: int
    ) -> dict[str, list[TrialRecord]]:
        """Read the first own trials, by number, that ended in each of these states."""
        place = func.row_number().over(
            partition_by=trials.c.state, order_by=trials.c.number
        ).label("place")  # fmt: skip
        here = and_(trials.c.study_id == study_id, ~trials.c.imported, trials.c.state.in_(states))
        numbered = select(trials.c.id, place).where(here).subquery()
        first = select(numbered.c.id).where(numbered.c.place <= most)
        found: dict[str, list[TrialRecord]] = {one: [] for one in states}
        with self._reading() as tx:
            for trial in read_trials(tx, trials.c.id.in_(first), with_reports=False):
                found[trial.state].append(trial)
        return found

    @retry_on_disconnect
    def trial(self, study_id: int, number: int) -> TrialRecord | None:
        """Read one trial; return None if there is none of that number or the study was deleted."""
        here = and_(trials.c.study_id == study_id, trials.c.number == number)
        with self._reading() as tx:
            return next(iter(read_trials(tx, here)), None)

    @retry_on_disconnect
    def live_attempts(self) -> dict[int, int]:
        """Count the live attempts of each study that has any, by its id."""
        query = (
            select(trials.c.study_id, func.count().label("live"))
            .select_from(attempts.join(trials))
            .where(IS_LIVE)
            .group_by(trials.c.study_id)
        )
        with self._reading() as tx:
            return {row.study_id: row.live for row in tx.execute(query)}

    @retry_on_disconnect
    def attempts(self, study_id: int, number: int | None = None) -> list[AttemptRecord]:
        """Read all attempts at a study's trials, or at the one of a number, oldest first."""
        query = (
            select(attempts)
            .join(trials)
            .where(trials.c.study_id == study_id)
            .order_by(attempts.c.id)
        )
        if number is not None:
            query = query.where(trials.c.number == number)
        with self._reading() as tx:
            rows = [row._asdict() for row in tx.execute(query)]
        return list(readable(attempt_of, rows))

    @retry_on_disconnect
    def expired(self, study_id: int) -> list[tuple[AttemptRecord, int]]:
        """Read the live attempts whose lease has expired, each with its trial's number."""
        query = (
            select(attempts, trials.c.number.label("trial_number"))
            .join(trials)
            .where(
                trials.c.study_id == study_id,
                IS_LIVE,
                attempts.c.expires_at < database_time(),
            )
        )
        with self._reading() as tx:
            rows = [dict(row._mapping) for row in tx.execute(query)]
        numbers = {row["id"]: row.pop("trial_number") for row in rows}
        return [
            (one, numbers[one.id])
            for one in readable(attempt_of, rows)
            if is_count(numbers[one.id])
        ]

    @retry_on_disconnect
    def silent(self, study_id: int) -> list[Silence]:
        """Read the trials that are held and whose last row is older than `SILENT_SECONDS`."""
        query = (
            select(trials.c.number, attempts.c.worker, SILENT_FOR.label("seconds"))
            .select_from(attempts)
            .join(trials, trials.c.id == attempts.c.trial_id)
            .where(trials.c.study_id == study_id, IS_LIVE, SILENT_FOR > SILENT_SECONDS)
            .order_by(trials.c.number)
        )
        with self._reading() as tx:
            return silences(tx.execute(query))

    @retry_on_disconnect
    def checkpoints(self, study_id: int) -> list[CheckpointRecord]:
        """Read the references to checkpoints, in order of trials and steps."""
        with self._reading() as tx:
            found = read_checkpoints(tx, trials.c.study_id == study_id)
        return sorted((record for _, _, record in found), key=lambda one: (one.trial, one.step))

    @retry_on_disconnect
    def curve(self, trial_id: int, since: int = 0) -> Chunk:
        """Read the committed curve of a trial, from the chunk that begins at step `since`.

        Raises `UnreadableError` if there is a gap or a chunk that cannot be read.
        """
        query = (
            select(chunks.c.first_step, chunks.c.data)
            .where(chunks.c.trial_id == trial_id, chunks.c.first_step >= since)
            .order_by(chunks.c.first_step)
        )
        with self._reading() as tx:
            rows = tx.execute(query).all()
        try:
            return curves.join(Chunk.from_bytes(row.first_step, row.data) for row in rows)
        except ValueError as error:
            raise UnreadableError(str(error)) from error

    @retry_on_disconnect
    def curves(self, trial_ids: Sequence[int]) -> dict[int, Chunk]:
        """Read the committed curves of some trials, by their ids, with one statement.

        A trial whose curve has a gap or cannot be read, which `doctor` reports, is left out.
        """
        query = (
            select(chunks.c.trial_id, chunks.c.first_step, chunks.c.data)
            .where(chunks.c.trial_id.in_(trial_ids))
            .order_by(chunks.c.trial_id, chunks.c.first_step)
        )
        parts: dict[int, list[tuple[int, bytes]]] = {one: [] for one in trial_ids}
        with self._reading() as tx:
            for row in tx.execute(query):
                parts[row.trial_id].append((row.first_step, row.data))
        whole = {}
        for one, found in parts.items():
            with suppress(ValueError):
                joined = curves.join(Chunk.from_bytes(*part) for part in found)
                if joined.first_step == 0:
                    whole[one] = joined
        return whole

    def each_curve(self, trial_ids: Sequence[int]) -> Iterator[tuple[int, Chunk | UnreadableError]]:
        """Yield the committed curve of each trial by its id, or why it cannot be read.

        A statement reads many of them; no more are held at a time.
        """
        for first in range(0, len(trial_ids), CURVES):
            some = trial_ids[first : first + CURVES]
            whole = self.curves(some)
            for one in some:
                try:
                    yield one, whole[one] if one in whole else self.curve(one)
                except UnreadableError as error:
                    yield one, error

    @retry_on_disconnect
    def counts(self, study_id: int) -> dict[str, int]:
        """Count a study's own trials by outcome, and those that are running or waiting."""
        live = is_held().label("live")
        query = (
            select(trials.c.state, live, func.count().label("trials"))
            .where(trials.c.study_id == study_id, ~trials.c.imported)
            .group_by(trials.c.state, live)
        )
        found = dict.fromkeys((*KINDS, RUNNING, "waiting"), 0)
        with self._reading() as tx:
            for row in tx.execute(query):
                state = "waiting" if row.state == RUNNING and not row.live else row.state
                if state in found:  # else the row cannot be read
                    found[state] += row.trials
        return found

    @retry_on_disconnect
    def count(self, study_id: int, states: Collection[str]) -> int:
        """Count a study's trials in these states, imported or not."""
        here = and_(trials.c.study_id == study_id, trials.c.state.in_(states))
        with self._reading() as tx:
            return int(tx.scalar(select(func.count()).select_from(trials).where(here)) or 0)

    @retry_on_disconnect
    def imported(self, study_id: int) -> int:
        """Count the trials that a study has imported from its earlier versions."""
        here = and_(trials.c.study_id == study_id, trials.c.imported)
        with self._reading() as tx:
            return int(tx.scalar(select(func.count()).select_from(trials).where(here)) or 0)

    @retry_on_disconnect
    def best(self, study: StudyRecord) -> TrialRecord | None:
        """Read the best completed trial, imported or not; of equals, the first.

        It is the feasible one with the best value, or the one that violates constraints least.
        """
        for number in self.ranking(study, CANDIDATES):
            trial = self.trial(study.id, number)
            if trial is not None:  # else it cannot be read
                return trial
        return None

    @retry_on_disconnect
    def ranking(self, study: StudyRecord, most: int) -> list[int]:
        """Read the numbers of the best completed trials, best first."""
        query = (
            select(trials.c.number)
            .where(trials.c.study_id == study.id, trials.c.state == COMPLETED, IS_VALUED)
            .order_by(VIOLATION, _loss(study), trials.c.number)
            .limit(most)
        )
        with self._reading() as tx:
            return [number for number in tx.scalars(query) if is_count(number)]

    @retry_on_disconnect
    def last_end(self, study_id: int) -> float | None:
        """Read when a study's last trial ended."""
        query = select(func.max(trials.c.ended_at)).where(
            trials.c.study_id == study_id, trials.c.ended_at <= LATEST
        )
        with self._reading() as tx:
            at = tx.scalar(query)
            return float(at) if is_time(at) else None

    @retry_on_disconnect
    def last_stopped(self, study_id: int, most: int) -> list[tuple[int, str, str]]:
        """Read number, outcome and reason of the last trials that did not complete."""
        query = (
            select(trials.c.number, trials.c.state, trials.c.reason)
            .where(trials.c.study_id == study_id, trials.c.state.not_in((COMPLETED, RUNNING)))
            .order_by(trials.c.ended_at.desc(), trials.c.number.desc())
            .limit(most)
        )
        with self._reading() as tx:
            rows = tx.execute(query).all()
        return [
            (row.number, row.state, str(row.reason or "")) for row in rows if row.state in KINDS
        ]

    @retry_on_disconnect
    def now(self) -> float:
        """Read the database's clock, in seconds since 1970."""
        with self._reading() as tx:
            return float(tx.scalar(select(database_time())) or 0.0)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self.engine.begin() as tx:
            yield tx


def read_trials(tx: Connection, where: Any, *, with_reports: bool = True) -> list[TrialRecord]:
    """Read trials in order of number, with their reports unless `with_reports` is false."""
    rows = tx.execute(select(trials).where(where).order_by(trials.c.number)).all()
    reported = _reports(tx, where) if with_reports else {}
    return list(readable(_trial_reader(tx, reported), rows))


def _trial_reader(
    tx: Connection, reported: Mapping[int, Sequence[Report]]
) -> Callable[[Row[*tuple[Any, ...]]], TrialRecord]:
    """Return the function that turns rows of trials, with these reports, into records."""

    @functools.cache
    def parameters(study_id: int) -> Sequence[Parameter] | None:
        spec = _spec(tx, study_id)
        return None if spec is None else spec.space.parameters()

    def read(row: Row[*tuple[Any, ...]]) -> TrialRecord:
        trial = trial_of(row._asdict(), reported.get(row.id, ()))
        if (known := parameters(trial.study_id)) is not None:
            refuse_misfit(trial, known)
        return trial

    return read


def _reports(tx: Connection, where: Any) -> dict[int, list[Report]]:
    """Read the reports of trials, by the trials' ids."""
    by_trial: dict[int, list[Report]] = {}
    query = (
        select(reports)
        .where(reports.c.trial_id.in_(select(trials.c.id).where(where)))
        .order_by(reports.c.trial_id, reports.c.step)
    )
    for row in tx.execute(query):
        by_trial.setdefault(row.trial_id, []).append(
            Report(step=row.step, value=row.value, pruned=row.pruned, reason=row.reason)
        )
    return by_trial


def refuse_misfit(trial: TrialRecord | SearchedTrial, parameters: Iterable[Parameter]) -> None:
    """Raise `UnreadableError` if a trial's parameters are none of its study's."""
    if trial.params is None:
        wrong = unfit(parameters, trial.attrs.get(FIXED, {}))
    else:
        wrong = misfits(parameters, trial.params)
    for name, expected in wrong.items():
        got = repr((trial.params or trial.attrs.get(FIXED, {})).get(name))[:60]
        raise UnreadableError(
            f"trial {trial.number} cannot be read: {name}: expected {expected:.200}, got {got}"
        )


def silences(rows: Iterable[Row[*tuple[Any, ...]]]) -> list[Silence]:
    """Return the silent trials of rows that can be read."""
    return [
        Silence(trial=row.number, worker=row.worker, seconds=float(row.seconds))
        for row in rows
        if is_count(row.number) and isinstance(row.worker, str) and is_number(row.seconds)
    ]


def _spec(tx: Connection, study_id: int) -> StudySpec | None:
    """Read the specification of a study; None if there is none that can be read."""
    row = tx.execute(select(studies).where(studies.c.id == study_id)).first()
    try:
        return None if row is None else study_of(row).spec
    except UnreadableError:
        return None


def _searched_since(tx: Connection, study_id: int, since: int) -> Searched:
    """Read the changes for search in one statement, since this is called several times a trial.

    There is a row for each report, for each trial without a report, or one row without a trial.
    Rows are sorted here: with ORDER BY, SQLite would read all trials by number. JSON is read once
    for each trial, not in each row.
    """
    of_study = and_(trials.c.study_id == studies.c.id, trials.c.revision > since)
    columns = [_as_text(trials.c[name]) for name in SEARCHED]
    query = (
        select(
            studies.c.revision, _as_text(studies.c.attrs), reports.c.step, reports.c.value, *columns
        )
        .select_from(studies.outerjoin(trials, of_study).outerjoin(reports))
        .where(studies.c.id == study_id)
    )
    found = tx.execute(query).all()
    by_trial: dict[int, dict[int, float]] = {}
    changed: dict[int, dict[str, Any]] = {}
    for _, _, step, value, *values in found:
        number = values[NUMBER]
        if number is None:
            continue
        if number not in changed:
            row = dict(zip(SEARCHED, values, strict=True))
            texts = {name: row[name] for name in TEXTS if row[name] is not None}
            changed[number] = row | {name: read_json(text) for name, text in texts.items()}
        if step is not None:
            by_trial.setdefault(number, {})[step] = value
    revision, of_the_study, *_ = found[0]
    return Searched(
        revision=revision,
        attrs=read_json(of_the_study),
        trials=_searched((row, by_trial.get(number, {})) for number, row in changed.items()),
    )


def _as_text(column: Column[Any]) -> ColumnElement[Any]:
    """Return a column whose JSON, if it holds any, is read as text."""
    if isinstance(column.type, JSON):
        return type_coerce(column, Text).label(column.name)
    return column


def _searched(
    found: Iterable[tuple[Mapping[str, Any], Mapping[int, float]]],
) -> list[SearchedTrial]:
    """Return what search reads of the trials that can be read, in order of number."""
    read = readable(searched_trial_of, found, " of the search")
    return sorted(read, key=lambda trial: trial.number)


def read_searched(tx: Connection, where: Any) -> list[SearchedTrial]:
    """Read what search needs of trials, in order of number, in portions.

    Reports come without their reasons, which are most of a study's bytes.
    """
    streamed = {"yield_per": PORTION}
    by_trial: dict[int, dict[int, float]] = {}
    steps: dict[int, int] = {}  # share one int a step among many reports
    query = (
        select(reports.c.trial_id, reports.c.step, reports.c.value)
        .where(reports.c.trial_id.in_(select(trials.c.id).where(where)))
        .order_by(reports.c.trial_id, reports.c.step)
    )
    for trial_id, step, value in tx.execute(query, execution_options=streamed):
        by_trial.setdefault(trial_id, {})[steps.setdefault(step, step)] = value
    columns = [trials.c[name] for name in SEARCHED]
    rows = tx.execute(
        select(trials.c.id, *columns).where(where).order_by(trials.c.number),
        execution_options=streamed,
    )
    return _searched(
        (dict(zip(SEARCHED, values, strict=True)), by_trial.get(trial_id, {}))
        for trial_id, *values in rows
    )


def _seen(tx: Connection, study_id: int) -> tuple[int, Mapping[str, Any]]:
    """Read a study's revision and the attributes that samplers keep on it.

    Raise `NotFoundError` if the study was deleted.
    """
    query = select(studies.c.revision, studies.c.attrs).where(studies.c.id == study_id)
    row = tx.execute(query).first()
    if row is None:
        raise NotFoundError("the study was deleted")
    return row.revision, row.attrs


def _loss(study: StudyRecord) -> Any:
    """Return the SQL expression of a trial's value, negated where a higher one is better."""
    return trials.c.value if study.spec.study.direction == "minimize" else -trials.c.value


def _changed(study_id: int, since: int) -> Any:
    return and_(trials.c.study_id == study_id, trials.c.revision > since)


def is_held() -> Any:
    """Return the SQL condition that a trial has a live attempt, of one that has ended false."""
    return case((IS_RUNNING, has_live_attempt(trials.c.id)), else_=false())
