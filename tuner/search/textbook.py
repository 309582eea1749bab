"""The textbook default of a space: what a first trial is worth trying at before any is known.

Sources are in docs/search.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tuner.config import Entry, ParameterValue, Range, Space, WholeRange, options

RATES: Mapping[str, float] = {
    "adamw": 1e-3,
    "adam": 1e-3,
    "nadam": 2e-3,
    "sgd": 0.1,
    "rmsprop": 1e-2,
    "adagrad": 1e-2,
    "lion": 1e-4,
    "muon": 1e-3,
    "schedule_free_adamw": 2.5e-3,
    "schedule_free_sgd": 1.0,
    "prodigy": 1.0,
    "dog": 1.0,
}
"""The usual rate, by optimizer, the most usual optimizer first."""

SCHEDULES = ("cosine", "linear", "wsd", "one_cycle", "constant")
"""The most usual schedule first; of others the study file's first is taken."""

USUAL: Mapping[str, Any] = {"momentum": 0.9, "nesterov": True, "warmup": 0.05}
"""Parameters whose usual value is not the one that they have when a study file leaves them out."""


def textbook(space: Space) -> dict[str, ParameterValue] | None:
    """Return the complete parameters of the default, or None where the space has no usual rate.

    Parameters of schedule and optimizer are the nearest to the usual ones that the space has; of
    others nothing is usual, and they have the middle of their values. None too if the constraints
    exclude that.
    """
    optimizers = [choice.name for choice in space.optimizer]
    schedules = [choice.name for choice in space.schedule]
    schedule = next((name for name in SCHEDULES if name in schedules), schedules[0])
    for name, rate in RATES.items():
        if name in optimizers and _near(space.lr, rate):
            usual: dict[str, Any] = {"lr": rate, "schedule": schedule, "optimizer": name}
            for choice in (*space.schedule, *space.optimizer):
                for key, _ in choice.entries():
                    own = key.partition(".")[2]
                    usual[key] = USUAL.get(own, type(choice).model_fields[own].default)
            params: dict[str, ParameterValue] = {}
            for one in space.parameters():
                if one.exists(params):
                    known = one.name in usual
                    params[one.name] = _nearest(one.entry, usual[one.name] if known else one.middle)
            return params if space.satisfies(params) else None
    return None


def _near(entry: Entry, rate: float) -> bool:
    """Return whether an entry has a rate within a factor of two."""
    return abs(math.log(float(_nearest(entry, rate)) / rate)) <= math.log(2)


def _nearest(entry: Entry, usual: Any) -> ParameterValue:
    """Return the value of an entry that is nearest to the usual one."""
    if isinstance(entry, Range):
        number = min(max(usual, entry.low), entry.high)
        return round(number) if isinstance(entry, WholeRange) else float(number)
    values = options(entry)
    if isinstance(usual, str | bool) or not all(type(one) in {int, float} for one in values):
        return usual if usual in values else values[0]
    return min(values, key=lambda one: abs(float(one) - usual))
