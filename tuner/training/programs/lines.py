"""Reports in a program's output: JSON lines, or lines that patterns of the study file match."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

ROW = ("train_loss", "grad_norm", "lr")
"""Names of a step's own values; all others are metrics."""
STEP = "step"
LONGEST = 4096
"""The most characters of a line that are matched."""

Report: TypeAlias = dict[str, Any]
"""Arguments of `trial.report`."""


def of_json(line: str) -> Report | None:
    """Return the report in a line, or None if it is no JSON object with a step."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if STEP in found else None


class PatternReports:
    """Reports by regular expressions, each with a group `value`, by the names that they report.

    A step is matched by the pattern `step`, or by a group `step` of another pattern; it holds for
    later lines. Without either, the steps are counted: a new one begins when a name is repeated.
    A program's step n is the (n - `first`)-th: its loss is that before the update, and its metrics
    are those after it.
    """

    def __init__(self, patterns: Mapping[str, str], first: int) -> None:
        self._patterns = {name: re.compile(text) for name, text in patterns.items()}
        self._first = first
        self._numbered = STEP in patterns or any(
            STEP in pattern.groupindex for pattern in self._patterns.values()
        )
        self._step: int | None = None if self._numbered else first
        self._values: dict[str, float] = {}

    def read(self, line: str) -> Iterator[Report]:
        """Yield the reports that are complete after a line."""
        line = line[:LONGEST]
        if STEP in self._patterns and (found := self._patterns[STEP].search(line)):
            yield from self._begin(found["value"])
        for name, pattern in self._patterns.items():
            found = pattern.search(line) if name != STEP else None
            value = _number(found["value"]) if found else None
            if found is None or value is None:
                continue
            if STEP in pattern.groupindex:
                yield from self._begin(found[STEP])
            elif not self._numbered and name in self._values:
                assert self._step is not None
                yield from self._begin(str(self._step + 1))
            if self._step is not None:
                self._values[name] = value
        if len(self._values) == len(self._patterns.keys() - {STEP}):
            yield from self.flush()

    def _begin(self, text: str | None) -> Iterator[Report]:
        """Begin the step of this number, if it is another one."""
        number = _number(text or "")
        if number is not None and number.is_integer() and int(number) != self._step:
            yield from self.flush()
            self._step = int(number)

    def flush(self) -> Iterator[Report]:
        """Yield the reports of the values of the current step."""
        values, self._values = self._values, {}
        if not values or self._step is None:
            return
        step = self._step - self._first
        if not self._numbered:
            self._step += 1
        row = {name: value for name, value in values.items() if name in ROW}
        metrics = {name: value for name, value in values.items() if name not in ROW}
        if "train_loss" in row:
            yield {STEP: step, **row}
        if metrics:
            yield {STEP: step + 1, **metrics}


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip(",;:)]%"))
    except ValueError:
        return None
