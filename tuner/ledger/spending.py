"""What studies have spent: the time of workers, steps, and the steps that pruning has saved.

The time is that of workers, however many trials one trains together: overlapping attempts of one
worker count once. Steps of branches, which pruning costs, follow from the rungs that were reached.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Text, case, cast, func, select

from tuner.config import Branching, TrialSettings, settings_of
from tuner.core.curves import LATEST
from tuner.core.errors import WorkloadError
from tuner.core.outcome import PRUNED
from tuner.ledger.decoding import is_number
from tuner.ledger.reading import Reader
from tuner.ledger.records import StudyRecord, is_count, sizes_of
from tuner.ledger.retrying import retry_on_disconnect
from tuner.ledger.tables import attempts, database_time, read_json, reports, trials


@dataclass(frozen=True, kw_only=True)
class Spend:
    """What a study, or several together, have spent."""

    seconds: float = 0.0  # of workers
    gpu_seconds: float = 0.0  # those on GPUs, times the ranks of a trial
    trials: int = 0
    steps: int = 0  # of trials
    branch_steps: int = 0  # of copies of trials, by which they were judged
    pruned_steps: int = 0  # that pruned trials were not trained for

    @property
    def saved_steps(self) -> int:
        """The steps that pruning has saved, net of branches; negative if those cost more."""
        return self.pruned_steps - self.branch_steps

    def __add__(self, other: Spend) -> Spend:
        """Return both together."""
        one, more = asdict(self), asdict(other)
        return Spend(**{name: one[name] + more[name] for name in one})

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return asdict(self) | {"saved_steps": self.saved_steps}


@retry_on_disconnect
def spending(ledger: Reader, of: Sequence[StudyRecord]) -> dict[int, Spend]:
    """Read what studies have spent, by their ids; trials of earlier versions are not theirs."""
    ids = [study.id for study in of]
    branching = [study.id for study in of if isinstance(study.spec.judge, Branching)]
    varied = [study.id for study in of if _is_varied(study)]
    pruned = select(trials.c.steps, *_columns(varied)).where(
        trials.c.study_id.in_(ids), ~trials.c.imported, trials.c.state == PRUNED
    )
    rungs = (
        select(reports.c.step.label("steps"), *_columns(varied))
        .select_from(reports.join(trials))
        .where(trials.c.study_id.in_(branching), ~trials.c.imported)
    )
    with ledger.engine.begin() as tx:
        seconds = _seconds(tx, ids)
        steps = _steps(tx, ids)
        stopped, reported = _grouped(tx, pruned), _grouped(tx, rungs) if branching else {}
    found = {}
    for study in of:
        horizons = _Horizons(study)
        took, (count, made) = seconds.get(study.id, 0.0), steps.get(study.id, (0, 0))
        found[study.id] = Spend(
            seconds=took,
            gpu_seconds=_of_gpus(study, took),
            trials=count,
            steps=made,
            branch_steps=horizons.branch_steps(reported.get(study.id, [])),
            pruned_steps=horizons.pruned_steps(stopped.get(study.id, [])),
        )
    return found


def attempt_seconds(ledger: Reader, study: StudyRecord) -> dict[int, float]:
    """Read how long the ended attempts at each trial have taken, by the trial's number."""
    took = func.sum(attempts.c.ended_at - attempts.c.started_at).label("seconds")
    query = (
        select(trials.c.number, took)
        .select_from(attempts.join(trials))
        .where(trials.c.study_id == study.id, attempts.c.ended_at.is_not(None))
        .group_by(trials.c.number)
    )
    with ledger.engine.begin() as tx:
        return {
            row.number: row.seconds
            for row in tx.execute(query)
            if is_count(row.number) and is_number(row.seconds)
        }


