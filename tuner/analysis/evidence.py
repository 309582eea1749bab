"""The evidence for the verdicts of a study's trials, read from the ledger once for each trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuner.analysis import verdicts
from tuner.analysis.verdicts import Evidence, Setting, Verdict
from tuner.config import batch_size
from tuner.core.outcome import COMPLETED, DIVERGED, PRUNED
from tuner.ledger import Reader, StudyRecord, TrialRecord

LOSSES = ("train_loss", "val_loss")
"""The metrics that can be compared with the baseline, which is a loss."""
ROUNDING = {"float32": 1.2e-7, "float64": 2.2e-16}
BATCH = 200
"""Number of curves in memory at a time."""


class Assessor:
    """Judges the trials of one study; reads a curve once, after its trial has ended."""

    def __init__(self, ledger: Reader, study: StudyRecord) -> None:
        self._ledger = ledger
        self._study = study
        self._found: dict[int, Evidence | None] = {}  # by number

    def verdicts(self, trials: Sequence[TrialRecord]) -> dict[int, Verdict]:
        """Return the verdict of each trial that has one so far, by trial number."""
        setting = self.setting({})
        found = self.evidence(trials)
        values = [one.value for one in trials if one.imported and one.state == COMPLETED]
        scores = [setting.sign * value for value in values if value is not None]
        return verdicts.judge(found, setting, imported=min(scores, default=None))

    def evidence(self, trials: Sequence[TrialRecord]) -> list[Evidence]:
        """Return the evidence of completed, pruned and diverged trials of this version.

        Trials whose curve is missing from the ledger are left out.
        """
        new = [one for one in trials if one.number not in self._found and _counts(one)]
        for first in range(0, len(new), BATCH):
            some = new[first : first + BATCH]
            curves = self._ledger.curves([one.id for one in some])
            for trial in some:
                if trial.id not in curves:
                    self._found[trial.number] = None
                    continue
                params = trial.params or {}
                self._found[trial.number] = verdicts.summarize(
                    trial.number,
                    rate=float(params["lr"]),
                    optimizer=str(params["optimizer"]),
                    schedule=str(params["schedule"]),
                    outcome=trial.state,
                    reason=trial.reason or "",
                    curve=curves[trial.id],
                    setting=self.setting(params),
                )
        return [one for one in self._found.values() if one is not None]

    def setting(self, params: Mapping[str, object]) -> Setting:
        """Return the setting of a trial with these parameters."""
        study, training = self._study.spec.study, self._study.spec.training
        rows = self._study.workload.get("training_rows")
        drawn: dict[str, Any] = dict(params)
        size = batch_size(self._study.spec, drawn)
        clip, precision = (
            drawn.get(name, getattr(training, name)) for name in ("clip_norm", "precision")
        )
        whole = size == "full" or (rows is not None and size >= rows)
        plain = params.get("optimizer") == "sgd" and not (
            params.get("sgd.momentum") or params.get("sgd.weight_decay")
        )
        measured_as_used = clip is None and precision in (None, "float32")
        minimized = study.direction == "minimize"
        baseline = self._study.workload.get("baseline_loss")
        return Setting(
            metric=study.metric,
            sign=1.0 if minimized else -1.0,
            keeps_best=study.value == "best",
            horizon=self._study.horizon(drawn),
            baseline=baseline if minimized and study.metric in LOSSES else None,
            plain=bool(whole and plain and measured_as_used and rows is not None),
            rounding=ROUNDING[training.dtype],
            several=bool(self._study.spec.space.others),
        )


def _counts(trial: TrialRecord) -> bool:
    ended = trial.state in (COMPLETED, PRUNED, DIVERGED)
    return ended and not trial.imported and trial.params is not None
