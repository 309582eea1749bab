"""A study whose workload raises when it is built: its trials fail, each with that reason."""

from __future__ import annotations

import threading

from tuner.core.environment import describe, identity
from tuner.core.errors import LeaseLost, WorkloadCodeError
from tuner.core.failures import sentence
from tuner.core.outcome import FAILED, Outcome
from tuner.ledger import RAISED, Ledger, StudyRecord
from tuner.observability.logs import logger
from tuner.worker.rules import stop_if_failing

log = logger(__name__)


class BrokenStudy:
    """Replaces a `StudyWorker` whose workload cannot be built.

    Failed trials count for `[budget] stop_after_failures`, so a study that no worker can train is
    stopped with its reason. Where other workers have trained it, the fault is this machine's, and
    the trials are left to them.
    """

    def __init__(
        self, ledger: Ledger, study: StudyRecord, error: WorkloadCodeError, stop: threading.Event
    ) -> None:
        self._ledger = ledger
        self._id = study.id
        self._error = error
        self._reason = sentence(error.__cause__ or error)
        self._stop = stop
        self.failures = 0  # trials that it has failed
        self.last_failure = self._reason

    def abandon(self) -> None:
        """Do nothing: no trial is held between two turns."""

    def has_running_trials(self) -> bool:
        """Return whether any trial has a live attempt."""
        return self._ledger.counts(self._id)["running"] > 0

    def train(self, study: StudyRecord, _may_continue: object) -> bool:
        """Fail one trial; return whether there was any.

        Raise `WorkloadCodeError` when others have trained the study.
        """
        if any(one.steps for one in self._ledger.trials(study.id) if not one.imported):
            raise self._error
        if stop_if_failing(self._ledger, study) or self._stop.is_set():
            return False
        environment = describe(study.spec.training.device)
        claim = self._ledger.claim(study.id, identity(), environment)
        if claim is None:
            return False
        try:
            if claim.endings.get(RAISED, 0) < study.spec.budget.retries.failed:
                self._ledger.release(claim.lease, RAISED, self._reason)
            else:
                self._ledger.finish(claim.lease, Outcome(kind=FAILED, reason=self._reason))
        except LeaseLost:  # its study was stopped or deleted meanwhile
            return True
        self.failures += 1
        log.warning(f"trial {claim.trial.number} of {study.name}: {self._reason}")
        return True
