"""What one trial measures in one call of `advance`, on its way into an event."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tuner.training.trainer import TRAIN_COLUMNS, Evaluation, Event, Status


@dataclass(eq=False)
class Segment:
    """Consecutive rows, as they are measured."""

    first_step: int
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    reason: str = ""
    stopped_step: int | None = None
    error: BaseException | None = None

    @property
    def measured(self) -> bool:
        """Whether there is anything to be given out."""
        return bool(self.times or self.evaluations)

    def event(self, number: int, status: Status, value: float | None) -> Event:
        """Say what happened."""
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
        )
