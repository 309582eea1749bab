"""What a search was worth: what random search would have found, and what a further trial promises.

Both follow from the Gaussian process of `tuner.search.gp` on the values of all trials, as gp sees
them. Random search draws from the whole space, as the start of a study does; its trials are draws
of the process at such points, noise included. Where the search has hardly been, the process
expects average values, so that the best of random trials is somewhat better than in truth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from scipy.linalg import cholesky
from scipy.special import ndtri

from tuner.config import StudySpec
from tuner.search import gp
from tuner.search.encoding import Encoding, Rows, encoding_of
from tuner.search.gp import Vector

LEAST = 10
"""Trials with values below which nothing is expected."""
POINTS, DRAWS = 512, 256
"""Random trials of a search, and how many searches there are."""
SHARE = 0.8
"""Share of the random searches that the interval holds."""
QUANTILES = ndtri((np.arange(400) + 0.5) / 400)
"""An even choice of values of a standard normal variable."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outlook:
    """What random search would have had, and what one more trial is expected to gain."""

    expected: Vector  # [trial], the mean of the best value of so many random trials
    low: Vector  # [trial], the interval of the best value in most searches
    high: Vector  # [trial]
    gain: float  # expected improvement of the best value by the next trial, 0 or more


def outlook(spec: StudySpec, trials: Iterable[FrozenTrial]) -> Outlook | None:
    """Return the outlook of a study; `trials` are in the form of `Mirror.for_values`.

    Return None if it is unknown: of few trials, of several objectives, or under constraints.
    """
    known = _Known.of(spec, trials)
    if known is None:
        return None
    random = known.space.snapped(known.space.sobol(0, POINTS, spec.study.seed))
    mean, covariance = known.model.posterior.joint(known.space.features(random))
    factor = cholesky(covariance, lower=True, check_finite=False)
    rng = np.random.default_rng(spec.study.seed)
    scores = mean[:, None] + factor @ rng.standard_normal((len(random), DRAWS))  # [trial, search]
    scores = np.minimum.accumulate(rng.permuted(scores, axis=0), axis=0)
    best = known.sign * gp.restored(scores, known.losses)
    low, high = np.quantile(best, [(1 - SHARE) / 2, (1 + SHARE) / 2], axis=1)
    return Outlook(expected=best.mean(axis=1), low=low, high=high, gain=known.gain())


def expected_gain(spec: StudySpec, trials: Iterable[FrozenTrial]) -> float | None:
    """Return what one more trial is expected to improve the best value by; None if unknown."""
    known = _Known.of(spec, trials)
    return None if known is None else known.gain()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    """The trials of a study, and the process that models them."""

    space: Encoding
    rows: Rows
    losses: Vector
    model: gp.Model
    sign: float
    seed: int

    @classmethod
    def of(cls, spec: StudySpec, trials: Iterable[FrozenTrial]) -> _Known | None:
        """Fit the process; return None where the outlook is unknown."""
        space = encoding_of(spec.space)
        if not len(space) or spec.study.objectives or spec.study.constraints:
            return None
        known = [one for one in trials if one.state == TrialState.COMPLETE]
        if len(known) < LEAST:
            return None
        sign = 1.0 if spec.study.direction == "minimize" else -1.0
        losses = np.array([sign * float(one.value or 0.0) for one in known])
        rows = np.array([space.encode(one.params) for one in known])
        model = gp.Model(space, rows, losses)
        return cls(
            space=space, rows=rows, losses=losses, model=model, sign=sign, seed=spec.study.seed
        )

    def gain(self) -> float:
        """Return the expected improvement of the best value at the most promising point."""
        rng = np.random.default_rng(self.seed)
        good = self.rows[np.argsort(self.losses, kind="stable")[:5]]
        near = self.space.neighbours(good, POINTS, 0.1, rng)
        points = np.r_[self.space.sobol(0, POINTS, self.seed), near]
        mean, variance = self.model.posterior.predict(
            self.space.features(self.space.snapped(points))
        )
        best = self.model.losses.min(keepdims=True)
        place = int(gp.log_expected_improvement(mean, variance, best).argmax())
        scores = mean[place] + np.sqrt(variance[place]) * QUANTILES
        gains = self.losses.min() - gp.restored(scores, self.losses)
        return float(np.maximum(gains, 0.0).mean())
