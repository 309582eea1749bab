"""The active range of the rate in a search: from a probe, extended where the best is at its edge.

To a draw, the study is one whose rate has the active range: trials outside of it are left out, as a
version with a narrower space would leave them out. The recorded distribution stays the study's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tuner.config import ParameterValue, Range, StudySpec
from tuner.ledger.ranges import ActiveRange
from tuner.search.mirror import Numbered
from tuner.search.space import distribution

EDGE = 0.1
"""The best trial is at an edge within this share of the range, on a log scale."""

ENOUGH_TRIALS = 5
"""Trials that must have ended since the range last changed, before it is extended."""


def narrowed(spec: StudySpec, found: Mapping[str, Any]) -> ActiveRange | None:
    """Give the range to begin with, from what `tuner probe --json` says of the optimisers.

    None where no optimiser learns anything at any rate.
    """
    lr, margin = _recorded(spec), spec.probe.margin
    told = {name: one for name, one in found.items() if one["suggested"] is not None}
    if not told:
        return None
    lowest = min(one["suggested"][0] for one in told.values())
    # where nothing breaks there is no reason to stop short of the recorded range
    tops = [one["stable"][1] or math.inf for one in told.values()]
    low = min(max(lr.low, lowest / margin), lr.high / margin)
    high = max(min(lr.high, max(tops) * margin), low * margin)
    said = "; ".join(
        f"{name} learns from {one['suggested'][0]:.3g} on and "
        + ("breaks nowhere" if one["stable"][1] is None else f"breaks at {one['stable'][1]:.3g}")
        for name, one in told.items()
    )
    why = f"Probed: {said}. By a factor of {margin:g} beyond, within the recorded range."
    return ActiveRange(low=low, high=high, why=why, first=_first(told, low, high))


def _first(told: Mapping[str, Any], low: float, high: float) -> list[dict[str, ParameterValue]]:
    """List what the first trials are given: the fastest rates, then half way down to the lowest."""
    fastest = {name: min(max(one["fastest"], low), high) for name, one in told.items()}
    lower = {name: math.sqrt(rate * told[name]["suggested"][0]) for name, rate in fastest.items()}
    return [
        {"lr": min(max(rate, low), high), "optimizer": name}
        for rates in (fastest, lower)
        for name, rate in rates.items()
    ]


def extended(
    spec: StudySpec, active: ActiveRange, trials: Iterable[FrozenTrial]
) -> ActiveRange | None:
    """Give a wider range, if the best of the completed trials is at an edge; None if it is not.

    `trials` are the study's own. An edge that is the recorded range's own cannot move.
    """
    ended = [trial for trial in trials if trial.state.is_finished()]
    completed = [trial for trial in ended if trial.state == TrialState.COMPLETE]
    if len(ended) - active.trials < ENOUGH_TRIALS or not completed:
        return None
    sign = 1.0 if spec.study.direction == "minimize" else -1.0
    best = min(completed, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
    rate, lr = float(best.params["lr"]), _recorded(spec)
    place = math.log(rate / active.low) / math.log(active.high / active.low)
    low, high, side = active.low, active.high, ""
    if place <= EDGE and active.low > lr.low:
        low, side = max(lr.low, active.low / spec.probe.margin), f"lower edge, {active.low:.3g}"
    elif place >= 1 - EDGE and active.high < lr.high:
        high, side = min(lr.high, active.high * spec.probe.margin), f"upper edge, {active.high:.3g}"
    if not side:
        return None
    why = (
        f"Extended: the best of {len(completed)} completed trials, {best.number}, has a rate of "
        f"{rate:.3g}, within a tenth of the range from its {side}."
    )
    return ActiveRange(low=low, high=high, why=why, trials=len(ended), first=active.first)


def within(spec: StudySpec, active: ActiveRange) -> StudySpec:
    """Give the study as a draw sees it: with the active range as its range of the rate."""
    lr = _recorded(spec).model_copy(update={"low": active.low, "high": active.high})
    space = spec.space.model_copy(update={"lr": lr})
    return spec.model_copy(update={"space": space})


def trials_within(spec: StudySpec, active: ActiveRange, trials: Iterable[FrozenTrial]) -> Numbered:
    """Give the trials that lie in the active range, as drawn from it; and those without a rate."""
    lr = distribution(within(spec, active).space.lr)
    found = Numbered()
    for trial in trials:
        told = trial
        if "lr" in trial.params:
            if not active.low <= float(trial.params["lr"]) <= active.high:
                continue
            told = copy.copy(trial)
            told.distributions = {**trial.distributions, "lr": lr}
        found.put(told)
    return found


def _recorded(spec: StudySpec) -> Range:
    lr = spec.space.lr
    assert isinstance(lr, Range), "a study that is probed has a range of the rate"
    return lr
