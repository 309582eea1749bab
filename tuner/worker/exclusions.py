"""Studies that this worker leaves alone for a while, since their code raises again and again.

A study with completed trials is not stopped by its circuit breaker. If it fails on this machine
alone, such as for a missing file, a worker that went on would spend its budget on failed trials.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

from tuner.core.environment import identity
from tuner.ledger import Ledger, StudyRecord, exclusions
from tuner.ledger.exclusions import Exclusion
from tuner.observability.logs import logger

FAILURES = 3
"""Trials of a study in a row that raise here before it is left alone."""
FIRST_SECONDS, LONGEST_SECONDS = 60.0, 3600.0
"""How long it is left alone at first; twice as long each time, up to the second one."""

log = logger(__name__)


class Exclusions:
    """The studies that one worker leaves alone now; `tuner status` shows them too."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._until: dict[int, float] = {}  # on the clock, by the study's id
        self._times: defaultdict[int, int] = defaultdict(int)  # in a row

    def has(self, study: StudyRecord) -> bool:
        """Return whether a study is left alone now."""
        return self._clock() < self._until.get(study.id, -float("inf"))

    def add(self, study: StudyRecord, failures: int, reason: str) -> None:
        """Leave a study alone, longer each time."""
        seconds = min(FIRST_SECONDS * 2.0 ** self._times[study.id], LONGEST_SECONDS)
        self._times[study.id] += 1
        self._until[study.id] = self._clock() + seconds
        left = Exclusion(worker=identity(), seconds=seconds, failures=failures, reason=reason)
        exclusions.put(self._ledger, study, left)
        log.warning(f"study {study.name} is left alone for {seconds:.0f} s: {left.sentence}")

    def end(self, study: StudyRecord) -> None:
        """Treat a study as any other again, since a trial of it did not fail."""
        if self._times.pop(study.id, 0):
            self._until.pop(study.id, None)
            exclusions.remove(self._ledger, study, identity())
