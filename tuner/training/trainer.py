"""The contract of every trainer: admit trials, advance them, evict them, snapshot them.

A trainer knows neither Optuna nor MLflow nor the ledger. It trains until a decision is needed, and
reports what happened in events.

Steps count updates. A value *at step t* is measured at the parameters after t updates: row t of a
curve has the loss of batch t, its gradient norm, and the rate of the update from t to t + 1; an
evaluation at step t has the metrics at the same parameters. A trial of `steps` updates has rows
0 to steps - 1, and a last evaluation at step `steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np

from tuner.config import Listed, ParameterValue, StudySpec
from tuner.training.branches import Branch, BranchPlan

TRAIN_COLUMNS = ("train_loss", "lr", "grad_norm")
"""The columns that every row of a curve has."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A trial to train."""

    number: int  # of the trial in its study; identifies its events
    seed: int  # of the initial parameters, the order of the data and the random state
    params: Mapping[str, ParameterValue]  # complete
    snapshot: bytes | None = None  # resume from here instead of from step 0
    halvings: int = 0  # of the micro-batch size, one each time it ran out of memory


class Status(Enum):
    """State of a member after it was advanced."""

    TRAINING = "training"  # advance it further
    AT_RUNG = "at rung"  # just evaluated at a rung; decide, then advance or evict it
    FINISHED = "finished"  # at the horizon, or before it for the reason given
    DIVERGED = "diverged"  # stopped by the guard or a non-finite evaluation; see `stopped_step`
    FAILED = "failed"  # cannot continue and has no value, for the reason given


ENDED = frozenset({Status.FINISHED, Status.DIVERGED, Status.FAILED})
"""Statuses after which a member produces no more events."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics at one step."""

    step: int
    time: float  # seconds of a monotonic clock
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Steps and outcome of one member in one call of `advance`."""

    number: int  # the task's
    first_step: int
    columns: Mapping[str, np.ndarray]  # of TRAIN_COLUMNS; each float64 [step]
    times: np.ndarray  # float64 [step], seconds of a monotonic clock
    evaluations: tuple[Evaluation, ...]  # at steps in (first_step, next_step], and at 0
    status: Status
    value: float | None = None  # the objective so far
    reason: str = ""  # why it ended before the horizon; a clause without full stop
    stopped_step: int | None = (
        None  # of a diverged trial: first non-finite step, or where it was stopped
    )
    error: BaseException | None = None  # raised by the workload, if not raised to the caller
    rung: int | None = None  # its position in the unit of the study; `value` may be of a later step

    @property
    def next_step(self) -> int:
        """The number of updates of the member so far."""
        return self.first_step + len(self.times)


@dataclass(eq=False)
class Segment:
    """Consecutive rows and evaluations under construction: one call of `advance` for one member."""

    first_step: int
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    reason: str = ""
    stopped_step: int | None = None
    error: BaseException | None = None
    passed_rung: int | None = None  # the step of the rung that is settled, if not the last step

    @property
    def at_rung(self) -> int:
        """The step of the rung at which a decision is due."""
        last = self.first_step + len(self.times)
        return last if self.passed_rung is None else self.passed_rung

    @property
    def measured(self) -> bool:
        """Whether there are rows or evaluations."""
        return bool(self.times or self.evaluations)

    def without_last_row(self) -> tuple[Segment, Segment]:
        """Return two segments: all but the last row, and that row; metrics before it go with it."""
        rest, last = Segment(self.first_step), Segment(self.first_step)
        kept = max(0, len(self.times) - 1)
        for name in ("losses", "rates", "grad_norms", "times"):
            values = getattr(self, name)
            setattr(rest, name, values[:kept])
            setattr(last, name, values[kept:])
        last.first_step += kept
        (rest if kept else last).evaluations = self.evaluations
        return rest, last

    def event(
        self, number: int, status: Status, value: float | None, rungs: Mapping[int, int]
    ) -> Event:
        """Return the event of these rows and evaluations; `rungs` are positions by step."""
        columns = (self.losses, self.rates, self.grad_norms)
        return Event(
            number=number,
            first_step=self.first_step,
            columns={
                name: np.array(column, dtype=np.float64)
                for name, column in zip(TRAIN_COLUMNS, columns, strict=True)
            },
            times=np.array(self.times, dtype=np.float64),
            evaluations=tuple(self.evaluations),
            status=status,
            value=value,
            reason=self.reason,
            stopped_step=self.stopped_step,
            error=self.error,
            rung=rungs[self.at_rung] if status is Status.AT_RUNG else None,
        )


class Trainer(Protocol):
    """Trains up to `capacity` trials of one study at a time, each as if it were alone.

    Invariants, for every implementation:
    - a member's curve depends on its task and the study alone: not on other members, not on how
      many steps each `advance` was asked for, not on being snapshotted and admitted again;
    - an exception of the workload is raised by `advance`. A trainer of one trial first returns what
      was measured before it. A trainer of several puts it in the event of the member concerned,
      and the others continue; running out of memory concerns all members and is raised;
    - branches change no member, nor do members change a branch;
    - the global random state of the process is the same after each call as before it;
    - not thread-safe: one thread calls it.
    """

    capacity: int

    def admit(self, task: Task) -> None:
        """Put a trial in a free slot. Raise `ValueError` if its snapshot does not match."""

    def advance(self, max_steps: int) -> list[Event]:
        """Train every member by up to `max_steps` updates, but not past its next decision."""

    def evict(self, number: int) -> None:
        """Free the slot of a trial, whatever its status."""

    def snapshot(self, number: int) -> bytes:
        """Return the state needed to resume exactly at the member's current step."""

    def branch(
        self, numbers: Sequence[int], plan: BranchPlan, goes_on: Callable[[], bool]
    ) -> list[Branch] | None:
        """Train and evaluate a copy of each of these members, which have not ended.

        Return None if `goes_on` became false, which is asked often; nothing has changed then.
        """


def seed_of(spec: StudySpec, number: int, own: object = None) -> int:
    """Derive the seed of a trial from the study's seed and the trial's number.

    Trials of one round of a listed design share a seed. A trial that extends another one has that
    one's seed as its `own`.
    """
    if isinstance(own, int) and 0 <= own < 2**32:
        return own
    sampler = spec.search.sampler
    entropy = [sampler.round(number), 1] if isinstance(sampler, Listed) else [number]
    sequence = np.random.SeedSequence([spec.study.seed, *entropy])
    return int(sequence.generate_state(1, np.uint32)[0])
