"""The contract of every trainer: admit trials, advance them, evict them, snapshot them.

A trainer knows neither Optuna nor MLflow nor the ledger. It trains until something happens that
others decide about, and says what happened in events.

Steps count updates. What is measured *at step t* is measured at the parameters after t updates:
row t of a curve has the loss of batch t, its gradient's norm, and the rate of the update that
leads from t to t + 1; an evaluation at step t has the metrics at the same parameters. A trial of
`steps` updates has rows 0 to steps - 1, and a last evaluation at step `steps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np

from tuner.config import Listed, ParameterValue, StudySpec

TRAIN_COLUMNS = ("train_loss", "lr", "grad_norm")
"""The columns that every row of a curve has."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a trainer must know of a trial."""

    number: int  # of the trial in its study, to tell events apart
    seed: int  # of the initial parameters, the order of the data and the random state
    params: Mapping[str, ParameterValue]  # complete: lr, schedule, optimizer, and theirs
    snapshot: bytes | None = None  # go on from here instead of from step 0
    halvings: int = 0  # of its micro-batches, as often as it ran out of memory


class Status(Enum):
    """Where a member stands after it was advanced."""

    TRAINING = "training"  # advance it again
    AT_RUNG = "at rung"  # it was just evaluated at a rung; decide, then advance or evict
    FINISHED = "finished"  # at the horizon; or before it, and the reason says why
    DIVERGED = "diverged"  # the guard stopped it; the last row of the segment says where
    FAILED = "failed"  # it cannot go on, and has no value; the reason says why


ENDED = frozenset({Status.FINISHED, Status.DIVERGED, Status.FAILED})
"""Where a member makes no more events."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics at one step."""

    step: int
    time: float  # seconds of a monotonic clock
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Event:
    """What one member did in one call of `advance`."""

    number: int  # the task's
    first_step: int
    columns: Mapping[str, np.ndarray]  # of TRAIN_COLUMNS; each float64 [step]
    times: np.ndarray  # float64 [step], seconds of a monotonic clock
    evaluations: tuple[Evaluation, ...]  # at steps in (first_step, next_step], and at 0
    status: Status
    value: float | None = None  # the objective as of now, where it is at a rung or finished
    reason: str = ""  # why it ended, unless that was at the horizon; without capital and full stop
    stopped_step: int | None = None  # the guard's: first non-finite step, or where it stopped
    error: BaseException | None = (
        None  # what the workload raised, where it is not raised to the caller
    )

    @property
    def next_step(self) -> int:
        """The number of updates that the member has had so far."""
        return self.first_step + len(self.times)


class Trainer(Protocol):
    """Trains up to `capacity` trials of one study at a time, each as if it were alone.

    Invariants, for every implementation:
    - a member's curve depends on its task and the study alone: not on other members, not on how
      many steps each `advance` was asked for, not on being snapshotted and admitted again;
    - what the workload raises comes out of `advance`, of one trial after what it measured before;
      beside others it is in the event of the member that it is about, and they go on. That memory
      is short is about all of them, and raised;
    - the global random state of the process is the same after each call as before it;
    - not thread-safe: one thread calls it.
    """

    capacity: int

    def admit(self, task: Task) -> None:
        """Give a trial a free slot. Raises `ValueError` when a snapshot does not fit the task."""

    def advance(self, max_steps: int) -> list[Event]:
        """Train every member by up to `max_steps` updates, and not past its next decision."""

    def evict(self, number: int) -> None:
        """Free the slot of a trial, whatever its status."""

    def snapshot(self, number: int) -> bytes:
        """Give all that is needed to go on exactly, at the step where the member is now."""


def seed_of(spec: StudySpec, number: int) -> int:
    """Derive the seed of a trial from the study's seed and the trial's number.

    Trials of one round of a list share theirs, and it is none of another study's trials.
    """
    sampler = spec.search.sampler
    entropy = [sampler.round(number), 1] if isinstance(sampler, Listed) else [number]
    sequence = np.random.SeedSequence([spec.study.seed, *entropy])
    return int(sequence.generate_state(1, np.uint32)[0])
