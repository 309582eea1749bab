"""Asking, before trials are taken, whether their study is over: by its budget, or broken."""

from __future__ import annotations

from tuner.core.outcome import COMPLETED
from tuner.ledger import Ledger, StudyRecord, limits, managing
from tuner.observability.logs import logger
from tuner.search import MIN_TRIALS_FOR_REGRET, Search

REGRET_EVERY = 5
"""Completed trials between two bounds of the regret, each of which takes about a second."""

log = logger(__name__)


class Rules:
    """The rules by which one study ends or stops by itself, as one worker asks for them."""

    def __init__(self, ledger: Ledger, search: Search) -> None:
        self._ledger = ledger
        self._search = search
        self._asked_of_failures: int | None = None  # the limit that the failures were held against
        self._regret_at = (
            MIN_TRIALS_FOR_REGRET  # completed trials at which the regret is bounded again
        )

    def look_again(self) -> None:
        """Look at failures anew: a trial has failed here."""
        self._asked_of_failures = None

    def is_over(self, study: StudyRecord) -> bool:
        """End or stop the study where a rule of its budget says so."""
        ended = limits.end_when_due(self._ledger, study) or self._end_by_regret(study)
        if ended is not None:
            log.info("study ended", study=study.name, reason=ended.reason)
            return True
        return self._is_broken(study)

    def _is_broken(self, study: StudyRecord) -> bool:
        """Stop the study if its trials fail alike: asked at first, and after a failure here.

        Whoever had a trial that failed looks at those of all, which is too dear before each trial.
        """
        limit = study.spec.budget.stop_after_failures
        if limit == self._asked_of_failures:
            return False
        stopped = managing.break_circuit(self._ledger, study)
        self._asked_of_failures = limit
        if stopped is not None:
            log.warning(f"study {study.name}: {stopped.reason}")
        return stopped is not None

    def _end_by_regret(self, study: StudyRecord) -> StudyRecord | None:
        """End the study if hardly anything better is to be found; asked every few trials."""
        bound = study.spec.budget.regret_below
        if bound is None:
            return None
        completed = self._ledger.counts(study.id)[COMPLETED]
        if completed < self._regret_at:
            return None
        self._regret_at = completed + REGRET_EVERY
        regret = self._search.regret_bound()
        if regret >= bound:
            return None
        reason = (
            f"The best {study.spec.study.metric} is unlikely to be further than {regret:.3g} from "
            f"the best there is, after {completed} completed trials."
        )
        return limits.end(self._ledger, study, reason)
