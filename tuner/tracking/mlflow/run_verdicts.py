"""The verdicts of a study's trials, as tags of their runs: told when new or changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from tuner.analysis.evidence import Assessor
from tuner.analysis.verdicts import Verdict
from tuner.ledger import Reader, StudyRecord, TrialRecord
from tuner.tracking.mlflow.client_writer import RunWriter
from tuner.tracking.mlflow.run_content import REASON_LIMIT

REFRESH_SECONDS = 30.0
"""How often verdicts are renewed while trials run; and never for more than a tenth of the time."""
AT_ONCE = 500
"""Runs that are tagged between two notes that the claim is still held."""


def verdict_tags(verdict: Verdict) -> dict[str, str]:
    """Return the tags of a run that say what its trial's rate was like.

    `tuner.regime` is what the first version called the verdict; it stays for saved searches.
    """
    return {
        "tuner.verdict": verdict.kind,
        "tuner.regime": verdict.kind,
        "tuner.verdict_labels": ", ".join(verdict.labels),
        "tuner.verdict_reason": verdict.reason[:REASON_LIMIT],
    }


class RunVerdicts:
    """Knows one study's verdicts and what its runs have been told of them.

    A verdict is relative to the best trial, so a better one changes what is true of the others.
    While trials run only a changed kind is told, at rest every changed sentence too. What was told
    is remembered by this process alone: another one tells everything once more.
    """

    def __init__(self, ledger: Reader, study: StudyRecord) -> None:
        self._ledger = ledger
        self._assessor = Assessor(ledger, study)
        self._study = study
        self._revision = 0
        self._trials: dict[int, TrialRecord] = {}
        self._told: dict[str, Mapping[str, str]] = {}  # by number, as text
        self._next = 0.0

    def tell(
        self, writer: RunWriter, experiment: str, *, at_rest: bool, held: Callable[[], None]
    ) -> None:
        """Tag the active runs of trials that have ended; `held` says that the claim is needed on.

        Between two looks while trials run it does nothing.
        """
        began = time.monotonic()
        if not at_rest and began < self._next:
            return
        due = {key: tags for key, tags in self._tags().items() if self._is_due(key, tags, at_rest)}
        keys = list(due)
        for first in range(0, len(keys), AT_ONCE):
            some = keys[first : first + AT_ONCE]
            run_ids = writer.find(self._study, experiment, some)
            writer.tag({run_id: due[key] for key, run_id in run_ids.items()}, held)
            self._told.update({key: due[key] for key in run_ids})
            held()
        took = time.monotonic() - began
        self._next = began + max(REFRESH_SECONDS, 10 * took)

    def _tags(self) -> dict[str, Mapping[str, str]]:
        changes = self._ledger.changes(self._study.id, self._revision, with_reports=False)
        self._revision = changes.revision
        self._trials.update({one.number: one for one in changes.trials})
        verdicts = self._assessor.verdicts(list(self._trials.values()))
        return {str(number): verdict_tags(verdict) for number, verdict in verdicts.items()}

    def _is_due(self, key: str, tags: Mapping[str, str], at_rest: bool) -> bool:
        told = self._told.get(key)
        if told is None:
            return True
        return told != tags if at_rest else told["tuner.verdict"] != tags["tuner.verdict"]
