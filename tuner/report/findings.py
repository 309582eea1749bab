"""What a report is about: one study's trials, curves, verdicts and verdicts, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tuner.analysis import comparisons
from tuner.analysis.comparisons import GoodRates, Wins
from tuner.analysis.drift import Step, steps
from tuner.analysis.evidence import Assessor
from tuner.analysis.verdicts import Evidence, Given, Verdict
from tuner.config import ParameterValue
from tuner.core.curves import Chunk
from tuner.core.outcome import COMPLETED, RUNNING
from tuner.ledger import Reader, Retrainings, StudyRecord, TrialRecord
from tuner.report.charts.picture import Mark

PORTION = 500
"""Curves that are read with one statement."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """All that is known of a study when its report is written."""

    study: StudyRecord
    trials: Sequence[TrialRecord]
    curves: Mapping[int, Chunk]  # by number
    given: Given
    evidence: Sequence[Evidence]
    verdicts: Mapping[int, Verdict]  # by number
    best: TrialRecord | None
    rates: GoodRates | None  # over all trials
    by_schedule: Sequence[GoodRates]
    by_optimizer: Sequence[GoodRates]
    schedules: Sequence[Wins]
    optimizers: Sequence[Wins]
    marks: Sequence[Mark]  # on the axis of rates, as a probe found them
    links: Mapping[int, str]  # to the runs of trials, by number
    drift: Sequence[Step]  # the study's retrainings, oldest first

    def trial(self, number: int) -> TrialRecord:
        """Give a trial by its number."""
        return next(one for one in self.trials if one.number == number)

    def varied(self) -> list[str]:
        """Name the parameters, beside rate and choices, of which there were several values."""
        values: dict[str, set[ParameterValue]] = {}
        for trial in self.trials:
            for name, value in (trial.params or {}).items():
                values.setdefault(name, set()).add(value)
        chosen = ("lr", "schedule", "optimizer")
        return sorted(name for name, own in values.items() if len(own) > 1 and name not in chosen)

    def value(self, trial: TrialRecord) -> float:
        """Give a trial's value, of one that was stopped its last; nan where there is none."""
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
    marks: Sequence[Mark] = (),
    links: Mapping[int, str] | None = None,
) -> Findings:
    """Read a study and judge it. The same study gives the same findings."""
    trials = ledger.trials(study.id)
    assessor = Assessor(ledger, study)
    evidence = assessor.evidence(trials)
    verdicts = assessor.verdicts(trials)
    drawn = [one for one in trials if one.params is not None and not one.imported]
    rng = np.random.default_rng(study.spec.study.seed)
    horizon = study.spec.training.steps
    return Findings(
        study=study,
        trials=trials,
        curves=read_curves(ledger, drawn),
        given=assessor.given({}),
        evidence=evidence,
        verdicts=verdicts,
        best=ledger.best(study),
        rates=next(iter(comparisons.good_rates(evidence, verdicts)), None),
        by_schedule=comparisons.good_rates(evidence, verdicts, "schedule"),
        by_optimizer=comparisons.good_rates(evidence, verdicts, "optimizer"),
        schedules=comparisons.winner(evidence, horizon, rng, "schedule"),
        optimizers=comparisons.winner(evidence, horizon, rng, "optimizer"),
        marks=marks,
        links=links or {},
        drift=steps(Retrainings(ledger).history(study.name)),
    )


def read_curves(ledger: Reader, trials: Sequence[TrialRecord]) -> dict[int, Chunk]:
    """Read the curves of trials by their numbers, many at a time."""
    found: dict[int, Chunk] = {}
    for first in range(0, len(trials), PORTION):
        some = trials[first : first + PORTION]
        curves = ledger.curves([one.id for one in some])
        found |= {one.number: curves[one.id] for one in some if one.id in curves}
    return found


def unfinished(found: Findings) -> int:
    """Count the trials that still run or wait."""
    return sum(one.state == RUNNING for one in found.trials)
