"""Optuna's pruners as a study file configures them, and the reasons of their decisions."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.trial import FrozenTrial

from tuner.config import (
    ASHA,
    AnyPruner,
    Branching,
    Halving,
    Hyperband,
    Median,
    NoPruner,
    OneRung,
    Patient,
    Percentile,
    SingleRung,
    StudySpec,
)
from tuner.search.rungs import RungRankings, SuccessiveHalving

FEWEST = 6
"""Trials that `one_rung` compares before it stops any: the first ones have few competitors."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The value by which a trial is compared at a rung, from a branch."""

    value: float | None  # None: it could not be measured; an infinite one diverged
    steps: int  # of the branch


def pruner_for(spec: StudySpec, rungs: tuple[int, ...]) -> BasePruner:
    """Return Optuna's pruner for a study whose `rungs` were fixed when it was submitted."""
    steps = spec.length
    pruner = spec.search.pruner
    return _build(pruner, rungs[0] if rungs else steps, steps)


class GroupPruner:
    """Decides which trials of a group are stopped, as Optuna's pruners would one by one."""

    def __init__(self, spec: StudySpec, rungs: tuple[int, ...], rankings: RungRankings) -> None:
        steps, table = spec.length, spec.search.pruner
        first_rung = rungs[0] if rungs else steps
        self._patient: BasePruner | None = None
        if isinstance(table, Patient):
            self._patient = _patient(None, table)
            table = table.wraps
            first_rung = table.first_rung(steps) if isinstance(table, Halving) else 0
        self._halving: SuccessiveHalving | None = None
        if isinstance(table, Halving | SingleRung):
            self._halving = SuccessiveHalving(
                rankings,
                first_rung=first_rung,
                continuing=_continuing(spec, table),
                fewest=FEWEST if isinstance(table, OneRung) else 1,
            )
        self._spares_leaders = isinstance(table, OneRung)
        self._maximize = spec.study.direction == "maximize"
        self._patient_only = self._patient is not None and isinstance(table, NoPruner)
        self._pruner = _build(table, first_rung, steps)

    def stopped(
        self,
        study: Study,
        group: Sequence[FrozenTrial],
        judged: Mapping[int, Judged],
        completed: Sequence[float],
        default: int | None,
    ) -> set[int]:
        """Return the numbers of the trials to stop, each at its last report.

        Trials are compared by their last reports, or by the `judged` values of those in it.
        `completed` are the values of completed trials, and `default` is the trial with the declared
        default, if there is one.

        The whole group has reported before any trial is judged. Successive halving compares its
        trials with each other and writes to their attributes, see `SuccessiveHalving.stopped`. The
        other pruners read a trial's own reports and those of completed trials.
        """
        candidates = [
            trial for trial in group if self._patient is None or self._patient.prune(study, trial)
        ]
        if self._halving is not None:
            values = {number: one.value for number, one in judged.items() if one.value is not None}
            known = [t for t in candidates if t.number not in judged or t.number in values]
            stopped = self._halving.stopped(known, values)
            if self._spares_leaders:
                stopped -= {t.number for t in known if self._leads(t, completed)} | {default}
            return stopped
        if self._patient_only:
            return {trial.number for trial in candidates}
        return {trial.number for trial in candidates if self._pruner.prune(study, trial)}

    def _leads(self, trial: FrozenTrial, completed: Sequence[float]) -> bool:
        """Return whether a trial is already better than every completed one."""
        if not completed:
            return False
        value = trial.intermediate_values[max(trial.intermediate_values)]
        return value > max(completed) if self._maximize else value < min(completed)


def _continuing(spec: StudySpec, table: Halving | SingleRung) -> Fraction:
    """Return the share of the trials that continues at a rung."""
    if isinstance(table, Halving):
        return Fraction(1, table.reduction_factor)
    return table.continuing(branches=isinstance(spec.judge, Branching))


