"""Comparisons within a study: which rates are good, how sure that is, which schedule wins.

Pure functions of trials' evidence and verdicts; randomness is passed in.
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
"""Intervals hold the truth in this share of studies, as far as a bootstrap can say so."""
RESAMPLES = 2000
ENOUGH = 5
"""Trials that a schedule needs at the horizon to be compared; fewer say nothing of scatter."""

Family = Literal["schedule", "optimizer"]


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One end of a range of good rates."""

    rate: float  # the outermost good one
    beyond: float | None  # the nearest tried one outside that is not good; None: none is known
    unclear: int  # trials outside of which that is not known
    inner: float  # as far inside as this in a share `LEVEL` of bootstrap resamples


@dataclass(frozen=True, kw_only=True)
class GoodRates:
    """The good rates of one schedule or optimiser, or of all."""

    name: str
    trials: int  # good ones
    of: int
    low: Edge
    high: Edge

    @property
    def factor(self) -> float:
        """How wide the range is: the highest good rate over the lowest."""
        return self.high.rate / self.low.rate


@dataclass(frozen=True, kw_only=True)
class Wins:
    """How the best of some schedules compares with another, among trials that ran to the horizon.

    Each is represented by the best that is to be expected of `n` of its trials, so that a schedule
    that was tried more often gains nothing by that (Dodge et al., Show Your Work, 2019).
    """

    winner: str
    other: str
    n: int
    by: Interval  # of the expected best score, other - winner: above 0, the winner is better

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out that they are equal."""
        return self.by.above


def good_rates(
    found: Sequence[Evidence], verdicts: Mapping[int, Verdict], by: Family | None = None
) -> list[GoodRates]:
    """Give the range of good rates of each schedule or optimiser that has any; or of all trials.

    It is of rates that were tried, so the true range is wider; `Edge.beyond` says by how much at
    most, and `Edge.inner` how far a few trials carry it.
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
    """Return the lower edge of the good rates, or with sign -1 the upper one.

    The bootstrap needs no draws here: of N trials resampled, one of the k outermost good ones is
    there with probability 1 - (1 - k/N)^N.
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


def winner(
    found: Sequence[Evidence], horizon: int, rng: np.random.Generator, by: Family = "schedule"
) -> list[Wins]:
    """Compare the best schedule (or optimiser) with each other one; none where fewer than two can.

    Only trials that completed the horizon count: pruning in the middle favours early decay.
    """
    scores: dict[str, list[float]] = {}
    for one in found:
        if one.outcome == COMPLETED and one.steps == horizon and len(one.scores):
            scores.setdefault(getattr(one, by), []).append(float(one.scores[-1]))
    groups = {name: np.array(own) for name, own in scores.items() if len(own) >= ENOUGH}
    if len(groups) < 2:
        return []
    n = min(map(len, groups.values()))
    means = {name: expected_best(own[None], n)[0] for name, own in groups.items()}
    draws = {name: _resampled(own, n, rng) for name, own in groups.items()}
    first, *others = sorted(groups, key=lambda name: means[name])
    level = simultaneous(LEVEL, len(others))
    wins = []
    for other in others:
        differences = draws[other] - draws[first]
        low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
        by_how_much = Interval(
            mean=float(means[other] - means[first]),
            low=float(low),
            high=float(high),
            level=level,
            n=n,
        )
        wins.append(Wins(winner=first, other=other, n=n, by=by_how_much))
    return wins


def expected_best(scores: np.ndarray, n: int) -> np.ndarray:  # [sample, trial] -> [sample]
    """Give the mean of the lowest of `n` scores drawn with replacement, exactly.

    The lowest is above the i-th of N sorted scores with probability ((N - i) / N)^n.
    """
    ordered = np.sort(scores, axis=1)
    left = np.arange(ordered.shape[1], -1, -1) / ordered.shape[1]
    weights = left[:-1] ** n - left[1:] ** n
    return np.asarray(ordered @ weights)


def _resampled(scores: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Give the expected best of `n` for bootstrap resamples of scores [trial]; [resample]."""
    rows = max(1, 1_000_000 // len(scores))  # at a time: a study may have many trials
    return np.concatenate(
        [
            expected_best(scores[rng.integers(len(scores), size=(some, len(scores)))], n)
            for some in np.diff(np.append(np.arange(0, RESAMPLES, rows), RESAMPLES))
        ]
    )
