"""A mirror of one study's trials in memory, as samplers and as pruners are told of them.

The mirror changes only by `refresh`, from the ledger, and each change costs what changed alone: a
study may have ten thousand trials.
"""

from __future__ import annotations

import copy
import math
import statistics
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tuner.config import ParameterValue, StudySpec
from tuner.core.outcome import CANCELLED, COMPLETED, DIVERGED, FAILED, PRUNED, RUNNING
from tuner.ledger import Searched, SearchedTrial, TrialRecord
from tuner.search.space import distributions

STATES = {
    RUNNING: TrialState.RUNNING,
    COMPLETED: TrialState.COMPLETE,
    PRUNED: TrialState.PRUNED,
    DIVERGED: TrialState.PRUNED,
    FAILED: TrialState.FAIL,
    CANCELLED: TrialState.FAIL,
}
"""Optuna's state of a trial, by our state."""


def frozen(record: TrialRecord, spec: StudySpec) -> FrozenTrial:
    """Give a trial as Optuna has it: with the searched parameters and the reports."""
    return Freezer(spec)(record.searched())


LARGEST = 1e100
"""Samplers that learn from values take their variance, which must not overflow."""


class Freezer:
    """Makes Optuna's trials out of ours; those of one schedule and optimiser share distributions.

    What is shared is never written to: Optuna's code gets a copy of the trial that it draws for.
    """

    def __init__(self, spec: StudySpec) -> None:
        self._space = spec.space
        self._known: dict[tuple[ParameterValue, ParameterValue], dict[str, Any]] = {}

    def __call__(self, record: SearchedTrial) -> FrozenTrial:
        """Give a trial as Optuna has it: with the searched parameters and the reports."""
        searched, params = {}, record.params or {}
        if params:
            kind = params["schedule"], params["optimizer"]
            if kind not in self._known:
                self._known[kind] = distributions(self._space, params)
            searched = self._known[kind]
        reports = dict(record.reports)
        state = STATES[record.state]
        value = record.value
        if state == TrialState.PRUNED:
            value = reports[max(reports)] if reports else None
        return FrozenTrial(
            number=record.number,
            trial_id=record.number,
            state=state,
            value=value,
            datetime_start=_datetime(record.created_at),
            datetime_complete=None if record.ended_at is None else _datetime(record.ended_at),
            params={name: params[name] for name in searched},
            distributions=searched,
            user_attrs={},
            system_attrs=dict(record.attrs),
            intermediate_values=reports,
        )


def _datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


@dataclass
class Numbered:
    """Trials in the order of their numbers."""

    _numbers: list[int] = field(default_factory=list)
    _trials: list[FrozenTrial] = field(default_factory=list)

    def __iter__(self) -> Iterator[FrozenTrial]:
        """Go through the trials."""
        return iter(self._trials)

    def place(self, number: int) -> int | None:
        """Find where a trial is; None where it is not one of them."""
        place = bisect_left(self._numbers, number)
        there = place < len(self._numbers) and self._numbers[place] == number
        return place if there else None

    def __getitem__(self, number: int) -> FrozenTrial:
        """Give a trial by its number. Raises `KeyError`."""
        place = self.place(number)
        if place is None:
            raise KeyError(f"trial {number} is not one of these")
        return self._trials[place]

    def get(self, number: int) -> FrozenTrial | None:
        """Give a trial, if it is one of them."""
        return None if self.place(number) is None else self[number]

    def put(self, trial: FrozenTrial) -> None:
        """Add a trial, or put it in the place of what it was before."""
        place = bisect_left(self._numbers, trial.number)
        if place < len(self._numbers) and self._numbers[place] == trial.number:
            self._trials[place] = trial
        else:
            self._numbers.insert(place, trial.number)
            self._trials.insert(place, trial)

    def drop(self, number: int) -> None:
        """Leave a trial out from now on."""
        place = self.place(number)
        if place is not None:
            del self._numbers[place], self._trials[place]


