"""What the metrics at the end of a trial say: the values of objectives, and of constraints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tuner.config import StudySpec
from tuner.config.study import SECONDS
from tuner.core import curves
from tuner.core.curves import Chunk
from tuner.core.outcome import COMPLETED, FAILED, Outcome
from tuner.ledger.reading import Reader
from tuner.ledger.records import AttemptLease, StudyRecord


def judge(
    ledger: Reader,
    study: StudyRecord,
    lease: AttemptLease,
    number: int,
    outcome: Outcome,
    fresh: Chunk | None,
    told: Mapping[str, float] | None = None,
) -> Outcome:
    """Return the outcome of a trial with what its metrics say; `fresh` is not committed yet.

    Metrics that are `told` count more than those of the curve.
    """
    if outcome.kind != COMPLETED or not is_judged(study.spec):
        return outcome
    curve = ledger.curve(lease.trial_id)
    if fresh is not None:
        evaluated = curve.next_step in curve.eval_steps
        curve = curves.join([curve, fresh.after(curve.next_step, evaluated=evaluated)])
    earlier = [
        one.ended_at - one.started_at
        for one in ledger.attempts(study.id, number)
        if one.number != lease.token and one.ended_at is not None
    ]
    seconds = sum(earlier) + max(0.0, curve.last_time - lease.started_at)
    return judged(study.spec, outcome, curve, seconds, told)


def judged(
    spec: StudySpec,
    outcome: Outcome,
    curve: Chunk,
    seconds: float,
    told: Mapping[str, float] | None = None,
) -> Outcome:
    """Return the outcome of a completed trial with its objectives and excesses.

    It has failed if they are unknown. Metrics are those of the evaluation whose value is the
    trial's; `seconds` is the time that it took.
    """
    limits, objectives = spec.study.limits(), [one.metric for one in spec.study.objectives]
    metrics = {SECONDS: seconds} | _at_value(spec, curve) | dict(told or {})
    if outcome.value is not None:
        metrics[spec.study.metric] = outcome.value
    if missing := sorted({*objectives, *(n for one in limits for n in one.names)} - metrics.keys()):
        reason = f"It reported no {', '.join(missing)}, which [study] needs at its end."
        return Outcome(kind=FAILED, reason=reason)
    if wrong := [name for name in objectives if not math.isfinite(metrics[name])]:
        reason = f"Its {', '.join(wrong)} was not finite at its end."
        return Outcome(kind=FAILED, reason=reason)
    excesses = {one.text: one.excess(metrics) for one in limits}
    more = f" It violates {found}." if (found := violated(excesses)) else ""
    return replace(
        outcome,
        excesses=excesses if limits else None,
        objectives=[metrics[name] for name in objectives] if objectives else None,
        reason=outcome.reason + more,
    )


def is_judged(spec: StudySpec) -> bool:
    """Return whether an outcome depends on other metrics than the trial's value."""
    return bool(spec.study.constraints or spec.study.objectives)


def violated(excesses: Mapping[str, float]) -> str:
    """Return the constraints that are violated, each with its excess; empty if there are none."""
    found = [f"{text} by {excess:.3g}" for text, excess in excesses.items() if excess > 0]
    return " and ".join(found)


def _at_value(spec: StudySpec, curve: Chunk) -> dict[str, float]:
    """Return the metrics of the evaluation whose value is the trial's; none without evaluations."""
    if not len(curve.eval_steps):
        return {}
    index = -1
    values = curve.metrics.get(spec.study.metric, np.empty(0))
    if spec.study.value == "best" and np.isfinite(values).any():
        sign = 1.0 if spec.study.direction == "minimize" else -1.0
        index = int(np.nanargmin(np.where(np.isfinite(values), sign * values, np.inf)))
    return {name: float(column[index]) for name, column in curve.metrics.items()}
