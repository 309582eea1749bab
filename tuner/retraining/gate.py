"""The gate: whether a challenger replaces the champion. Pure functions of measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuner.analysis.statistics import Interval, bootstrap_interval, holm, p_below, t_interval
from tuner.config import GateTable

FEW_ROWS = 100
"""A comparison of fewer rows is said to be one."""
FEW = 10
"""Below so many pairs the bootstrap's interval is too narrow, and Student's is used."""
LISTED = 5
"""How many slices a reason names."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """How much better the challenger is on a slice, and what that means for the decision."""

    interval: Interval
    p_value: float | None  # that it is worse, adjusted for their number; None: tested otherwise
    margin: float | None  # by less than which it must be worse for sure
    fault: str | None  # why it keeps the challenger out

    @property
    def decides(self) -> bool:
        """Whether it has rows enough."""
        return self.p_value is not None or self.margin is not None

    def as_json(self) -> dict[str, Any]:
        """Return what the ledger stores."""
        about = {"p_value": self.p_value, "margin": self.margin, "decides": self.decides}
        return self.interval.as_json() | about


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The gate's decision and its reason."""

    promote: bool
    reason: str  # a sentence
    improvement: Interval | None  # how much better the challenger is; None: there is no champion
    slices: Mapping[str, Slice]  # the same on named parts

    @property
    def worse(self) -> bool:
        """Whether the challenger is worse for sure, as a whole or on a slice, or not finite."""
        on_a_slice = any(one.fault and one.margin is None for one in self.slices.values())
        return on_a_slice or self.improvement is None or self.improvement.below


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
    challenger is better when the whole interval lies above the minimum improvement. The slices are
    judged by `judge`.
    """
    sign = 1.0 if direction == "minimize" else -1.0
    gains = [sign * (champion - one) for one in challengers]  # [seed][row], positive is better
    if not all(np.isfinite(one).all() for one in gains):
        reason = f"{metric} is not finite on every row, so the two cannot be compared."
        return Decision(promote=False, reason=reason, improvement=None, slices={})
    pairs = gains[0] if len(gains) == 1 else np.array([one.mean() for one in gains])
    few_pairs = len(pairs) < FEW
    whole = (
        t_interval(pairs, gate.level)
        if few_pairs
        else bootstrap_interval(pairs, np.random.default_rng(seed), gate.level)
    )
    parts = judge(gate, {name: gains[0][mask] for name, mask in slices.items()})
    unit = "rows" if len(gains) == 1 else "seeds"
    few = len(gains) == 1 and whole.n < FEW_ROWS
    note = (
        f" Only {whole.n} rows were compared, so small differences cannot be seen." if few else ""
    )
    note += _too_small(gate, parts)
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
    worse = [f"{name}: {one.fault}" for name, one in parts.items() if one.fault is not None]
    if worse:
        reason = f"Better as a whole ({values}), but worse on {_listed(worse, '; ')}.{note}"
        return Decision(promote=False, reason=reason, improvement=whole, slices=parts)
    reason = f"Better: {values}, an improvement of {whole.mean:.3g} ({sure}).{note}"
    return Decision(promote=True, reason=reason, improvement=whole, slices=parts)


def judge(gate: GateTable, gains: Mapping[str, np.ndarray]) -> dict[str, Slice]:
    """Judge the slices by their gains [row], of which positive ones are better.

    On a slice with a margin the challenger must be shown to be worse by less than it: the whole
    interval lies above minus the margin. On the others it must not be shown to be worse by more
    than the tolerance. So many tests are corrected for their number, so that a challenger that is
    nowhere worse is kept out as seldom as by a single slice. A slice with few rows does not decide.
    """
    large = {name: rows for name, rows in gains.items() if len(rows) >= gate.slice_rows}
    p_values = holm(
        {
            name: p_below(rows, -gate.tolerance)
            for name, rows in large.items()
            if name not in gate.margins
        }
    )
    judged = {}
    for name, rows in gains.items():
        margin = gate.margins.get(name) if name in large else None
        interval, p_value = t_interval(rows, gate.level), p_values.get(name)
        fault = None
        if margin is not None and not interval.low > -margin:
            fault = f"by up to {-interval.low:.3g} over {len(rows)} rows, margin {margin:g}"
        elif p_value is not None and p_value <= (1 - gate.level) / 2:
            fault = f"{-interval.mean:.3g} worse over {len(rows)} rows"
            if len(p_values) > 1:
                fault += f" (p {p_value:.2g}, corrected for {len(p_values)} slices)"
        judged[name] = Slice(interval=interval, p_value=p_value, margin=margin, fault=fault)
    return judged


def _too_small(gate: GateTable, parts: Mapping[str, Slice]) -> str:
    """Return a sentence about the slices that have too few rows to decide, or nothing."""
    small = [f"{name} ({one.interval.n})" for name, one in parts.items() if not one.decides]
    if not small:
        return ""
    return f" Slices with fewer than {gate.slice_rows} rows did not decide: {_listed(small, ', ')}."


def _listed(names: Sequence[str], separator: str) -> str:
    others = len(names) - LISTED
    return separator.join(names[:LISTED]) + (f" and {others} others" if others > 0 else "")
