"""One decision for all ranks of a trial: each gets rank 0's answer to the same report.

Rank 0's reports are judged. A report of another rank waits until rank 0 has made the same report,
and gets the same answer, so all ranks stop at the same report and none waits for another in a
collective operation. Some reports may be of rank 0 alone, such as metrics: a stop that is decided
there is answered at the next report of a kind that all reporting ranks make.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

Answer: TypeAlias = Mapping[str, Any]

STOP: Answer = {"stop": True}
KEPT = 10_000
"""The most answers that are kept for ranks that are behind rank 0."""


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
        self.stopping = False
        """Whether all ranks must stop at their next common report."""

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

    def is_common(self, position: Position) -> bool:
        """Return whether all ranks that report make reports of this kind, as far as is known."""
        return all(position.is_row in kinds or not kinds for kinds in self._kinds)

    def lacks_metrics(self, rank: int, position: Position) -> bool:
        """Return whether rank 0 has reported metrics before, and this rank never does."""
        first = self._first_metrics
        return first is not None and first < position and False not in self._kinds[rank]
