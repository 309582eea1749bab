"""The records that are read from the ledger, one kind a table; all are frozen."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from tuner.config import GP, TPE, OptunaGP, ParameterValue, StudySpec, horizon_of
from tuner.core.curves import Chunk
from tuner.core.outcome import RUNNING, Outcome
from tuner.core.text import project_of
from tuner.ledger.leases import ATTEMPTS, Lease, LeaseTable

OPEN, PAUSED, STOPPED, ENDED = "open", "paused", "stopped", "ended"
"""The states of a study; workers take trials of open ones. `ENDED` is by a rule of its budget."""
REASON, COUNTS_FROM = "tuner:reason", "tuner:counts_from"
"""Attributes of a study: why it is not open; the first trial that the circuit breaker counts."""
RANGES = "tuner:ranges"
"""Another one: the active ranges of its learning rate, see `tuner.ledger.ranges`."""
FIXED, RETRIED = "fixed_params", "failed_trial"
"""Optuna's attributes of a trial that was enqueued, some or all of whose parameters are fixed, and
of one that repeats a failed trial, with its number."""
ADDED, ENQUEUED, RETRY, EXTENSION, CONFIRMATION = (
    "tuner:added",
    "enqueued",
    "retry",
    "extension",
    "confirmation",
)
"""An attribute of a trial that a person added, see `tuner.ledger.adding`, and its values."""
HISTORY = "retry_history"
"""Optuna's attribute of a retry: the failed trials before it, the oldest first."""
PARENT, SEED, ROUND = "tuner:parent", "tuner:seed", "tuner:round"
"""Attributes of a trial that extends another one or trains it again: that one's study and number,
its seed, and the round of the race that it is trained for."""
CONTINUED = "tuner:continued"
"""Another one, of a trial that continues the other one's checkpoint: the step that it began at."""
EXCESS = "constraints:"
"""Optuna's prefix of the attributes of a trial by how much it exceeds each constraint."""
DECIDED = "tuner:decided"
"""An attribute of a study: how many trials it had when its decision was complete."""

FINISHED, INTERRUPTED, STALE, RAISED, OUT_OF_MEMORY = (
    "finished",
    "interrupted",
    "stale",
    "failed",
    "out_of_memory",
)
"""How attempts end: with the trial's outcome; asked to stop; lost with their worker; by an
exception of the workload; by an exception that smaller micro-batches may avoid."""


@functools.lru_cache(maxsize=256)
def specification(text: str) -> StudySpec:
    """Validate a specification as it is stored, once: it is read before every trial.

    Version 0.1.0 stored no `start` of tpe and of gp, which were Optuna's with a random start; its
    studies keep them.
    """
    spec = StudySpec.model_validate_json(text)
    sampler = spec.search.sampler
    if not isinstance(sampler, TPE | GP) or "start" in sampler.model_fields_set:
        return spec
    known: TPE | OptunaGP
    if isinstance(sampler, TPE):
        known = sampler.model_copy(update={"start": "random"})
    else:
        known = OptunaGP(name="optuna_gp", startup_trials=sampler.startup_trials)
    search = spec.search.model_copy(update={"sampler": known})
    return spec.model_copy(update={"search": search})


LARGEST = 2**31 - 1
"""Of the whole numbers in the ledger: the limit of PostgreSQL's integers."""

LARGEST_ID = 2**63 - 1
"""Of the ids: that of SQLite, which gives a new row the largest one of the table and 1."""


EXTERNAL_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,255}")


def is_external_id(value: object) -> TypeGuard[str]:
    """Return whether it may be an id of MLflow's or Optuna's; MLflow refuses all others."""
    return isinstance(value, str) and EXTERNAL_ID.fullmatch(value) is not None


def is_count(value: object) -> bool:
    """Return whether a value is a whole number from 0 to `LARGEST`; SQLite stores any type."""
    return type(value) is int and 0 <= value <= LARGEST


def is_id(value: object) -> bool:
    """Return whether a value may be the id of a row."""
    return type(value) is int and 0 <= value <= LARGEST_ID


