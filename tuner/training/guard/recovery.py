"""Whether the rates that are still to come may bring a trial back that the guard would stop.

Steps that are too long for a curvature may be short enough for it later, when the schedule has
brought the rate down; then what exploded shrinks again. So the guard's rules about finite losses
are asked again: as the loss behaved at the rates that it had, when will it be back? It is a
forecast for good or ill, made anew at each step at which a rule speaks.

*Growth* (rules 2 and 3). Near a minimum, steps along a curvature λ multiply the distance by a
factor that depends on the rate times λ and on the momentum, and the loss by its square
(`tuner.training.guard.momentum`). So how fast a loss grows tells the curvature that it grows along,
and that tells the factor at each rate to come. Less curved directions may have been thrown up
beside it, each by as much as it grows at these rates, and shrink otherwise; the highest counts.
What is waited for has a time by which it is to be back; rule 5 does not speak before.

*A height* (rule 5). Where steps are bounded, as Adam's and Lion's are, or their noise is what keeps
the loss up, the distance goes with the rate, and a loss that is quadratic in a product of two
layers with the fourth power. What the window has fallen by, all of it or its second half, it goes
on to fall.
"""

from __future__ import annotations

import numpy as np

from tuner.config import GuardTable
from tuner.training.guard import rules
from tuner.training.guard.momentum import Momentum
from tuner.training.guard.rules import GuardState, Verdict

CURVATURES = 16
"""So many are followed, from the one that is just stable to the one that grows as the loss does."""


@np.errstate(all="ignore")  # losses may be anything at all
def back_in(
    verdict: int,
    state: GuardState,  # after the step, of one trial
    past: np.ndarray,  # float64 [step], rates of the window that ends with this step
    ahead: np.ndarray,  # float64 [step], rates of the steps to come, up to the horizon
    momentum: Momentum,
    *,
    baseline: float | None,
    settings: GuardTable,
) -> int | None:
    """Give the steps until the trial is expected below **far** standards to stay; None: never.

    Of a height it is only told whether it will be so at the horizon.
    """
    if verdict not in (Verdict.RUNAWAY, Verdict.EXPLODING, Verdict.LOST) or not len(ahead):
        return None
    logs = rules.heights(state, baseline, settings, lasting=verdict == Verdict.LOST)[0]  # [window]
    far = np.log(settings.far)
    if verdict == Verdict.LOST:
        falls = 4 * np.log(ahead[-len(past) :].mean() / past.mean())
        half = len(logs) // 2
        ends = [
            part.mean() + min(_growth(part), 0.0) * (len(ahead) + len(part) / 2)
            for part in (logs, logs[-half:])
        ]
        return len(ahead) if min(ends) + falls < far else None
    steepest = momentum.steepness(np.exp(_growth(logs) / 2))
    steepness = np.geomspace(momentum.steepness(1.0), steepest, CURVATURES)
    rises = np.log(momentum.factors(steepness))  # [curvature], a step
    changes = np.log(
        momentum.factors(steepness[:, None] * ahead / past.mean())
    )  # [curvature, step]
    path = (logs[-1] * rises / rises[-1] + 2 * changes.cumsum(axis=1).T).max(axis=1)  # [step]
    up = np.flatnonzero(~(path < far))  # those steps after which it is not back; nan is not either
    last = int(up[-1]) if len(up) else -1
    return last + 2 if last + 1 < len(path) else None


def _growth(logs: np.ndarray) -> float:  # logs: [step]
    """Give the growth a step, from the mean of the first quarter to that of the last."""
    quarter = max(len(logs) // 4, 1)
    return float(logs[-quarter:].mean() - logs[:quarter].mean()) / (len(logs) - quarter)
