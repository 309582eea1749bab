"""Forecast whether the rates ahead may bring back a trial that the guard would stop.

A step that is too long for a curvature may be short enough later, when the schedule has reduced the
rate; then a loss that exploded shrinks again. So when rule 2, 3 or 5 applies, extrapolate from the
behavior at past rates: when will the loss be back? The forecast is repeated at each step at which
a rule applies, and may change.

*Growth* (rules 2 and 3). Near a minimum, steps along a curvature λ multiply the distance by a
factor that depends on lr·λ and the momentum, and the loss by its square
(`tuner.training.guard.momentum`). So the observed growth reveals the curvature, and the curvature
gives the factor at each rate ahead. Directions of lower curvature may have grown too, each by its
own factor at the past rates, and shrink later; the highest one counts. The forecast sets a step by
which the loss must be back; rule 5 does not apply before it.

*Height* (rule 5). Where steps are bounded, as those of Adam and Lion, or where noise keeps the loss
up, the distance is proportional to the rate, and a loss that is quadratic in a product of two
layers goes with its fourth power. The trend within the window, over all of it or its second half,
is assumed to continue if it falls.
"""

from __future__ import annotations

import numpy as np

from tuner.config import GuardTable
from tuner.training.guard import rules
from tuner.training.guard.momentum import Momentum
from tuner.training.guard.rules import GuardState, Rule

CURVATURES = 16
"""Number of curvatures followed, from the marginally stable one to the one that the loss shows."""


@np.errstate(all="ignore")  # losses may be any float
def steps_to_recovery(
    rule: int,
    state: GuardState,  # of one trial, after the step
    past: np.ndarray,  # float64 [step], rates of the window up to this step
    ahead: np.ndarray,  # float64 [step], rates of the following steps, up to the horizon
    momentum: Momentum,
    *,
    baseline: float | None,
    settings: GuardTable,
) -> int | None:
    """Return the steps until the loss stays below **far** reference levels; None if never.

    For rule 5 the forecast is only made for the horizon, so it is the steps left or None.
    """
    if rule not in (Rule.RUNAWAY, Rule.EXPLODING, Rule.LOST) or not len(ahead):
        return None
    logs = rules.log_heights(state, baseline, settings, lasting=rule == Rule.LOST)[0]  # [window]
    far = np.log(settings.far)
    if rule == Rule.LOST:
        falls = 4 * np.log(ahead[-len(past) :].mean() / past.mean())
        half = len(logs) // 2
        ends = [
            part.mean() + min(_growth(part), 0.0) * (len(ahead) + len(part) / 2)
            for part in (logs, logs[-half:])
        ]
        return len(ahead) if min(ends) + falls < far else None
    highest = momentum.rate_times_curvature(np.exp(_growth(logs) / 2))
    products = np.geomspace(momentum.rate_times_curvature(1.0), highest, CURVATURES)  # [curvature]
    rises = np.log(momentum.growth_factors(products))  # [curvature], per step
    # per curvature and step ahead
    changes = np.log(momentum.growth_factors(products[:, None] * ahead / past.mean()))
    path = (logs[-1] * rises / rises[-1] + 2 * changes.cumsum(axis=1).T).max(axis=1)  # [step]
    up = np.flatnonzero(~(path < far))  # steps at which it is not back, nan included
    last = int(up[-1]) if len(up) else -1
    return last + 2 if last + 1 < len(path) else None


def _growth(logs: np.ndarray) -> float:  # logs: float64 [step]
    """Return the growth per step, from the mean of the first quarter to that of the last."""
    quarter = max(len(logs) // 4, 1)
    return float(logs[-quarter:].mean() - logs[:quarter].mean()) / (len(logs) - quarter)