@dataclass(frozen=True, kw_only=True)
class StudyIdentity:
    """What names a study, also one that cannot be read."""

    id: int
    name: str
    version: int

    @property
    def title(self) -> str:
        """What Optuna's study and MLflow's experiment are called; no two studies share one."""
        return titled(self.name, self.version)

    @property
    def project(self) -> str:
        """The project that it belongs to."""
        return project_of(self.name)


@dataclass(frozen=True, kw_only=True)
class UnreadableStudy(StudyIdentity):
    """A study whose row cannot be read."""

    why: str  # a clause without full stop


@dataclass(frozen=True, kw_only=True)
class StudyRecord(StudyIdentity):
    """One row of `tuner_studies`."""

    digest: str  # of the specification without its budget
    spec: StudySpec
    state: str
    rungs: tuple[int, ...]
    workload: Mapping[str, Any]
    settled: Mapping[str, Any] | None
    attrs: Mapping[str, Any]
    limit: int
    reserved: int
    revision: int
    created_at: float

    @property
    def reason(self) -> str | None:
        """Why it is paused or stopped; None while it is open."""
        return self.attrs.get(REASON)

    def shown_state(self, counts: Mapping[str, int]) -> str:
        """Return the state, "ended" if the budget is spent; `counts` are those of its trials."""
        idle = not counts[RUNNING] and not counts["waiting"]
        spent = self.state == OPEN and self.reserved >= self.limit
        return ENDED if idle and spent else self.state

    @property
    def deciding_trials(self) -> int:
        """The trials that are reserved for deciding; those of the search are not spent on it."""
        return reserved_for_deciding(self.spec, self.limit)

    @property
    def deciding_share(self) -> float:
        """The share of the budget that is reserved for deciding."""
        return self.deciding_trials / self.spec.budget.trials

    @property
    def threads(self) -> int:
        """CPU threads of its trials: as settled, else as its file says, else one."""
        if self.settled is not None:
            return int(self.settled["threads"])
        asked = self.spec.training.threads
        return 1 if asked == "auto" else asked

    def horizon(self, params: Mapping[str, ParameterValue] | None) -> int:
        """Return the steps of a trial; None: of one whose parameters are not drawn yet."""
        return horizon_of(self.spec, params or {}, *sizes_of(self.workload))


def sizes_of(workload: Mapping[str, Any]) -> tuple[int | None, bool]:
    """Return the training rows of a study's workload, and whether an incomplete batch is kept."""
    return workload.get("training_rows"), bool(workload.get("keeps_last"))


def reserved_for_deciding(spec: StudySpec, limit: int) -> int:
    """Return how many trials of a budget are reserved for deciding, beside `limit` for the search.

    A study that had spent its budget on the search before it had a share for deciding has none.
    """
    return max(0, min(spec.deciding_trials, spec.budget.trials - limit))


def titled(name: str, version: int) -> str:
    """Return the title of a version of a study."""
    return name if version == 1 else f"{name} v{version}"


