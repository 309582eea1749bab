"""A mirror in memory of one study's trials, as samplers and pruners see them.

The mirror changes only by `refresh`, from the ledger. A refresh costs what changed, whatever the
number of trials: a study may have ten thousand.
"""

from __future__ import annotations

import copy
import math
import statistics
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tuner.config import ParameterValue, StudySpec
from tuner.core.errors import UnreadableError
from tuner.core.outcome import CANCELLED, COMPLETED, DIVERGED, FAILED, PRUNED, RUNNING
from tuner.ledger import Searched, SearchedTrial, TrialRecord
from tuner.ledger.decoding import log_once, study_attrs_of
from tuner.ledger.reading import refuse_misfit
from tuner.ledger.records import ADDED
from tuner.search.space import distributions, ordered_distribution, to_sampler

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
    """Return Optuna's record of a trial, with its searched parameters and its reports."""
    return Freezer(spec)(record.searched())


LARGEST = 1e100
"""Limit of values for samplers that learn from them: their variance must not overflow."""


class Freezer:
    """Converts trials to Optuna's form; those with the same parameters share distributions.

    Shared distributions are never modified: Optuna's code gets a copy of the trial that it draws
    parameters for. With `ordered`, lists of numbers are ordered, as samplers see them; else they
    are as recorded.
    """

    def __init__(self, spec: StudySpec, *, ordered: bool = False) -> None:
        self._space = spec.space
        self._objectives = len(spec.study.objectives)
        self._parameters = {one.name: one for one in spec.space.parameters()}
        self._ordered = ordered
        self._known: dict[tuple[str, ...], dict[str, Any]] = {}

    def __call__(self, record: SearchedTrial) -> FrozenTrial:
        """Return Optuna's form of a trial, with its searched parameters and its reports.

        Raise `UnreadableError` if the parameters are not in the study's space.
        """
        searched, params = {}, record.params or {}
        if params:
            refuse_misfit(record, self._parameters.values())
            kind = tuple(params)
            if kind not in self._known:
                self._known[kind] = self._distributions(params)
            searched = self._known[kind]
        reports = dict(record.reports)
        state = STATES[record.state]
        value: float | None = record.value
        values: Sequence[float] | None = None
        if state == TrialState.PRUNED:
            value = reports[max(reports)] if reports else None
        elif state == TrialState.COMPLETE and self._objectives:
            value, values = None, record.objectives or ()
            if len(values) != self._objectives:
                raise UnreadableError(
                    f"trial {record.number} cannot be read: objectives: expected "
                    f"{self._objectives} numbers, got {len(values)}"
                )
        return FrozenTrial(
            number=record.number,
            trial_id=record.number,
            state=state,
            value=value,
            values=values,
            datetime_start=_datetime(record.created_at),
            datetime_complete=None if record.ended_at is None else _datetime(record.ended_at),
            params={name: self._value(name, params[name]) for name in searched},
            distributions=searched,
            user_attrs={},
            system_attrs=dict(record.attrs),
            intermediate_values=reports,
        )

    def _distributions(self, params: Mapping[str, ParameterValue]) -> dict[str, Any]:
        found = distributions(self._space, params)
        if self._ordered:
            return {name: ordered_distribution(self._parameters[name]) for name in found}
        return found

    def _value(self, name: str, value: ParameterValue) -> Any:
        return to_sampler(self._parameters[name], value) if self._ordered else value


def _datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


