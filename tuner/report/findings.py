"""Findings: trials, curves, verdicts and comparisons of a study, read once from the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tuner.analysis import comparisons
from tuner.analysis.comparisons import Comparison, GoodRates
from tuner.analysis.deciding import Decision, decision
from tuner.analysis.drift import RetrainingStep, steps
from tuner.analysis.effects import Effect, effects
from tuner.analysis.evidence import Assessor
from tuner.analysis.sensitivity import Sensitivity, sensitivities
from tuner.analysis.verdicts import Evidence, Setting, Verdict
from tuner.config import CHOSEN, ParameterValue
from tuner.core.curves import Chunk
from tuner.core.outcome import COMPLETED, RUNNING
from tuner.ledger import Reader, Retrainings, Searched, StudyRecord, TrialRecord, events, ranges
from tuner.ledger.events import Event
from tuner.ledger.spending import Spend, spending

if TYPE_CHECKING:  # it imports optuna
    from tuner.search.outlook import Outlook

BATCH = 500
"""Number of curves that one statement reads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What is known about a study when its report is written."""

    study: StudyRecord
    trials: Sequence[TrialRecord]
    curves: Mapping[int, Chunk]  # by number
    setting: Setting
    evidence: Sequence[Evidence]
    verdicts: Mapping[int, Verdict]  # by number
    best: TrialRecord | None
    rates: GoodRates | None  # over all trials
    by_schedule: Sequence[GoodRates]
    by_optimizer: Sequence[GoodRates]
    schedules: Sequence[Comparison]
    optimizers: Sequence[Comparison]
    sensitivities: Sequence[Sensitivity]  # to the rate, the most robust configuration first
    effects: Sequence[Effect]  # of settings and arguments, the largest first
    stable_limits: Mapping[str, tuple[float, float]]  # brackets found by a probe, by optimizer
    links: Mapping[int, str]  # URL of each trial's MLflow run, by number
    drift: Sequence[RetrainingStep]  # the study's retrainings, oldest first
    submitted: Event | None  # the last time; None of a study of an earlier version of tuner
    spend: Spend
    outlook: Outlook | None  # of the search; None: unknown
    decision: Decision | None  # between the best trials, under new seeds; None: none reserved

    def trial(self, number: int) -> TrialRecord:
        """Return the trial with this number."""
        return next(one for one in self.trials if one.number == number)

    def varied(self) -> list[str]:
        """Return the parameters with several values, without rate, schedule and optimizer."""
        values: dict[str, set[ParameterValue]] = {}
        for trial in self.trials:
            for name, value in (trial.params or {}).items():
                values.setdefault(name, set()).add(value)
        return sorted(name for name, own in values.items() if len(own) > 1 and name not in CHOSEN)

    @property
    def unfinished(self) -> int:
        """Number of trials that are running or waiting."""
        return sum(one.state == RUNNING for one in self.trials)

    def value(self, trial: TrialRecord) -> float:
        """Return a trial's value, or its last report if it was stopped; nan if it has none."""
        if trial.state == COMPLETED and trial.value is not None:
            return trial.value
        curve = self.curves.get(trial.number)
        metric = self.study.spec.study.metric
        if curve is None or trial.state in {"diverged", "failed"}:
            return float("nan")
        values = curve.metrics.get(metric, np.empty(0))
        return float(values[-1]) if len(values) else float("nan")


def gather(
    ledger: Reader,
    study: StudyRecord,
    *,
    links: Mapping[int, str] | None = None,
) -> Findings:
    """Read a study and judge its trials. The result depends on the study and `links` alone."""
    trials = ledger.trials(study.id)
    assessor = Assessor(ledger, study)
    evidence = assessor.evidence(trials)
    verdicts = assessor.verdicts(trials)
    drawn = [one for one in trials if one.params is not None and not one.imported]
    rng = np.random.default_rng(study.spec.study.seed)
    setting = assessor.setting({})
    return Findings(
        study=study,
        trials=trials,
        curves=read_curves(ledger, drawn),
        setting=setting,
        evidence=evidence,
        verdicts=verdicts,
        best=ledger.best(study),
        rates=next(iter(comparisons.good_rates(evidence, verdicts)), None),
        by_schedule=comparisons.good_rates(evidence, verdicts, "schedule"),
        by_optimizer=comparisons.good_rates(evidence, verdicts, "optimizer"),
        schedules=comparisons.compare(evidence, rng, "schedule"),
        optimizers=comparisons.compare(evidence, rng, "optimizer"),
        effects=effects(study, trials),
        sensitivities=sensitivities(
            evidence, setting.baseline, np.random.default_rng(study.spec.study.seed)
        ),
        stable_limits=_stable_limits(ledger, study),
        links=links or {},
        submitted=events.latest(ledger, [study.name])[study.name].get(events.SUBMITTED),
        spend=spending(ledger, [study])[study.id],
        drift=steps(Retrainings(ledger).history(study.name)),
        outlook=_outlook(study, trials),
        decision=decision(ledger, study) if study.deciding_trials else None,
    )


def _outlook(study: StudyRecord, trials: Sequence[TrialRecord]) -> Outlook | None:
    """Return what random search would have found, and what a further trial promises."""
    from tuner.search.mirror import Mirror  # noqa: PLC0415
    from tuner.search.outlook import outlook  # noqa: PLC0415

    if study.spec.study.objectives or study.spec.study.constraints:
        return None
    mirror = Mirror(study.spec, study.title)
    searched = [one.searched() for one in trials]
    mirror.refresh(Searched(revision=study.revision, attrs=study.attrs, trials=searched))
    return outlook(study.spec, mirror.for_values())


def read_curves(ledger: Reader, trials: Sequence[TrialRecord]) -> dict[int, Chunk]:
    """Return the curves of trials, by trial number; read in batches."""
    found: dict[int, Chunk] = {}
    for first in range(0, len(trials), BATCH):
        some = trials[first : first + BATCH]
        curves = ledger.curves([one.id for one in some])
        found |= {one.number: curves[one.id] for one in some if one.id in curves}
    return found


def _stable_limits(ledger: Reader, study: StudyRecord) -> dict[str, tuple[float, float]]:
    """Return the bracket of each optimizer's largest stable rate, if a probe found one."""
    probe = ranges.result(ledger, study) or {}
    return {
        name: (one["stable"][0], one["stable"][1])
        for name, one in probe.get("optimizers", {}).items()
        if None not in one["stable"]
    }
