"""Checks before a trial is claimed whether its study is over, by its budget or by failures."""

from __future__ import annotations

from tuner.core.outcome import COMPLETED
from tuner.ledger import Ledger, StudyRecord, limits, managing
from tuner.observability.logs import logger
from tuner.search import MIN_TRIALS_FOR_REGRET, Search

OUTLOOK_EVERY = 5
"""Completed trials between two looks ahead, each of which may take a second."""

log = logger(__name__)


def stop_if_failing(ledger: Ledger, study: StudyRecord) -> bool:
    """Stop a study whose trials fail by one cause, and say so; return whether it was stopped."""
    stopped = managing.break_circuit(ledger, study)
    if stopped is not None:
        log.warning(f"study {study.name}: {stopped.reason}")
    return stopped is not None


class Rules:
    """The rules by which one study ends or stops by itself, as one worker checks them."""

    def __init__(self, ledger: Ledger, search: Search) -> None:
        self._ledger = ledger
        self._search = search
        self._asked_of_failures: int | None = None  # the limit that failures were last checked for
        self._outlook_at = MIN_TRIALS_FOR_REGRET  # completed trials at the next look ahead

    def check_failures_again(self) -> None:
        """Check failures again, since a trial has failed in this process."""
        self._asked_of_failures = None

    def is_over(self, study: StudyRecord) -> bool:
        """End or stop the study if a rule of its budget holds; return whether it is over."""
        ended = limits.end_when_due(self._ledger, study) or self._end_by_outlook(study)
        if ended is not None:
            log.info("study ended", study=study.name, reason=ended.reason)
            return True
        return self._is_broken(study)

    def _is_broken(self, study: StudyRecord) -> bool:
        """Stop the study if its trials fail by one cause; return whether it was stopped.

        Checked at first and after each failure in this process: before each trial it would cost
        too much.
        """
        limit = study.spec.budget.stop_after_failures
        if limit == self._asked_of_failures:
            return False
        self._asked_of_failures = limit
        return stop_if_failing(self._ledger, study)

    def _end_by_outlook(self, study: StudyRecord) -> StudyRecord | None:
        """End the study if a further trial promises too little; checked every few trials."""
        budget = study.spec.budget
        if budget.regret_below is None and budget.improvement_below is None:
            return None
        completed = self._ledger.counts(study.id)[COMPLETED]
        if completed < self._outlook_at:
            return None
        self._outlook_at = completed + OUTLOOK_EVERY
        metric, after = study.spec.study.metric, f"after {completed} completed trials"
        if budget.regret_below is not None:
            regret = self._search.regret_bound()
            if regret < budget.regret_below:
                reason = f"The best {metric} is unlikely to be further than {regret:.3g} from "
                reason += f"the best there is, {after}."
                return limits.end(self._ledger, study, reason)
        if budget.improvement_below is not None:
            gain = self._search.expected_gain()
            if gain is not None and gain < budget.improvement_below:
                reason = f"A further trial is expected to improve {metric} by {gain:.3g} only, "
                return limits.end(self._ledger, study, f"{reason}{after}.")
        return None
