"""Which settings and arguments mattered: their effect on the value, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from tuner.config import Parameter, ParameterValue, Range
from tuner.core.outcome import COMPLETED
from tuner.ledger import StudyRecord, TrialRecord

ENOUGH = 8
"""Least number of completed trials with a parameter."""
RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The effect of one parameter among completed trials.

    For numbers it is the rank correlation (Spearman) with the value, above 0 if larger numbers are
    better. For labels it is the lead of the best one: by how much its mean rank, from 0 to 1, is
    better than that of the others.
    """

    name: str
    trials: int
    label: ParameterValue | None  # the best one; None for numbers
    size: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes no effect."""
        return self.low > 0 or self.high < 0


def effects(
    study: StudyRecord, trials: Sequence[TrialRecord], rng: np.random.Generator
) -> list[Effect]:
    """Return the effects of settings, rates and arguments, the largest first.

    Trials of a search are no random sample, so this shows which values did better in this study.
    """
    found = [
        effect
        for one in study.spec.space.parameters()
        if one.name in study.spec.space.others
        and (effect := _effect(one, study, trials, rng)) is not None
    ]
    return sorted(found, key=lambda one: -abs(one.size))


def _effect(
    one: Parameter, study: StudyRecord, trials: Sequence[TrialRecord], rng: np.random.Generator
) -> Effect | None:
    sign = 1.0 if study.spec.study.direction == "minimize" else -1.0
    own = [
        (trial.params[one.name], sign * trial.value)
        for trial in trials
        if trial.state == COMPLETED
        and trial.params is not None
        and trial.value is not None
        and one.name in trial.params
    ]
    different = {repr(value) for value, _ in own}
    if len(own) < ENOUGH or len(different) < 2 or len({loss for _, loss in own}) < 2:
        return None
    losses = np.array([loss for _, loss in own])
    label = None
    if isinstance(one.entry, Range) or one.ordered is not None:
        at = np.array([float(value) for value, _ in own])
    else:
        ranks = rankdata(losses)
        labels = np.array([repr(value) for value, _ in own])
        best = min(sorted(different), key=lambda name: ranks[labels == name].mean())
        label = next(value for value, _ in own if repr(value) == best)
        at = (labels == best).astype(float)
    size = _size(at, losses, label is not None)
    draws = [
        _size(at[chosen], losses[chosen], label is not None)
        for chosen in rng.integers(len(own), size=(RESAMPLES, len(own)))
    ]
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Effect(
        name=one.name, trials=len(own), label=label, size=size, low=float(low), high=float(high)
    )


def _size(at: np.ndarray, losses: np.ndarray, labels: bool) -> float:  # both [trial]
    ranks = rankdata(losses)
    if labels:
        if not 0 < at.sum() < len(at):
            return float("nan")
        return float((ranks[at == 0].mean() - ranks[at == 1].mean()) / len(at))
    places = rankdata(at)
    if np.ptp(places) == 0 or np.ptp(ranks) == 0:
        return float("nan")
    return float(-np.corrcoef(places, ranks)[0, 1])