@dataclass
class TrialsByNumber:
    """Trials, sorted by number."""

    _numbers: list[int] = field(default_factory=list)
    _trials: list[FrozenTrial] = field(default_factory=list)

    def __iter__(self) -> Iterator[FrozenTrial]:
        """Iterate over the trials."""
        return iter(self._trials)

    def index(self, number: int) -> int | None:
        """Return the index of a trial, or None if it is not included."""
        index = bisect_left(self._numbers, number)
        found = index < len(self._numbers) and self._numbers[index] == number
        return index if found else None

    def __getitem__(self, number: int) -> FrozenTrial:
        """Return a trial by its number. Raise `KeyError`."""
        index = self.index(number)
        if index is None:
            raise KeyError(f"no trial {number}")
        return self._trials[index]

    def get(self, number: int) -> FrozenTrial | None:
        """Return a trial by its number, or None if it is not included."""
        return None if self.index(number) is None else self[number]

    def put(self, trial: FrozenTrial) -> None:
        """Add a trial, or replace the one with its number."""
        index = bisect_left(self._numbers, trial.number)
        if index < len(self._numbers) and self._numbers[index] == trial.number:
            self._trials[index] = trial
        else:
            self._numbers.insert(index, trial.number)
            self._trials.insert(index, trial)

    def remove(self, number: int) -> None:
        """Remove a trial; ignore an unknown one."""
        index = self.index(number)
        if index is not None:
            del self._numbers[index], self._trials[index]


