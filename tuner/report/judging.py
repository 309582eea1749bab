"""What a study's own trials say of how early they were judged."""

from __future__ import annotations

import numpy as np

from tuner.analysis import early
from tuner.analysis.early import EarlyJudging
from tuner.config import Branching
from tuner.core.outcome import COMPLETED, KINDS, PRUNED
from tuner.ledger import TrialRecord
from tuner.report.findings import Findings


def branch_steps(found: Findings) -> int:
    """Return the steps of all branches, which are no steps of trials."""
    return sum(len(branch.losses) for curve in found.curves.values() for branch in curve.branches)


def measured(found: Findings) -> EarlyJudging | None:
    """Return what early values were worth in this study; None if that cannot be told."""
    spec = found.study.spec
    sign = 1.0 if spec.study.direction == "minimize" else -1.0
    ended = [one for one in found.trials if one.state in KINDS and not one.imported]
    known = [(one, value) for one in ended if (value := _early(found, one)) is not None]
    both = [
        (sign * value, sign * one.value)
        for one, value in known
        if one.state == COMPLETED and one.value is not None
    ]
    trained = sum(one.steps for one in ended) + branch_steps(found)
    horizons = sum(found.study.horizon(one.params) for one in ended)
    return early.judge(
        np.array(both, dtype=float).reshape(-1, 2),
        [sign * value for one, value in known if one.state == PRUNED],
        whole=int(len(ended) * trained / max(horizons, 1)),
        rng=np.random.default_rng(spec.study.seed),
    )


def _early(found: Findings, trial: TrialRecord) -> float | None:
    """Return the value by which a trial was compared at its study's first rung."""
    curve = found.curves.get(trial.number)
    for branch in curve.branches if curve is not None else ():
        return float(branch.metrics[found.study.spec.study.metric])
    if isinstance(found.study.spec.judge, Branching):
        return None
    first = next(iter(found.study.rungs), None)
    return next((one.value for one in trial.reports if one.step == first), None)


def sentence(found: Findings) -> str:
    """Return what early values were worth, in a sentence or two; empty without any."""
    one = measured(found)
    if one is None:
        return ""
    metric, first = found.study.spec.study.metric, found.study.rungs[0]
    unit = found.study.spec.unit.removesuffix("s")
    text = (
        f"Of the {one.trials} trials that ran to the end, the rank correlation (Kendall) of the "
        f"value at {unit} {first} with the final one is {one.correlation:.2f} ({one.low:.2f} to "
        f"{one.high:.2f})."
    )
    if not one.stopped:
        return text
    chance = "less than 1 %" if one.lost < 0.01 else f"about {one.lost:.0%}".replace("%", " %")
    text += (
        f" The chance that one of the {one.stopped} pruned trials would have been the best is "
        f"{chance}, by a line through those."
    )
    if one.fewer is not None and one.whole:
        text += (
            f" The same steps pay for {one.whole} whole trials, whose best {metric} is expected "
            f"to be {one.fewer:.2g} worse."
        )
    return text
