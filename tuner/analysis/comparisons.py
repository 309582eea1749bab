"""Comparisons within a study: ranges of good rates, and schedules or optimizers with each other.

Pure functions of trials' evidence and verdicts; the random generator is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tuner.analysis.statistics import Interval, simultaneous
from tuner.analysis.verdicts import GOOD_RATE, UNCLEAR, Evidence, Verdict
from tuner.core.outcome import COMPLETED

LEVEL = 0.9
"""Confidence level of intervals, as far as a bootstrap can estimate it."""
RESAMPLES = 2000
ENOUGH = 5
"""Least number of completed trials of a schedule to compare it; fewer do not show the scatter."""

Family = Literal["schedule", "optimizer"]


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One end of a range of good rates."""

    rate: float  # the outermost good rate
    beyond: float | None  # the nearest rate outside that is not good; None: unknown
    unclear: int  # number of trials outside whose rates are neither good nor bad
    inner: float  # the edge is at least as far out in a share `LEVEL` of bootstrap resamples


@dataclass(frozen=True, kw_only=True)
class GoodRates:
    """The good rates of one schedule or optimizer, or of all trials."""

    name: str
    trials: int  # number of good trials
    of: int  # number of trials
    low: Edge
    high: Edge

    @property
    def factor(self) -> float:
        """The highest good rate divided by the lowest."""
        return self.high.rate / self.low.rate


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The best schedule (or optimizer) compared with another one, by trials run to the horizon.

    Each is represented by the expected best of `n` of its trials, so that a schedule gains nothing
    from more trials (Dodge et al., Show Your Work, 2019).
    """

    winner: str
    other: str
    n: int
    margin: Interval  # of the expected best score, other - winner: above 0, the winner is better

    @property
    def significant(self) -> bool:
        """Whether the interval excludes equality."""
        return self.margin.above


def good_rates(
    found: Sequence[Evidence], verdicts: Mapping[int, Verdict], by: Family | None = None
) -> list[GoodRates]:
    """Return the range of good rates of each schedule or optimizer that has any, or of all trials.

    The range is of tried rates, so the true one is wider: at most up to `Edge.beyond`. `Edge.inner`
    shows how much of it depends on a few trials.
    """
    names = sorted({getattr(one, by) for one in found}) if by else ["all"]
    ranges = []
    for name in names:
        own = [one for one in found if by is None or getattr(one, by) == name]
        rates = np.array([one.rate for one in own])
        kinds = [verdicts[one.number].kind for one in own]
        ended = [one.outcome == COMPLETED for one in own]
        good = np.array([k == GOOD_RATE and e for k, e in zip(kinds, ended, strict=True)], bool)
        bad = np.array([kind not in (GOOD_RATE, UNCLEAR) for kind in kinds], bool)
        if good.any():
            low, high = _edge(rates, good, bad, 1.0), _edge(rates, good, bad, -1.0)
            ranges.append(
                GoodRates(name=name, trials=int(good.sum()), of=len(rates), low=low, high=high)
            )
    return ranges


def _edge(
    rates: np.ndarray, good: np.ndarray, bad: np.ndarray, sign: float
) -> Edge:  # rates, good, bad: [trial]
    """Return the lower edge of the good rates, or the upper one if `sign` is -1.

    The bootstrap is exact: a resample of N trials contains one of the k outermost good ones with
    probability 1 - (1 - k/N)^N.
    """
    inward = np.sort(sign * rates[good])
    n, k = len(rates), np.arange(1, len(inward) + 1)
    there = 1 - (1 - k / n) ** n
    inner = inward[np.searchsorted(there / there[-1], LEVEL)]
    outside = sign * rates < inward[0]
    beyond = sign * rates[outside & bad]
    return Edge(
        rate=float(sign * inward[0]),
        beyond=float(sign * beyond.max()) if len(beyond) else None,
        unclear=int((outside & ~bad).sum()),
        inner=float(sign * inner),
    )


def compare(
    found: Sequence[Evidence], rng: np.random.Generator, by: Family = "schedule"
) -> list[Comparison]:
    """Compare the best schedule (or optimizer) with each other one.

    Only trials that completed the horizon count: early pruning favors early decay. Empty if fewer
    than two have `ENOUGH` of them.
    """
    scores: dict[str, list[float]] = {}
    for one in found:
        if one.outcome == COMPLETED and one.steps == one.horizon and len(one.scores):
            scores.setdefault(getattr(one, by), []).append(float(one.scores[-1]))
    groups = {name: np.array(own) for name, own in scores.items() if len(own) >= ENOUGH}
    if len(groups) < 2:
        return []
    n = min(map(len, groups.values()))
    means = {name: expected_best(own[None], n)[0] for name, own in groups.items()}
    draws = {name: _resampled(own, n, rng) for name, own in groups.items()}
    first, *others = sorted(groups, key=lambda name: means[name])
    level = simultaneous(LEVEL, len(others))
    results = []
    for other in others:
        differences = draws[other] - draws[first]
        low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
        margin = Interval(
            mean=float(means[other] - means[first]),
            low=float(low),
            high=float(high),
            level=level,
            n=n,
        )
        results.append(Comparison(winner=first, other=other, n=n, margin=margin))
    return results


def expected_best(scores: np.ndarray, n: int) -> np.ndarray:  # [sample, trial] -> [sample]
    """Return the exact mean of the lowest of `n` scores drawn with replacement.

    The lowest is above the i-th of N sorted scores with probability ((N - i) / N)^n.
    """
    ordered = np.sort(scores, axis=1)
    left = np.arange(ordered.shape[1], -1, -1) / ordered.shape[1]
    weights = left[:-1] ** n - left[1:] ** n
    return np.asarray(ordered @ weights)


def _resampled(scores: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return the expected best of `n` for bootstrap resamples of scores [trial]; [resample]."""
    rows = max(1, 1_000_000 // len(scores))  # at a time, to limit memory
    return np.concatenate(
        [
            expected_best(scores[rng.integers(len(scores), size=(some, len(scores)))], n)
            for some in np.diff(np.append(np.arange(0, RESAMPLES, rows), RESAMPLES))
        ]
    )
