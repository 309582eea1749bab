"""One decision for all ranks of a trial, which stop at the same report.

Rank 0's reports are judged. Metrics wait for their answer: those of another rank wait until rank 0
has made the same report, and get the same answer. Some may be of rank 0 alone: a stop that is
decided there comes at the next report of a kind that all reporting ranks make.

Rows do not wait. All ranks are sent orders that hold from a step on which none of them has reached:
up to which step they may go on without a further order, and from which step on they stop. So they
stop at the same row, and none waits for another in a collective operation.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

Answer: TypeAlias = Mapping[str, Any]

STOP: Answer = {"stop": True}
KEPT = 10_000
"""The most answers that are kept for ranks that are behind rank 0."""
AHEAD_SECONDS = 0.5
"""How long a program may run ahead of its judgment. Slower steps wait for theirs."""
MOST_AHEAD = 1000
"""The most steps that it may run ahead."""


class Position(NamedTuple):
    """The place of a report in a trial: metrics of a step come before its row."""

    step: int
    is_row: bool


class Decisions:
    """The answers to the reports of all ranks of a trial."""

    def __init__(self, ranks: int) -> None:
        self._kinds: list[set[bool]] = [set() for _ in range(ranks)]  # reported, by rank
        self._answers: OrderedDict[Position, Answer] = OrderedDict()
        self._last = Position(-1, is_row=False)  # that was answered
        self._first_metrics: Position | None = None  # of rank 0
        self._pace = Pace()
        self.stopping = False
        """Whether all ranks must stop at their next common report."""
        self.until = -1
        """The last step whose row no rank waits with."""

    def arrive(self, rank: int, position: Position) -> Answer | None:
        """Return the answer to a report.

        None: rank 0's report is to be judged, and its answer passed to `decide`; the report of
        another rank has to wait for that.
        """
        self._kinds[rank].add(position.is_row)
        if rank == 0 and not position.is_row and self._first_metrics is None:
            self._first_metrics = position
        if self.stopping and (rank == 0 or position > self._last):
            if position not in self._answers:
                self.decide(position, STOP if self.is_common(position) else {})
            return self._answers[position]
        if rank == 0:
            return None
        if position < self._last:
            return self._answers.get(position, {})  # {}: rank 0 does not make this report
        return self._answers.get(position)

    def decide(self, position: Position, answer: Answer) -> None:
        """Keep the answer to a report for the ranks that are behind."""
        self._answers[position] = answer
        self._last = max(self._last, position)
        while len(self._answers) > KEPT:
            self._answers.popitem(last=False)

    def note(self, rank: int, position: Position) -> None:
        """Take note of a report that does not wait."""
        self._kinds[rank].add(position.is_row)
        if rank == 0:
            self.decide(position, {})

    def extend(self, step: int, now: float) -> bool:
        """Let ranks go on after rank 0's row of a step; return whether `until` has changed."""
        ahead = self._pace.steps_in(AHEAD_SECONDS, step, now)
        if step < self.until - ahead // 2:
            return False
        self.until = max(self.until, step + ahead)
        self._pace.begin(step, now)
        return True

    def is_common(self, position: Position) -> bool:
        """Return whether all ranks that report make reports of this kind, as far as is known."""
        return all(position.is_row in kinds or not kinds for kinds in self._kinds)

    def lacks_metrics(self, rank: int, position: Position) -> bool:
        """Return whether rank 0 has reported metrics before, and this rank never does."""
        first = self._first_metrics
        return first is not None and first < position and False not in self._kinds[rank]


class Pace:
    """How many steps a program makes in a time, by when its rows arrived."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    def begin(self, step: int, now: float) -> None:
        """Begin to measure; the pace from the first time on is measured too."""
        self._last = step, now
        self._first = self._first or self._last

    def steps_in(self, seconds: float, step: int, now: float) -> int:
        """Return the steps in a time: by the slower pace of the two, since rows come in bursts."""
        if self._first is None or self._last is None:
            return 0
        taken = max(
            (now - time) / max(1, step - begun) for begun, time in (self._first, self._last)
        )
        return min(MOST_AHEAD, math.floor(seconds / max(taken, 1e-6)))