class Mirror:
    """All trials of one study, updated by revision."""

    def __init__(self, spec: StudySpec, name: str = "") -> None:
        self.spec = spec
        self.name = name or spec.study.name  # of the study in Optuna
        self.revision = 0
        self.attrs: dict[str, Any] = {}
        self._freeze = Freezer(spec, ordered=True)
        self._all = TrialsByNumber()
        self._for_sampler = TrialsByNumber()
        self._competitors = TrialsByNumber()
        self._completed = TrialsByNumber()
        self._for_values: TrialsByNumber | None = None  # None: outdated
        self._outcomes: dict[int, str] = {}  # the outcome's kind
        self._imported: dict[int, Mapping[str, ParameterValue]] = {}
        self._added: list[int] = []  # numbers of trials that a person added, sorted

    def refresh(self, changes: Searched) -> None:
        """Apply what changed since `revision`."""
        self.revision = changes.revision
        self.attrs = dict(study_attrs_of(f"study {self.name!r}", changes.attrs, self.spec))
        for record in changes.trials:
            try:
                trial = self._freeze(record)
            except UnreadableError as error:
                log_once(f"study {self.name}: {error}; it is left out of the search")
                continue
            self._update(record, trial)
        if changes.trials:
            self._for_values = None

    def _update(self, record: SearchedTrial, trial: FrozenTrial) -> None:
        self._all.put(trial)
        if record.state != RUNNING:
            self._outcomes[record.number] = record.state
        if record.imported:
            self._imported[record.number] = record.params or {}
        if ADDED in record.attrs and record.number not in self._added:
            insort(self._added, record.number)
        self._for_sampler.put(trial if record.state != DIVERGED else _without_reports(trial))
        if record.state == DIVERGED or violation(trial) > 0:
            self._competitors.remove(record.number)
        elif not record.imported:
            self._competitors.put(trial)
            if record.state == COMPLETED:
                self._completed.put(trial)

    @contextmanager
    def with_draws(self) -> Iterator[Callable[[FrozenTrial, Mapping[str, Any]], None]]:
        """Yield a function that adds a draw not yet committed: a running trial and attributes.

        All of them are removed at the end.
        """
        before: dict[int, FrozenTrial] = {}
        attrs = self.attrs

        def assume(trial: FrozenTrial, attrs: Mapping[str, Any]) -> None:
            before.setdefault(trial.number, self._all[trial.number])
            self._put_running(trial)
            self.attrs = {**self.attrs, **attrs}

        try:
            yield assume
        finally:
            for trial in before.values():
                self._put_running(trial)
            self.attrs = attrs

    def _put_running(self, trial: FrozenTrial) -> None:
        for trials in (self._all, self._for_sampler, self._competitors):
            trials.put(trial)
        self._for_values = None

    def trial(self, number: int) -> FrozenTrial:
        """Return one trial. Raise `UnreadableError` if its row cannot be read."""
        found = self._all.get(number)
        if found is None:
            raise UnreadableError(f"trial {number} of study {self.name!r} cannot be read")
        return found

    def for_sampler(self) -> TrialsByNumber:
        """Return all trials, diverged ones as pruned before their first report: the worst rank.

        If a sampler did not see diverged trials, it would draw their rates again. They must not
        appear as completed trials with a bad value either: TPE ranks every completed trial above
        every pruned one, so if most trials are pruned, diverged ones would rank among the good.
        """
        return self._for_sampler

    def for_values(self) -> TrialsByNumber:
        """Return all trials, with completed, pruned and diverged ones as completed.

        For samplers that learn from completed trials only. The value of a pruned trial is its last
        report, but not better than the median of the completed ones: others were better when it
        was stopped. The value of a diverged trial is a little worse than the worst of these, which
        makes a difference even if all others are equal. Until there is another value they stay
        pruned: with equal values only, a Gaussian process would draw corners of the space forever.
        """
        if self._for_values is None:
            self._for_values = self._with_values()
        return self._for_values

    def _with_values(self) -> TrialsByNumber:
        sign = 1.0 if self.spec.study.direction == "minimize" else -1.0
        losses = {  # lower is better
            trial.number: min(max(sign * trial.value, -LARGEST), LARGEST)
            for trial in self._all
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.value is not None
            if self._outcomes[trial.number] != DIVERGED
        }
        if not losses:
            return self._for_sampler
        completed = [losses[n] for n in losses if self._outcomes[n] == COMPLETED]
        best_pruned = statistics.median(completed) if completed else -math.inf
        for number, loss in losses.items():
            if self._outcomes[number] == PRUNED:
                losses[number] = max(loss, best_pruned)
        worst = max(losses.values())
        spread = worst - min(losses.values())
        penalty = worst + (0.1 * spread or abs(worst) or 1.0)
        valued = TrialsByNumber()
        for trial in self._all:
            valued_trial = trial
            if trial.state == TrialState.PRUNED or abs(trial.value or 0.0) > LARGEST:
                valued_trial = copy.copy(trial)
                valued_trial.state = TrialState.COMPLETE
                valued_trial.value = sign * losses.get(trial.number, penalty)
            valued.put(valued_trial)
        return valued

    def for_pruner(self) -> TrialsByNumber:
        """Return the trials that the pruner compares: those of this version that may be the best.

        With diverged trials included, bad trials would look like the median; infeasible ones may
        have better values than any feasible one. Imported trials competed in other brackets with
        other competitors.
        """
        return self._competitors

    def completed_competitors(self) -> TrialsByNumber:
        """Return the completed trials of `for_pruner`; median and percentile use no others."""
        return self._completed

    def own(self) -> list[FrozenTrial]:
        """Return all trials of this version, unchanged."""
        return [trial for trial in self._all if trial.number not in self._imported]

    def added_before(self, number: int) -> int:
        """Count the trials before a number that a person added, which no sampler draws."""
        return bisect_left(self._added, number)

    def imported(self) -> list[Mapping[str, ParameterValue]]:
        """Return the parameters of the trials imported from earlier versions of the study."""
        return [params for _, params in sorted(self._imported.items())]

    def sources(self) -> list[FrozenTrial]:
        """Return the imported trials that have values, in the form of `for_values`."""
        with_values = {n for n in self._imported if self._outcomes[n] != DIVERGED}
        return [trial for trial in self.for_values() if trial.number in with_values]


def violation(trial: FrozenTrial) -> float:
    """Return the sum of what a trial exceeds the study's constraints by; 0: it is feasible."""
    return sum(max(0.0, excess) for excess in trial.constraints.values())


def _without_reports(trial: FrozenTrial) -> FrozenTrial:
    bare = copy.copy(trial)
    bare.value = None
    bare.intermediate_values = {}
    return bare
