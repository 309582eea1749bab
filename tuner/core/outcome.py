"""How a trial ends: a value with a kind and a sentence, never an exception."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COMPLETED = "completed"  # ran to the horizon
PRUNED = "pruned"  # stopped at a rung by the pruner
DIVERGED = "diverged"  # stopped by the guard
FAILED = "failed"  # its code raised, or its workers died repeatedly
CANCELLED = "cancelled"  # its study was stopped

KINDS = (COMPLETED, PRUNED, DIVERGED, FAILED, CANCELLED)
RUNNING = "running"
"""The state of a trial that has no outcome yet."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a trial."""

    kind: str  # one of KINDS
    reason: str  # a sentence for a person; never empty
    value: float | None = None  # the objective, finite; None if there is none
    stopped_step: int | None = None  # the step at which a diverged trial was stopped
    # by how much it exceeds each constraint of its study, 0 or less where it does not; None: none
    excesses: Mapping[str, float] | None = None
    objectives: Sequence[float] | None = None  # the values of several objectives, or None

    def __post_init__(self) -> None:
        assert self.kind in KINDS
        assert self.reason

    @property
    def violation(self) -> float | None:
        """The sum of what it exceeds constraints by; 0: it is feasible, None: there are none."""
        return (
            None if self.excesses is None else sum(max(0.0, one) for one in self.excesses.values())
        )
