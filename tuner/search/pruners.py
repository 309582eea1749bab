"""Optuna's pruners by our settings, and the sentences about their decisions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
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
    Hyperband,
    Median,
    NoPruner,
    OneRung,
    Patient,
    Percentile,
    StudySpec,
)
from tuner.config import Halving as HalvingTable
from tuner.search.halving import Halving
from tuner.search.rung_rankings import Standings

HALF = 2
"""1 in so many goes on from the one rung of `halving`."""


def pruner_for(spec: StudySpec, rungs: tuple[int, ...]) -> BasePruner:
    """Make the pruner of a study whose `rungs` were fixed when it was submitted."""
    steps = spec.training.steps
    pruner = spec.search.pruner
    return _made(pruner, rungs[0] if rungs else steps, steps)


class Judge:
    """Decides which trials of a study are stopped, as Optuna's pruners would."""

    def __init__(self, spec: StudySpec, rungs: tuple[int, ...], standings: Standings) -> None:
        steps, table = spec.training.steps, spec.search.pruner
        first_rung = rungs[0] if rungs else steps
        self._patient: BasePruner | None = None
        if isinstance(table, Patient):
            self._patient = _patient(None, table)
            table = table.wraps
            first_rung = table.first_rung(steps) if isinstance(table, HalvingTable) else 0
        self._halving: Halving | None = None
        if isinstance(table, HalvingTable | OneRung):
            factor = table.reduction_factor if isinstance(table, HalvingTable) else HALF
            self._halving = Halving(standings, first_rung=first_rung, factor=factor)
        self._alone = self._patient is not None and isinstance(table, NoPruner)
        self._pruner = _made(table, first_rung, steps)

    def stopped(self, study: Study, group: Sequence[FrozenTrial]) -> set[int]:
        """Give the numbers of the trials that are stopped, each at its last report.

        All of the group have reported before any is judged. Successive halving compares them with
        each other and writes to their attributes, see `Halving.stopped`; the other pruners look
        at a trial's own reports and at those of completed trials.
        """
        asked = [
            trial for trial in group if self._patient is None or self._patient.prune(study, trial)
        ]
        if self._halving is not None:
            return self._halving.stopped(asked)
        return {trial.number for trial in asked if self._alone or self._pruner.prune(study, trial)}


def _made(pruner: AnyPruner, first_rung: int, steps: int) -> BasePruner:
    match pruner:
        case ASHA() | OneRung():
            factor = HALF if isinstance(pruner, OneRung) else pruner.reduction_factor
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
            first = wrapped.first_rung(steps) if isinstance(wrapped, HalvingTable) else 0
            inner = None if isinstance(wrapped, NoPruner) else _made(wrapped, first, steps)
            return _patient(inner, pruner)
        case NoPruner():
            return NopPruner()


def _patient(inner: BasePruner | None, table: Patient) -> PatientPruner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return PatientPruner(inner, patience=table.patience, min_delta=table.min_delta)


class FixedHyperbandPruner(HyperbandPruner):
    """Has its brackets from the beginning.

    Optuna's own makes them when it first decides. Until then every trial is in bracket 0, so that
    a restart would change what samplers see.
    """

    def __init__(self, *, min_resource: int, max_resource: int, reduction_factor: int) -> None:
        super().__init__(
            min_resource=min_resource,
            max_resource=max_resource,
            reduction_factor=reduction_factor,
        )
        self._try_initialization(cast("Study", None))  # looks at a study for "auto" alone


def bracket_of(pruner: BasePruner, study: Study, trial: FrozenTrial) -> int | None:
    """Give the bracket in which a trial competes; None where there are no brackets."""
    if isinstance(pruner, PatientPruner):
        pruner = pruner._wrapped_pruner or NopPruner()
    return pruner._get_bracket_id(study, trial) if isinstance(pruner, HyperbandPruner) else None


def sentence(
    spec: StudySpec,
    *,
    prune: bool,
    step: int,
    value: float,
    ahead: int,
    others: int,
    bracket: int | None,
) -> str:
    """Say what was decided at a rung and why; `ahead` of the `others` there were better."""
    better, worse = "lower", "higher"
    if spec.study.direction == "maximize":
        better, worse = "higher", "lower"
    pruner = spec.search.pruner
    judge = pruner.wraps if isinstance(pruner, Patient) else pruner
    rivals = "other trials" if bracket is None else f"other trials of bracket {bracket}"
    said = f"{spec.study.metric} was {value:.4g} at step {step}"
    said += f", where {ahead} of the {others} {rivals} there were {better}"
    if isinstance(judge, Percentile) and prune:
        said += f" and only the best {judge.percentile:g} percent go on"
    if isinstance(judge, Hyperband) and bracket is not None:
        first = judge.first_rung(spec.training.steps) * judge.reduction_factor**bracket
        if step < first:
            said = f"{spec.study.metric} was {value:.4g} at step {step}"
            said += f", and bracket {bracket} prunes from step {first} on"
    if not prune:
        return f"Went on: {said}."
    if not isinstance(pruner, Patient):
        return f"Pruned by {pruner.name}: {said}."
    delta = f" by more than {pruner.min_delta:g}" if pruner.min_delta else ""
    reports = f"its last {pruner.patience + 1} reports were"
    if pruner.patience == 0:
        reports = "its last report was"
    said += f"; {reports} {worse} than its best one before{delta}"
    name = "patient" if isinstance(judge, NoPruner) else f"patient and {judge.name}"
    return f"Pruned by {name}: {said}."
