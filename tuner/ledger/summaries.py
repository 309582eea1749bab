"""Summaries of many studies at a time; the number of statements does not depend on how many."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, case, func, or_, select, tuple_

from tuner.core.outcome import COMPLETED, KINDS, RUNNING
from tuner.ledger import exclusions
from tuner.ledger.decoding import (
    environment_of,
    is_number,
    is_time,
    readable,
    studies_of,
    trial_of,
)
from tuner.ledger.exclusions import Exclusion
from tuner.ledger.publications import Publications
from tuner.ledger.reading import CANDIDATES, Reader, is_held, silences
from tuner.ledger.records import Silence, StudyRecord, is_count
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import (
    IS_LIVE,
    IS_RUNNING,
    IS_VALUED,
    SILENT_FOR,
    SILENT_SECONDS,
    VIOLATION,
    attempts,
    last_end_of_trials,
    probes,
    published_trials,
    studies,
    trials,
)


@dataclass(frozen=True, kw_only=True)
class BestTrial:
    """The best completed trial of a study."""

    number: int
    value: float
    params: Mapping[str, Any]
    run_id: str | None  # of its MLflow run; None until it is published
    violation: float | None = None  # of the study's constraints; None: it has none

    def as_json(self) -> dict[str, Any]:
        """Return what commands print of it with `--json`."""
        found = asdict(self)
        if self.violation is None:
            del found["violation"]
        return found


@dataclass(kw_only=True)
class Summary:
    """The state of one study, apart from its record."""

    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys((*KINDS, RUNNING, "waiting"), 0)
    )
    imported: int = 0
    best: BestTrial | None = None
    # (worker, its trial's number, the environment of the attempt)
    workers: list[tuple[str, int, Mapping[str, Any]]] = field(default_factory=list)
    silent: list[Silence] = field(default_factory=list)
    probe: Mapping[str, Any] | None = None  # the result of its probe
    excluded: list[Exclusion] = field(default_factory=list)  # workers that leave it alone


@retry_on_disconnect
def summaries(ledger: Reader, of: Sequence[StudyRecord]) -> dict[int, Summary]:
    """Read the summaries of studies, by their ids, as of one moment."""
    found = {study.id: Summary() for study in of}
    with ledger.engine.begin() as tx:
        _count(tx, found)
        _find_best(tx, found, of)
        _find_workers(tx, found)
        for study_id, excluded in exclusions.read(tx, found).items():
            found[study_id].excluded = excluded
        query = select(probes.c.study_id, probes.c.result).where(probes.c.study_id.in_(found))
        for row in tx.execute(query):
            found[row.study_id].probe = row.result if isinstance(row.result, dict) else None
    return found


def best_trial(ledger: Reader, study: StudyRecord) -> BestTrial | None:
    """Read the best completed trial of one study, as a summary has it."""
    found = ledger.best(study)
    if found is None or found.value is None:
        return None
    runs = Publications(ledger.engine, "mlflow").external_ids(study.id, [found.number])
    return BestTrial(
        number=found.number,
        value=found.value,
        params=found.params or {},
        run_id=runs.get(found.number),
        violation=found.violation,
    )


@retry_on_disconnect
def last_activity(ledger: Reader, names: Collection[str] | None = None) -> dict[str, float]:
    """Read when a trial of each study last ended or a version of it was created, by its name.

    With `names`, read only those studies.
    """
    query = select(studies.c.name, studies.c.created_at, last_end_of_trials().label("ended_at"))
    if names is not None:
        query = query.where(studies.c.name.in_(names))
    found: dict[str, float] = {}
    with ledger.engine.begin() as tx:
        for row in tx.execute(query):
            for at in (row.created_at, row.ended_at):
                if is_number(at):  # else it cannot be read
                    found[row.name] = max(found.get(row.name, at), at)
    return found


@retry_on_disconnect
def notified(ledger: Reader) -> list[StudyRecord]:
    """Read the studies that notify somebody, each in its newest version."""
    c = studies.c
    newest = select(c.name, func.max(c.version)).group_by(c.name)
    named = c.spec.like('%"TUNER_NOTIFY_%')  # few have any, and the others need not be read
    query = select(studies).where(tuple_(c.name, c.version).in_(newest), named).order_by(c.id)
    with ledger.engine.begin() as tx:
        found = studies_of(tx.execute(query).all())
    return [one for one in found if one.spec.notify.webhook or one.spec.notify.apprise]


@retry_on_disconnect
def recent(ledger: Reader, since: float) -> list[StudyRecord]:
    """Read the studies in which something has ended since then or runs now, each as `notified`."""
    c = studies.c
    newest = select(c.name, func.max(c.version)).group_by(c.name)
    ended = select(trials.c.study_id).where(trials.c.ended_at >= since)
    running = select(trials.c.study_id).join(attempts).where(IS_LIVE)
    active = or_(c.created_at >= since, c.id.in_(ended), c.id.in_(running))
    query = select(studies).where(tuple_(c.name, c.version).in_(newest), active).order_by(c.id)
    with ledger.engine.begin() as tx:
        return studies_of(tx.execute(query).all())


@retry_on_disconnect
def last_attempt(ledger: Reader, study_id: int) -> float:
    """Read when an attempt at a trial of a study last began or ended; 0 if there was none."""
    at = func.max(func.coalesce(attempts.c.ended_at, attempts.c.started_at))
    query = select(at).join(trials, trials.c.id == attempts.c.trial_id)
    with ledger.engine.begin() as tx:
        found = tx.scalar(query.where(trials.c.study_id == study_id))
    return float(found) if found is not None and is_time(found) else 0.0


def _count(tx: Connection, found: Mapping[int, Summary]) -> None:
    """Count the trials of each study by outcome, and those running and waiting."""
    live = is_held().label("live")
    columns = (trials.c.study_id, trials.c.imported, trials.c.state, live)
    query = (
        select(*columns, func.count().label("trials"))
        .where(trials.c.study_id.in_(found))
        .group_by(*columns)
    )
    for row in tx.execute(query):
        summary = found[row.study_id]
        if row.imported:
            summary.imported += row.trials
        else:
            state = "waiting" if row.state == RUNNING and not row.live else row.state
            if state in summary.counts:  # else the row cannot be read
                summary.counts[state] += row.trials


def _find_best(tx: Connection, found: Mapping[int, Summary], of: Sequence[StudyRecord]) -> None:
    """Find the best completed trial of each study; of equal ones the first."""
    maximized = [one.id for one in of if one.spec.study.direction == "maximize"]
    loss = case((trials.c.study_id.in_(maximized), -trials.c.value), else_=trials.c.value)
    rank = func.row_number().over(
        partition_by=trials.c.study_id, order_by=(VIOLATION, loss, trials.c.number)
    )
    ranked = (  # without the wide columns, since all completed trials are sorted
        select(trials.c.id, rank.label("rank"))
        .where(trials.c.study_id.in_(found), trials.c.state == COMPLETED, IS_VALUED)
        .subquery()
    )
    is_its_run = (published_trials.c.trial_id == ranked.c.id) & (
        published_trials.c.target == "mlflow"
    )
    query = (
        select(trials, published_trials.c.external_id)
        .select_from(
            ranked.join(trials, trials.c.id == ranked.c.id).outerjoin(published_trials, is_its_run)
        )
        .where(ranked.c.rank <= CANDIDATES)
        .order_by(trials.c.study_id, ranked.c.rank)
    )
    rows = [row._asdict() for row in tx.execute(query)]
    runs = {row["id"]: row.pop("external_id") for row in rows}
    for trial in readable(trial_of, rows):
        summary, run_id = found[trial.study_id], runs[trial.id]
        if summary.best is None and trial.value is not None:
            summary.best = BestTrial(
                number=trial.number,
                value=trial.value,
                params=trial.params or {},
                run_id=run_id if isinstance(run_id, str) else None,
                violation=trial.violation,
            )


def _environment_of(row: Any) -> Mapping[str, Any]:
    return environment_of(row.trial_id, row.environment)


def _find_workers(tx: Connection, found: Mapping[int, Summary]) -> None:
    """Find the workers of each study, and those that have reported nothing for a long time."""
    held = (
        select(
            trials.c.study_id,
            trials.c.number,
            trials.c.id.label("trial_id"),
            attempts.c.worker,
            attempts.c.environment,
        )
        .join(attempts, attempts.c.trial_id == trials.c.id)
        .where(trials.c.study_id.in_(found), IS_RUNNING, IS_LIVE)
        .order_by(attempts.c.id)
    )
    for row in tx.execute(held):
        if isinstance(row.worker, str) and is_count(row.number):  # else it cannot be read
            known = next(readable(_environment_of, [row]), {})
            found[row.study_id].workers.append((row.worker, row.number, known))
    silent = (
        select(trials.c.study_id, trials.c.number, attempts.c.worker, SILENT_FOR.label("seconds"))
        .join(attempts, attempts.c.trial_id == trials.c.id)
        .where(trials.c.study_id.in_(found), IS_RUNNING, IS_LIVE, SILENT_FOR > SILENT_SECONDS)
        .order_by(trials.c.number)
    )
    for row in tx.execute(silent):
        found[row.study_id].silent += silences([row])