class Mirror:
    """All trials of one study, kept up by revision."""

    def __init__(self, spec: StudySpec, name: str = "") -> None:
        self.spec = spec
        self.name = name or spec.study.name  # of the study in Optuna
        self.revision = 0
        self.attrs: dict[str, Any] = {}
        self._freeze = Freezer(spec)
        self._all = Numbered()
        self._told = Numbered()
        self._rivals = Numbered()
        self._completed = Numbered()
        self._valued: Numbered | None = None  # None: to be made anew
        self._ended: dict[int, str] = {}  # the outcome's kind
        self._imported: dict[int, Mapping[str, ParameterValue]] = {}

    def refresh(self, changes: Searched) -> None:
        """Take in what changed since `revision`."""
        self.revision = changes.revision
        self.attrs = dict(changes.attrs)
        for record in changes.trials:
            self._take(record, self._freeze(record))
        if changes.trials:
            self._valued = None

    def _take(self, record: SearchedTrial, trial: FrozenTrial) -> None:
        self._all.put(trial)
        if record.state != RUNNING:
            self._ended[record.number] = record.state
        if record.imported:
            self._imported[record.number] = record.params or {}
        if record.state == DIVERGED:
            self._told.put(_without_reports(trial))
            self._rivals.drop(record.number)
        else:
            self._told.put(trial)
            if not record.imported:
                self._rivals.put(trial)
                if record.state == COMPLETED:
                    self._completed.put(trial)

    @contextmanager
    def supposing(self) -> Iterator[Callable[[FrozenTrial, Mapping[str, Any]], None]]:
        """Give a function by which running trials, and attributes, are other ones for now.

        What it was given is taken back at the end.
        """
        before: dict[int, FrozenTrial] = {}
        attrs = self.attrs

        def suppose(trial: FrozenTrial, attrs: Mapping[str, Any]) -> None:
            before.setdefault(trial.number, self._all[trial.number])
            self._put_running(trial)
            self.attrs = {**self.attrs, **attrs}

        try:
            yield suppose
        finally:
            for trial in before.values():
                self._put_running(trial)
            self.attrs = attrs

    def _put_running(self, trial: FrozenTrial) -> None:
        for trials in (self._all, self._told, self._rivals):
            trials.put(trial)
        self._valued = None

    def trial(self, number: int) -> FrozenTrial:
        """Give one trial."""
        return self._all[number]

    def for_sampler(self) -> Numbered:
        """Give all trials, diverged ones as pruned before their first report: worse than any other.

        A sampler that is not told of divergence asks for it again. It must not be told of a
        completed trial with a bad value either: TPE ranks every completed trial above every pruned
        one, so where most are pruned it would count divergence among the good.
        """
        return self._told

    def for_values(self) -> Numbered:
        """Give all trials, each that ended by itself as completed, whatever stopped it.

        That is for samplers that learn from completed trials alone. A pruned trial has its last
        report, but none better than the median of the completed ones: others were better when it
        was stopped. A diverged one is a little worse than the worst of all these, so that there
        is a difference also where all others are equal. Before there is any other they stay
        pruned: of nothing but equal values a Gaussian process asks for the corners for ever.
        """
        if self._valued is None:
            self._valued = self._with_values()
        return self._valued

    def _with_values(self) -> Numbered:
        sign = 1.0 if self.spec.study.direction == "minimize" else -1.0
        losses = {  # lower is better
            trial.number: min(max(sign * trial.value, -LARGEST), LARGEST)
            for trial in self._all
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.value is not None
            if self._ended[trial.number] != DIVERGED
        }
        if not losses:
            return self._told
        completed = [losses[n] for n in losses if self._ended[n] == COMPLETED]
        best_pruned = statistics.median(completed) if completed else -math.inf
        for number, loss in losses.items():
            if self._ended[number] == PRUNED:
                losses[number] = max(loss, best_pruned)
        worst = max(losses.values())
        spread = worst - min(losses.values())
        penalty = worst + (0.1 * spread or abs(worst) or 1.0)
        valued = Numbered()
        for trial in self._all:
            told = trial
            if trial.state == TrialState.PRUNED or abs(trial.value or 0.0) > LARGEST:
                told = copy.copy(trial)
                told.state = TrialState.COMPLETE
                told.value = sign * losses.get(trial.number, penalty)
            valued.put(told)
        return valued

    def for_pruner(self) -> Numbered:
        """Give what the pruner compares: the trials of this version that have not diverged.

        Diverged ones would make bad trials look like the median; imported ones were in other
        brackets, and made their way through other rivals.
        """
        return self._rivals

    def completed_rivals(self) -> Numbered:
        """Give those of them that have completed; median and percentile look at no others."""
        return self._completed

    def own(self) -> list[FrozenTrial]:
        """Give all trials of this version, as they are."""
        return [trial for trial in self._all if trial.number not in self._imported]

    def imported(self) -> list[Mapping[str, ParameterValue]]:
        """Give the parameters of the trials that came from earlier versions of the study."""
        return [params for _, params in sorted(self._imported.items())]

    def sources(self) -> list[FrozenTrial]:
        """Give the imported trials that have values, as `for_values` does."""
        with_values = {n for n in self._imported if self._ended[n] != DIVERGED}
        return [trial for trial in self.for_values() if trial.number in with_values]


def _without_reports(trial: FrozenTrial) -> FrozenTrial:
    told = copy.copy(trial)
    told.value = None
    told.intermediate_values = {}
    return told
