"""The active range of the learning rate: set by a probe, extended if the best trial is at its edge.

For a draw, the active range replaces the study's range of the rate, and trials outside of it are
left out, as in a version with a narrower space. The recorded distribution stays the study's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tuner.config import ParameterValue, Range, StudySpec
from tuner.ledger.ranges import ActiveRange
from tuner.search.mirror import TrialsByNumber, violation
from tuner.search.space import distribution

EDGE = 0.1
"""Share of the range, on a log scale, that counts as its edge."""

ENOUGH_TRIALS = 5
"""Number of trials that must end after a change of the range before it is extended."""


def range_from_probe(spec: StudySpec, found: Mapping[str, Any]) -> ActiveRange | None:
    """Return the initial range from a probe's results by optimizer, as in `tuner probe --json`.

    None if no optimizer learns at any rate.
    """
    lr, margin = _recorded(spec), spec.probe.margin
    learning = {name: one for name, one in found.items() if one["suggested"] is not None}
    if not learning:
        return None
    lowest = min(one["suggested"][0] for one in learning.values())
    # without a breaking rate, the recorded range is the only limit
    tops = [one["stable"][1] or math.inf for one in learning.values()]
    low = min(max(lr.low, lowest / margin), lr.high / margin)
    high = max(min(lr.high, max(tops) * margin), low * margin)
    results = "; ".join(
        f"{name} learns from {one['suggested'][0]:.3g} on and "
        + ("breaks nowhere" if one["stable"][1] is None else f"breaks at {one['stable'][1]:.3g}")
        for name, one in learning.items()
    )
    why = f"Probed: {results}. By a factor of {margin:g} beyond, within the recorded range."
    return ActiveRange(low=low, high=high, why=why, first=_first(learning, low, high))


def _first(learning: Mapping[str, Any], low: float, high: float) -> list[dict[str, ParameterValue]]:
    """Return the first trials' parameters: the fastest rates, then half way to the lowest."""
    fastest = {name: min(max(one["fastest"], low), high) for name, one in learning.items()}
    lower = {
        name: math.sqrt(rate * learning[name]["suggested"][0]) for name, rate in fastest.items()
    }
    return [
        {"lr": min(max(rate, low), high), "optimizer": name}
        for rates in (fastest, lower)
        for name, rate in rates.items()
    ]


def extend(
    spec: StudySpec, active: ActiveRange, trials: Iterable[FrozenTrial]
) -> ActiveRange | None:
    """Return a wider range if the best completed trial is at an edge, else None.

    `trials` are those of this version. The range never exceeds the recorded range.
    """
    ended = [trial for trial in trials if trial.state.is_finished()]
    completed = [trial for trial in ended if trial.state == TrialState.COMPLETE]
    if len(ended) - active.trials < ENOUGH_TRIALS or not completed:
        return None
    sign = 1.0 if spec.study.direction == "minimize" else -1.0
    best = min(
        completed, key=lambda trial: (violation(trial), sign * (trial.value or 0.0), trial.number)
    )
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


def with_range(spec: StudySpec, active: ActiveRange) -> StudySpec:
    """Return the specification with the active range as its range of the rate."""
    lr = _recorded(spec).model_copy(update={"low": active.low, "high": active.high})
    space = spec.space.model_copy(update={"lr": lr})
    return spec.model_copy(update={"space": space})


def trials_in_range(
    spec: StudySpec, active: ActiveRange, trials: Iterable[FrozenTrial]
) -> TrialsByNumber:
    """Return the trials inside the active range, as if drawn from it, and those without a rate."""
    lr = distribution(with_range(spec, active).space.lr)
    found = TrialsByNumber()
    for trial in trials:
        in_range = trial
        if "lr" in trial.params:
            if not active.low <= float(trial.params["lr"]) <= active.high:
                continue
            in_range = copy.copy(trial)
            in_range.distributions = {**trial.distributions, "lr": lr}
        found.put(in_range)
    return found


def _recorded(spec: StudySpec) -> Range:
    lr = spec.space.lr
    assert isinstance(lr, Range), "a study with a probe has a range of the rate"
    return lr
