"""Which settings and arguments mattered: their effect on the value, with intervals.

Trials of a search are no random sample. A sampler draws better rates as it goes on, and repeats the
other parameters of its best trials, whether they matter or not: among 40 trials of tpe, a plain
rank correlation calls a parameter of two values that does nothing significant in 7 of 10 studies.
So what the order of trials, their optimizer and their rate explain is taken from both sides first,
which also makes real effects easier to see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.stats import rankdata

from tuner.config import Parameter, ParameterValue, Range
from tuner.core.outcome import COMPLETED
from tuner.ledger import StudyRecord, TrialRecord

ENOUGH = 8
"""Least number of completed trials beyond those that the order, the rate and so on explain."""
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The effect of one parameter among completed trials of equal order, optimizer and rate.

    For numbers it is the partial rank correlation with the value, above 0 if larger numbers are
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


def effects(study: StudyRecord, trials: Sequence[TrialRecord]) -> list[Effect]:
    """Return the effects of settings, rates and arguments, the largest first."""
    sign = 1.0 if study.spec.study.direction == "minimize" else -1.0
    completed = [
        (trial, trial.params, sign * trial.value)
        for trial in trials
        if trial.state == COMPLETED and trial.params is not None and trial.value is not None
    ]
    found = [
        effect
        for one in study.spec.space.parameters()
        if one.name in study.spec.space.others
        and (effect := _effect(one, [each for each in completed if one.name in each[1]]))
    ]
    return sorted(found, key=lambda one: -abs(one.size))


_Completed = tuple[TrialRecord, Mapping[str, ParameterValue], float]  # with its parameters and loss


def _effect(one: Parameter, own: Sequence[_Completed]) -> Effect | None:
    """Return the effect of a parameter that all of `own` have; None if they cannot show one."""
    given = [params[one.name] for _, params, _ in own]
    losses = np.array([loss for _, _, loss in own])
    if len(own) < ENOUGH or len(set(map(repr, given))) < 2 or len(set(losses)) < 2:
        return None
    known = _known(own)
    freedom = len(own) - np.linalg.matrix_rank(known) - 1
    if freedom < ENOUGH:
        return None
    ranks = _residuals(rankdata(losses), known)
    if isinstance(one.entry, Range) or one.ordered is not None:
        at = _residuals(rankdata([float(value) for value in given]), known)
        return _correlation(one.name, at, ranks, int(freedom))
    return _lead(one.name, given, ranks, known, int(freedom))


def _correlation(name: str, at: np.ndarray, ranks: np.ndarray, freedom: int) -> Effect | None:
    if not at.any() or not ranks.any():
        return None
    size = float(np.clip(-np.corrcoef(at, ranks)[0, 1], -1, 1))
    spread = stats.norm.ppf((1 + LEVEL) / 2) / np.sqrt(freedom - 1)  # by Fisher's transformation
    center = np.arctanh(np.clip(size, -1 + 1e-9, 1 - 1e-9))
    low, high = np.tanh([center - spread, center + spread])
    return Effect(
        name=name, trials=len(at), label=None, size=size, low=float(low), high=float(high)
    )


def _lead(
    name: str, given: Sequence[ParameterValue], ranks: np.ndarray, known: np.ndarray, freedom: int
) -> Effect | None:
    """Return the effect of the label that does best, with an interval for that choice of it."""
    labels = np.array(list(map(repr, given)))
    names = sorted(set(labels))
    level = 1 - (1 - LEVEL) / (1 if len(names) == 2 else len(names))
    found = []
    for one in names:
        at = _residuals((labels == one).astype(float), known)
        if not at.any():  # of the same trials as something known
            continue
        slope = float(at @ ranks) / float(at @ at)
        noise = np.sqrt(np.square(ranks - slope * at).sum() / freedom / float(at @ at))
        spread = float(stats.t.ppf((1 + level) / 2, freedom) * noise)
        label = given[int(np.flatnonzero(labels == one)[0])]
        low, high = ((-slope + by) / len(ranks) for by in (-spread, spread))
        found.append(
            Effect(
                name=name,
                trials=len(ranks),
                label=label,
                size=-slope / len(ranks),
                low=low,
                high=high,
            )
        )
    return max(found, key=lambda one: one.size, default=None)


def _known(own: Sequence[_Completed]) -> np.ndarray:  # [trial, column]
    """Return what is taken into account: the order of trials, their optimizers and rates."""
    order = _standard(rankdata([trial.number for trial, _, _ in own]))
    rate = _standard(np.log([float(params["lr"]) for _, params, _ in own]))
    optimizers = np.array([str(params["optimizer"]) for _, params, _ in own])
    kinds = [(optimizers == name).astype(float) for name in sorted(set(optimizers))]
    rates = [rate, np.square(rate), np.abs(rate)]
    return np.stack([*kinds, order, np.square(order), *rates], 1)


def _standard(values: np.ndarray) -> np.ndarray:
    spread = float(values.std())
    standard: np.ndarray = (values - values.mean()) / (spread if spread > 1e-9 else 1.0)
    return standard


def _residuals(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return what the columns of `known` do not explain of values; 0 where that is all."""
    left: np.ndarray = values - known @ np.linalg.lstsq(known, values, rcond=None)[0]
    explained = left.std() <= 1e-6 * max(values.std(), 1e-12)
    return np.zeros_like(values) if explained else left