def _build(pruner: AnyPruner, first_rung: int, steps: int) -> BasePruner:
    match pruner:
        case ASHA() | SingleRung():
            factor = pruner.reduction_factor if isinstance(pruner, ASHA) else 2
            return SuccessiveHalvingPruner(min_resource=first_rung, reduction_factor=factor)
        case Hyperband():
            return FixedHyperbandPruner(
                min_resource=first_rung,
                max_resource=steps,
                reduction_factor=pruner.reduction_factor,
            )
        case Median():
            return MedianPruner(
                n_startup_trials=pruner.startup_trials, n_warmup_steps=pruner.warmup_steps
            )
        case Percentile():
            return PercentilePruner(
                pruner.percentile,
                n_startup_trials=pruner.startup_trials,
                n_warmup_steps=pruner.warmup_steps,
                n_min_trials=pruner.min_trials,
            )
        case Patient(wraps=wrapped):
            first = wrapped.first_rung(steps) if isinstance(wrapped, Halving) else 0
            inner = None if isinstance(wrapped, NoPruner) else _build(wrapped, first, steps)
            return _patient(inner, pruner)
        case NoPruner():
            return NopPruner()


def _patient(inner: BasePruner | None, table: Patient) -> PatientPruner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return PatientPruner(inner, patience=table.patience, min_delta=table.min_delta)


class FixedHyperbandPruner(HyperbandPruner):
    """Hyperband whose brackets exist from the start.

    Optuna's creates them at its first decision. Until then every trial is in bracket 0, so a
    restart would change what samplers see.
    """

    def __init__(self, *, min_resource: int, max_resource: int, reduction_factor: int) -> None:
        super().__init__(
            min_resource=min_resource,
            max_resource=max_resource,
            reduction_factor=reduction_factor,
        )
        self._try_initialization(cast("Study", None))  # reads the study only for "auto"


def bracket_of(pruner: BasePruner, study: Study, trial: FrozenTrial) -> int | None:
    """Return the bracket in which a trial competes; None if there are no brackets."""
    if isinstance(pruner, PatientPruner):
        pruner = pruner._wrapped_pruner or NopPruner()
    return pruner._get_bracket_id(study, trial) if isinstance(pruner, HyperbandPruner) else None


def reason_of_decision(
    spec: StudySpec,
    *,
    prune: bool,
    step: int,
    value: float,
    ahead: int,
    others: int,
    bracket: int | None,
    judged: Judged | None = None,
) -> str:
    """Return why a trial was pruned or continued; `ahead` of the `others` there were better."""
    better, worse = "lower", "higher"
    if spec.study.direction == "maximize":
        better, worse = "higher", "lower"
    pruner = spec.search.pruner
    wrapped = pruner.wraps if isinstance(pruner, Patient) else pruner
    competitors = "other trials" if bracket is None else f"other trials of bracket {bracket}"
    unit = spec.unit.removesuffix("s")
    reason = f"{spec.study.metric} was {value:.4g} at {unit} {step}"
    if judged is not None and judged.value is None:
        return f"Went on: {reason}, and there was no memory for a branch of it."
    if judged is not None:
        assert isinstance(spec.judge, Branching)
        rest = spec.judge.name == "fast_forward"
        how = "through the rest of its schedule" if rest else "with averaged weights"
        reason += f" and {judged.value:.4g} after a branch of {judged.steps} steps {how}"
    reason += f", where {ahead} of the {others} {competitors} there were {better}"
    if isinstance(wrapped, Percentile) and prune:
        reason += f" and only the best {wrapped.percentile:g} percent go on"
    if isinstance(wrapped, Hyperband) and bracket is not None:
        first = wrapped.first_rung(spec.length) * wrapped.reduction_factor**bracket
        if step < first:
            reason = f"{spec.study.metric} was {value:.4g} at {unit} {step}"
            reason += f", and bracket {bracket} prunes from {unit} {first} on"
    if not prune:
        return f"Went on: {reason}."
    if not isinstance(pruner, Patient):
        return f"Pruned by {pruner.name}: {reason}."
    delta = f" by more than {pruner.min_delta:g}" if pruner.min_delta else ""
    reports = f"its last {pruner.patience + 1} reports were"
    if pruner.patience == 0:
        reports = "its last report was"
    reason += f"; {reports} {worse} than its best one before{delta}"
    name = "patient" if isinstance(wrapped, NoPruner) else f"patient and {wrapped.name}"
    return f"Pruned by {name}: {reason}."