def excess_attrs(excesses: Mapping[str, float]) -> dict[str, float]:
    """Return the attributes by which Optuna's samplers see what a trial exceeds."""
    return {f"{EXCESS}{text}": excess for text, excess in excesses.items()}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a trial reported at a rung, and what was decided."""

    step: int
    value: float
    pruned: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One row of `tuner_trials`, and its reports."""

    id: int
    study_id: int
    number: int
    imported: bool
    params: Mapping[str, ParameterValue] | None  # None until they are drawn
    attrs: Mapping[str, Any]
    asked_revision: int | None
    state: str  # RUNNING or the outcome's kind
    reason: str | None
    value: float | None
    stopped_step: int | None
    steps: int
    last_time: float
    created_at: float
    ended_at: float | None
    revision: int
    objectives: Sequence[float] | None = None  # their values, if its study has several
    # the sum of what it exceeds the study's constraints by; 0: feasible, None: there are none
    violation: float | None = None
    reports: tuple[Report, ...] = ()

    @property
    def infeasible(self) -> bool:
        """Whether it violates a constraint of its study."""
        return self.violation is not None and self.violation > 0

    @property
    def excesses(self) -> dict[str, float]:
        """By how much it exceeds each constraint; 0 or less where it does not."""
        return {
            key.removeprefix(EXCESS): value
            for key, value in self.attrs.items()
            if key.startswith(EXCESS)
        }

    def searched(self) -> SearchedTrial:
        """Return the part of the record that search reads."""
        return SearchedTrial(
            number=self.number,
            imported=self.imported,
            params=self.params,
            attrs=self.attrs,
            state=self.state,
            value=self.value,
            created_at=self.created_at,
            ended_at=self.ended_at,
            objectives=self.objectives,
            reports={report.step: report.value for report in self.reports},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchedTrial:
    """The part of a trial that search reads: no reasons, no curve. A study may have thousands."""

    number: int
    imported: bool
    params: Mapping[str, ParameterValue] | None  # None until they are drawn
    attrs: Mapping[str, Any]
    state: str
    value: float | None
    created_at: float
    ended_at: float | None
    objectives: Sequence[float] | None = None  # their values, if the study has several
    reports: Mapping[int, float]  # value by step, in the order of steps


@dataclass(frozen=True, kw_only=True)
class AttemptRecord:
    """One row of `tuner_attempts`."""

    id: int
    trial_id: int
    number: int
    claim: str | None
    worker: str
    live: bool
    expires_at: float
    first_step: int
    environment: Mapping[str, Any]
    started_at: float
    ended_at: float | None
    ending: str | None
    reason: str | None
    traceback: str | None = None  # of what the workload raised


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """A checkpoint: the numbers that its file is named by, and the digest of its content.

    The path is derived from the numbers. A path in a row could lead anywhere.
    """

    study_id: int
    trial: int  # its number
    step: int
    attempt: int  # the number of the attempt that saved it
    digest: str

    @property
    def path(self) -> str:
        """Path of the file below the folder of checkpoints."""
        return f"{self.study_id}/{self.trial}/{self.step}-{self.attempt}.pt"


@dataclass(frozen=True, kw_only=True)
class Silence:
    """A trial that a worker holds and of which no row was measured for a while."""

    trial: int  # its number
    worker: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class AttemptLease(Lease):
    """An attempt's lease on a trial; its token is the attempt's number."""

    table: LeaseTable = field(default=ATTEMPTS, repr=False)
    trial_id: int
    study_id: int
    started_at: float  # seconds since 1970, in the database's clock


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A trial that a worker has claimed, and the checkpoint to resume it from."""

    lease: AttemptLease
    trial: TrialRecord
    checkpoint: CheckpointRecord | None
    endings: Mapping[str, int] = field(default_factory=dict)  # earlier attempts, by how they ended


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The parameters of a trial, as its attempt commits them."""

    lease: AttemptLease
    params: Mapping[str, ParameterValue]  # complete
    attrs: Mapping[str, Any]  # the sampler's, of the trial


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What an attempt commits at once: rows of its curve, and what was decided after them."""

    lease: AttemptLease
    chunk: Chunk
    report: Report | None = None  # after its last row
    attrs: Mapping[str, Any] = field(default_factory=dict)  # the pruner's, with a report
    outcome: Outcome | None = None  # ends the attempt and its trial
    traceback: str | None = None  # of what the workload raised, with an outcome
    # after an outcome the trial keeps this new checkpoint, or the earlier one of `kept_step`
    kept: CheckpointRecord | None = None
    kept_step: int | None = None
    environment: Mapping[str, Any] | None = None  # of the attempt, if it has an outcome


@dataclass(frozen=True, kw_only=True)
class Committed:
    """The result of committing entries."""

    lost: frozenset[AttemptLease]  # refused: their attempts are no longer live


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The trials that changed after a revision."""

    revision: int
    attrs: Mapping[str, Any]
    trials: Sequence[TrialRecord] = ()


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The part of the trials that changed which search reads."""

    revision: int
    attrs: Mapping[str, Any]
    trials: Sequence[SearchedTrial] = ()
