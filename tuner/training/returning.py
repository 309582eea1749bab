"""Whether the rates that are still to come may bring a trial back that the guard would stop.

Steps that are too long for a curvature may be short enough for it later, when the schedule has
brought the rate down; then what exploded shrinks as fast as it grew. So the guard's rules about
finite losses are asked again: as the loss behaved at the rates that it had, where will it be at the
horizon? It is a forecast for good or ill, made anew at each step at which a rule speaks.

*Growth* (rules 2 and 3). Near a minimum of curvature λ, a step of gradient descent multiplies the
distance along it by 1 - ηλ, and the loss by its square. A loss that grows by a factor of a² a step
tells that ηλ = 1 + a, and at q times the rate its factor is (1 - q(1 + a))². No step is trusted to
do more than halve the distance, since momentum and other directions shrink more slowly.

*A height* (rule 5). Where steps are bounded, as Adam's and Lion's are, or their noise is what keeps
the loss up, the distance goes with the rate, and a loss that is quadratic in a product of two
layers with the fourth power. What the window has fallen by, it goes on to fall.
"""

from __future__ import annotations

import numpy as np

from tuner.spec import GuardTable
from tuner.training import guard
from tuner.training.guard import GuardState, Verdict
from tuner.training.momentum import Momentum

GRADIENT_DESCENT = Momentum()

CURVATURES = 16
"""So many are followed, from the one that is just stable to the one that grows as the loss does."""


@np.errstate(all="ignore")  # losses may be anything at all
def back_in(
    verdict: int,
    state: GuardState,  # after the step, of one trial
    past: np.ndarray,  # float64 [step], rates of the window that ends with this step
    ahead: np.ndarray,  # float64 [step], rates of the steps to come, up to the horizon
    *,
    baseline: float | None,
    settings: GuardTable,
    momentum: Momentum = GRADIENT_DESCENT,
) -> int:
    """Tell in how many steps the trial is expected below **far** standards for good; 0: never."""
    if verdict not in (Verdict.RUNAWAY, Verdict.EXPLODING, Verdict.LOST) or not len(ahead):
        return 0
    logs = guard.heights(state, baseline, settings, lasting=verdict == Verdict.LOST)[0]  # [window]
    quarter = len(logs) // 4
    growth = (logs[-quarter:].mean() - logs[:quarter].mean()) / (len(logs) - quarter)
    if verdict == Verdict.LOST:
        falls = 4 * np.log(ahead[-len(past) :].mean() / past.mean())
        path = np.array([logs.mean() + falls + min(growth, 0.0) * len(ahead)])
    else:
        reach = np.geomspace(momentum.reach(1.0), momentum.reach(np.exp(growth / 2)), CURVATURES)
        rises = np.log(momentum.factors(reach))  # [curvature]
        changes = 2 * np.log(momentum.factors(reach[:, None] * ahead / past.mean()))
        path = (logs[-1] * rises / rises[-1] + changes.cumsum(axis=1).T).max(axis=1)  # [step]
    up = np.flatnonzero(~(path < np.log(settings.far)))
    if not len(up): return 1
    return 0 if up[-1] == len(path)-1 else int(up[-1])+2
