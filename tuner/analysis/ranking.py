"""The ranking of a study's trials, and short texts about the study's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tuner.analysis.verdicts import Verdict, count_by_verdict
from tuner.config import CHOSEN, ParameterValue, written
from tuner.core.outcome import COMPLETED, DIVERGED, PRUNED
from tuner.ledger import StudyRecord, TrialRecord, at_end, ranges


def ranked(study: StudyRecord, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return trials, best first: completed by value, pruned by last step, then the others.

    Of completed ones, those that violate constraints come last, by how much.
    """
    sign = 1 if study.spec.study.direction == "minimize" else -1
    order = {COMPLETED: 0, PRUNED: 1, DIVERGED: 2}

    def key(trial: TrialRecord) -> tuple[int, float, int, float, int]:
        reached = -trial.steps if trial.state == PRUNED else 0
        value = sign * trial.value if trial.value is not None else float("inf")
        violation = trial.violation or 0.0
        return (order.get(trial.state, 3), violation, reached, value, trial.number)

    return sorted(trials, key=key)


WHY_BELOW = (
    "A pruned trial ranks below every completed one, even with a better value: its value was "
    "measured at the step where it stopped, and only values at the horizon can be compared."
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
    """Return the main parameters of a trial in short, such as `lr 0.0123, cosine, sgd, hidden 64`.

    Parameters of schedule and optimizer are left out.
    """
    if params is None:
        return "no parameters"
    main = f"lr {float(params['lr']):.3g}, {params['schedule']}, {params['optimizer']}"
    return ", ".join([main, *others_in_short(params)])


def others_in_short(params: Mapping[str, ParameterValue]) -> list[str]:
    """Return settings, rates and arguments of a trial, each such as `hidden 64`."""
    names = [name for name in params if name not in CHOSEN and "." not in name]
    return [f"{name} {format_value(params[name])}" for name in names]


def best_in_words(study: StudyRecord, best: TrialRecord | None, *, whole: bool = True) -> str:
    """Return a sentence about the best trial, if any; with all its parameters if `whole`."""
    if best is None or best.params is None:
        return "No trial has completed."
    origin = " (imported)" if best.imported else ""
    if best.infeasible:
        known = set(study.spec.study.constraints)  # a row may hold any text
        excesses = {text: excess for text, excess in best.excesses.items() if text in known}
        return (
            f"No trial satisfies the constraints. Trial {best.number} violates them least "
            f"({at_end.violated(excesses)}): {study.spec.study.metric} "
            f"{best.value:.4g} with {in_short(best.params)}."
        )
    own = [f"{key} {format_value(value)}" for key, value in best.params.items() if "." in key]
    more = f" ({', '.join(own)})" if own and whole else ""
    several = len(study.spec.study.objectives)
    about = f"{several} objectives; best in the first" if several else "Best"
    return (
        f"{about}: {study.spec.study.metric} {best.value:.4g} in trial {best.number}{origin} with "
        f"{in_short(best.params)}{more}."
    )


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Return the number of trials by outcome, such as `21 completed, 14 pruned, 5 diverged`."""
    parts = [f"{count} {kind}" for kind, count in counts.items() if count]
    return ", ".join(parts) or "no trials yet"


def spend_in_words(spent: Mapping[str, Any]) -> str:
    """Return a clause on a spend, such as `3.2 h of workers, 1,200 steps of 4 trials`."""
    words = f"{_duration(spent['seconds'])} of workers"
    if spent["gpu_seconds"]:
        words += f", {_duration(spent['gpu_seconds'])} of GPUs"
    trials = "1 trial" if spent["trials"] == 1 else f"{spent['trials']:,} trials"
    words += f", {spent['steps']:,} steps of {trials}"
    if spent["branch_steps"]:
        words += f" and {spent['branch_steps']:,} of branches"
    if spent["pruned_steps"]:
        words += f"; pruning saved {spent['saved_steps']:,} steps"
        words += ", net of branches" if spent["branch_steps"] else ""
    return words


def _duration(seconds: float) -> str:
    """Return a time in the unit that fits."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def verdicts_in_words(verdicts: Mapping[int, Verdict]) -> str:
    """Return the number of trials by verdict: `with adamw 1 good; with sgd 2 too low, 3 good`."""
    parts = []
    for name in sorted({one.optimizer for one in verdicts.values()}):
        own = {number: one for number, one in verdicts.items() if one.optimizer == name}
        parts.append(f"with {name} {counts_in_words(count_by_verdict(own))}")
    return "; ".join(parts) or "none yet"


def ranges_in_words(study: StudyRecord) -> list[str]:
    """Return a sentence for each active range: which rates are drawn, since when and why."""
    parts = []
    for one in ranges.history(study.attrs):
        when = datetime.fromtimestamp(one.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        parts.append(f"Rates from {one.low:.3g} to {one.high:.3g} since {when}. {one.why}")
    return parts


def format_value(value: ParameterValue) -> str:
    """Return a parameter's value in short."""
    return f"{value:.3g}" if isinstance(value, float) else written(value)