def _seconds(tx: Connection, ids: Sequence[int]) -> dict[int, float]:
    """Return the time of workers by study: of each worker the length of the union of its spans."""
    began, ended = attempts.c.started_at, func.coalesce(attempts.c.ended_at, database_time())
    spans = (
        select(
            trials.c.study_id,
            began.label("began"),
            ended.label("ended"),
            # up to which the spans before have covered the time
            func.max(ended)
            .over(
                partition_by=(trials.c.study_id, attempts.c.worker),
                order_by=(began, attempts.c.id),
                rows=(None, -1),
            )
            .label("until"),
        )
        .select_from(attempts.join(trials))
        .where(trials.c.study_id.in_(ids), began.between(0, LATEST), ended.between(0, LATEST))
        .subquery()
    )
    start = case((spans.c.until > spans.c.began, spans.c.until), else_=spans.c.began)
    covered = case((spans.c.ended > start, spans.c.ended - start), else_=0.0)
    query = select(spans.c.study_id, func.sum(covered).label("seconds")).group_by(spans.c.study_id)
    return {row.study_id: float(row.seconds) for row in tx.execute(query)}


def _steps(tx: Connection, ids: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Return the numbers of own trials and of their steps, by study."""
    count, steps = func.count().label("trials"), func.sum(trials.c.steps).label("steps")
    query = (
        select(trials.c.study_id, count, steps)
        .where(trials.c.study_id.in_(ids), ~trials.c.imported)
        .group_by(trials.c.study_id)
    )
    return {
        row.study_id: (row.trials, int(row.steps))
        for row in tx.execute(query)
        if is_number(row.steps) or isinstance(row.steps, int)
    }


def _is_varied(study: StudyRecord) -> bool:
    """Return whether the trials of a study may have several batch sizes, and so horizons."""
    return any(one.name == "batch_size" for one in study.spec.space.parameters())


def _columns(varied: Sequence[int]) -> tuple[Any, ...]:
    """Return the study of a trial and its parameters as text, if its study is one of these."""
    drawn = case((trials.c.study_id.in_(varied), cast(trials.c.params, Text)), else_="{}")
    return trials.c.study_id, drawn.label("drawn")


class _Steps(NamedTuple):
    """Some trials with the same steps, of the same parameters where these make a difference."""

    steps: int
    params: Mapping[str, Any]
    trials: int


def _grouped(tx: Connection, query: Any) -> dict[int, list[_Steps]]:
    """Return how many trials of a query have the same steps, by study."""
    each = query.where(trials.c.params.is_not(None)).subquery()
    columns = (each.c.study_id, each.c.drawn, each.c.steps)
    found = defaultdict(list)
    for row in tx.execute(select(*columns, func.count().label("trials")).group_by(*columns)):
        params = read_json(row.drawn)
        if is_count(row.steps) and isinstance(params, dict):
            found[row.study_id].append(_Steps(row.steps, params, row.trials))
    return found


class _Horizons:
    """Horizons and rungs of a study's trials, which depend on their batch size at most."""

    def __init__(self, study: StudyRecord) -> None:
        self._study = study
        self._known: dict[str, TrialSettings | None] = {}

    def of(self, params: Mapping[str, Any]) -> TrialSettings | None:
        """Return the settings of a trial; None of one with content that tuner never writes."""
        key = repr(params.get("batch_size"))
        if key not in self._known:
            try:
                found = settings_of(self._study.spec, params, *sizes_of(self._study.workload))
            except (ArithmeticError, AssertionError, TypeError, ValueError, WorkloadError):
                found = None
            self._known[key] = found
        return self._known[key]

    def pruned_steps(self, rows: Iterable[_Steps]) -> int:
        """Return the steps that these pruned trials were not trained for."""
        found = ((self.of(row.params), row) for row in rows)
        return sum(
            row.trials * max(0, one.steps - row.steps) for one, row in found if one is not None
        )

    def branch_steps(self, reports: Iterable[_Steps]) -> int:
        """Return the steps of the branches at the rungs that were reported."""
        judge, total = self._study.spec.judge, 0
        if not isinstance(judge, Branching):
            return 0
        for row in reports:
            one = self.of(row.params)
            rungs = {} if one is None else {place: step for step, place in one.rungs.items()}
            if row.steps in rungs:
                total += row.trials * judge.branch_steps(rungs[row.steps])
        return total


def _of_gpus(study: StudyRecord, seconds: float) -> float:
    """Return the time of GPUs; ranks on all GPUs of a machine count as one, as nobody knows."""
    ranks = study.spec.workload.processes
    on_gpus = study.spec.training.device != "cpu"
    return seconds * (ranks if isinstance(ranks, int) else 1) if on_gpus else 0.0
