"""Tags of runs with the verdicts of their trials, updated when a verdict is new or changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from tuner.analysis.evidence import Assessor
from tuner.analysis.verdicts import Verdict
from tuner.ledger import Reader, StudyRecord, TrialRecord
from tuner.tracking.mlflow.client_writer import RunWriter
from tuner.tracking.mlflow.run_content import REASON_LIMIT

REFRESH_SECONDS = 30.0
"""How often verdicts are updated while trials run; less often if it takes over a tenth of that."""
BATCH = 500
"""Runs that are tagged between two renewals of the claim."""


def verdict_tags(verdict: Verdict) -> dict[str, str]:
    """Return the tags of a run with the verdict on its trial's rate.

    `tuner.regime` is the first version's name of the verdict, kept for saved searches.
    """
    return {
        "tuner.verdict": verdict.kind,
        "tuner.regime": verdict.kind,
        "tuner.verdict_labels": ", ".join(verdict.labels),
        "tuner.verdict_reason": verdict.reason[:REASON_LIMIT],
    }


class RunVerdicts:
    """Computes one study's verdicts and remembers which tags were written.

    Verdicts are relative to the best trial, so a new best trial changes those of others. While
    trials run only changed kinds are written; at rest, changed reasons too. What was written is
    remembered by this process only; another process writes all tags again.
    """

    def __init__(self, ledger: Reader, study: StudyRecord) -> None:
        self._ledger = ledger
        self._assessor = Assessor(ledger, study)
        self._study = study
        self._revision = 0
        self._trials: dict[int, TrialRecord] = {}
        self._written: dict[str, Mapping[str, str]] = {}  # by trial number, as text
        self._next = 0.0

    def update_tags(
        self, writer: RunWriter, experiment: str, *, at_rest: bool, renew_claim: Callable[[], None]
    ) -> None:
        """Tag the active runs of ended trials, renewing the claim after each batch.

        While trials run, do nothing until the next refresh.
        """
        began = time.monotonic()
        if not at_rest and began < self._next:
            return
        due = {key: tags for key, tags in self._tags().items() if self._is_due(key, tags, at_rest)}
        keys = list(due)
        for first in range(0, len(keys), BATCH):
            batch = keys[first : first + BATCH]
            run_ids = writer.find(self._study, experiment, batch)
            writer.tag({run_id: due[key] for key, run_id in run_ids.items()}, renew_claim)
            self._written.update({key: due[key] for key in run_ids})
            renew_claim()
        took = time.monotonic() - began
        self._next = began + max(REFRESH_SECONDS, 10 * took)

    def _tags(self) -> dict[str, Mapping[str, str]]:
        changes = self._ledger.changes(self._study.id, self._revision, with_reports=False)
        self._revision = changes.revision
        self._trials.update({one.number: one for one in changes.trials})
        verdicts = self._assessor.verdicts(list(self._trials.values()))
        return {str(number): verdict_tags(verdict) for number, verdict in verdicts.items()}

    def _is_due(self, key: str, tags: Mapping[str, str], at_rest: bool) -> bool:
        written = self._written.get(key)
        if written is None:
            return True
        return written != tags if at_rest else written["tuner.verdict"] != tags["tuner.verdict"]
