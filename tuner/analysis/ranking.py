"""What a study found, from its trials: order, best, and short texts about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from tuner.analysis.verdicts import Verdict, counted
from tuner.config import ParameterValue
from tuner.core.outcome import COMPLETED, DIVERGED, PRUNED
from tuner.ledger import StudyRecord, TrialRecord, ranges


def ranked(study: StudyRecord, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Order trials: completed ones by value, then pruned ones by how far they came, then others."""
    sign = 1 if study.spec.study.direction == "minimize" else -1
    order = {COMPLETED: 0, PRUNED: 1, DIVERGED: 2}

    def key(trial: TrialRecord) -> tuple[int, int, float, int]:
        reached = -trial.steps if trial.state == PRUNED else 0
        value = sign * trial.value if trial.value is not None else float("inf")
        return (order.get(trial.state, 3), reached, value, trial.number)

    return sorted(trials, key=key)


WHY_BELOW = (
    "A pruned trial ranks below every completed one, even with a better value: its value is of the "
    "step at which it was stopped, and only values at the horizon can be compared."
)


def has_better_below(study: StudyRecord, ranked: Sequence[TrialRecord]) -> bool:
    """Return whether a pruned trial has a better value than a completed one above it."""
    sign = 1 if study.spec.study.direction == "minimize" else -1
    values = {
        state: [sign * one.value for one in ranked if one.state == state and one.value is not None]
        for state in (COMPLETED, PRUNED)
    }
    return min(values[PRUNED], default=float("inf")) < max(values[COMPLETED], default=float("-inf"))


def in_short(params: Mapping[str, ParameterValue] | None) -> str:
    """Name a trial by what matters: `lr 0.0123, cosine, sgd`."""
    if params is None:
        return "no parameters"
    return f"lr {float(params['lr']):.3g}, {params['schedule']}, {params['optimizer']}"


def best_in_words(study: StudyRecord, best: TrialRecord | None, *, whole: bool = True) -> str:
    """Say what the best trial is, or that there is none; `whole` with all its parameters."""
    if best is None or best.params is None:
        return "No trial has completed."
    origin = " (imported)" if best.imported else ""
    own = [
        f"{key} {shown(value)}"
        for key, value in best.params.items()
        if key not in ("lr", "schedule", "optimizer")
    ]
    more = f" ({', '.join(own)})" if own and whole else ""
    return (
        f"Best: {study.spec.study.metric} {best.value:.4g} in trial {best.number}{origin} with "
        f"{in_short(best.params)}{more}."
    )


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Say how many trials ended how: `21 completed, 14 pruned, 5 diverged`."""
    said = [f"{count} {kind}" for kind, count in counts.items() if count]
    return ", ".join(said) or "no trials yet"


def verdicts_in_words(verdicts: Mapping[int, Verdict]) -> str:
    """Return how many trials had which verdict: `with adamw 1 good; with sgd 2 too low, 3 good`."""
    said = []
    for name in sorted({one.optimizer for one in verdicts.values()}):
        own = {number: one for number, one in verdicts.items() if one.optimizer == name}
        said.append(f"with {name} {counts_in_words(counted(own))}")
    return "; ".join(said) or "none yet"


def ranges_in_words(study: StudyRecord) -> list[str]:
    """Say which rates are drawn, and what narrowed or extended them, when and why."""
    said = []
    for one in ranges.history(study.attrs):
        when = datetime.fromtimestamp(one.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        said.append(f"Rates from {one.low:.3g} to {one.high:.3g} since {when}. {one.why}")
    return said


def shown(value: ParameterValue) -> str:
    """Give a parameter's value in short."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
