"""The gate: whether a challenger replaces the champion. Pure functions of measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tuner.analysis.statistics import Interval, bootstrap_interval, t_interval
from tuner.config import GateTable

FEW_ROWS = 100
"""A comparison of fewer rows is said to be one."""
FEW = 10
"""Below so many pairs the bootstrap's interval is too narrow, and Student's is used."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The gate's decision and its reason."""

    promote: bool
    reason: str  # a sentence
    improvement: Interval | None  # how much better the challenger is; None: there is no champion
    slices: Mapping[str, Interval]  # the same on named parts


def first(metric: str, value: float, unknown: int | None = None) -> Decision:
    """Decide where there is no champion, or `unknown`, a version without known weights."""
    if not np.isfinite(value):
        reason = f"There is no champion, but the challenger's {metric} is {value}."
        if unknown is not None:
            reason = f"The challenger's {metric} is {value}."
        return Decision(promote=False, reason=reason, improvement=None, slices={})
    reason = f"The first champion: {metric} {value:.4g}, and nothing to compare it with."
    if unknown is not None:
        reason = (
            f"{metric} {value:.4g}, and nothing to compare it with: the ledger has no digest of "
            f"the weights of the champion, version {unknown}."
        )
    return Decision(promote=True, reason=reason, improvement=None, slices={})


def decide(
    gate: GateTable,
    metric: str,
    direction: str,
    *,
    champion: np.ndarray,  # [row]
    challengers: Sequence[np.ndarray],  # [seed][row]; the first one is offered
    slices: Mapping[str, np.ndarray],  # bool [row]
    seed: int,
) -> Decision:
    """Compare challengers with the champion on the same rows, in pairs.

    The pairs are rows, of the one challenger, or seeds, where there are several challengers. The
    challenger is better when the whole interval lies above the minimum improvement, and worse on
    a slice when the interval of its rows lies wholly below minus the tolerance.
    """
    sign = 1.0 if direction == "minimize" else -1.0
    gains = [sign * (champion - one) for one in challengers]  # [seed][row], positive is better
    if not all(np.isfinite(one).all() for one in gains):
        reason = f"{metric} is not finite on every row, so the two cannot be compared."
        return Decision(promote=False, reason=reason, improvement=None, slices={})
    rng = np.random.default_rng(seed)
    pairs = gains[0] if len(gains) == 1 else np.array([one.mean() for one in gains])
    whole = _interval(pairs, rng, gate.level)
    parts = {name: _interval(gains[0][mask], rng, gate.level) for name, mask in slices.items()}
    unit = "rows" if len(gains) == 1 else "seeds"
    few = len(gains) == 1 and whole.n < FEW_ROWS
    note = (
        f" Only {whole.n} rows were compared, so small differences cannot be seen." if few else ""
    )
    values = f"{metric} {champion.mean():.4g} of the champion, {challengers[0].mean():.4g} now"
    sure = (
        f"{100 * gate.level:g}% interval {whole.low:.3g} to {whole.high:.3g} over {whole.n} {unit}"
    )
    if not whole.low > gate.minimum_improvement:
        what = (
            "worse"
            if whole.high < 0
            else "better, but not by enough"
            if whole.low > 0
            else "no better for sure"
        )
        reason = (
            f"The challenger is {what}: {values}, an improvement of {whole.mean:.3g} "
            f"({sure}; needed: above {gate.minimum_improvement:g}).{note}"
        )
        return Decision(promote=False, reason=reason, improvement=whole, slices=parts)
    worse = {name: one for name, one in parts.items() if one.high < -gate.tolerance}
    if worse:
        listed = "; ".join(
            f"{name}: {-one.mean:.3g} worse over {one.n} rows" for name, one in worse.items()
        )
        reason = f"Better as a whole ({values}), but worse on {listed}.{note}"
        return Decision(promote=False, reason=reason, improvement=whole, slices=parts)
    reason = f"Better: {values}, an improvement of {whole.mean:.3g} ({sure}).{note}"
    return Decision(promote=True, reason=reason, improvement=whole, slices=parts)


def _interval(pairs: np.ndarray, rng: np.random.Generator, level: float) -> Interval:
    return t_interval(pairs, level) if len(pairs) < FEW else bootstrap_interval(pairs, rng, level)
