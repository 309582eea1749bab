"""The objective of a trial: the last or best value of the metric, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tuner.config import StudySpec
from tuner.core.errors import WorkloadError
from tuner.training.workloads import Workload


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Summary of a trial's evaluations so far; every value is finite."""

    last: float | None = None
    last_step: int = -1
    best: float | None = None
    best_step: int = -1
    since: int = 0  # evaluations since the best one


NO_EVALUATIONS = Progress()

TIME_HINT = "raise seconds in [training] or lower steps to train all of them"
"""Hint for a trial that ran out of time."""


def check_metric(spec: StudySpec, workload: Workload) -> None:
    """Raise `WorkloadError` if the workload does not measure the study's metric."""
    if spec.study.metric not in workload.metric_names:
        raise WorkloadError(
            f"[study] metric: expected one of {', '.join(workload.metric_names)}, which "
            f"{spec.workload.function} measures, got {spec.study.metric}"
        )


def with_evaluation(spec: StudySpec, progress: Progress, step: int, value: float) -> Progress:
    """Return the summary after the next evaluation, with `value` of the study's metric."""
    sign = 1 if spec.study.direction == "minimize" else -1
    new = replace(progress, last=value, last_step=step)
    if progress.best is None or sign * value < sign * progress.best:
        return replace(new, best=value, best_step=step, since=0)
    return replace(new, since=progress.since + 1)


def value_of(spec: StudySpec, progress: Progress) -> float | None:
    """Return the objective: the best value or the last, as `[study] value` says."""
    return progress.best if spec.study.value == "best" else progress.last


def early_stop_reason(spec: StudySpec, progress: Progress, steps: int) -> str:
    """Return the reason to stop early if `[training] patience` is exceeded, else an empty text.

    `steps` is the horizon of the trial.
    """
    patience = spec.training.patience
    if patience is None or progress.since < patience or progress.last_step >= steps:
        return ""
    return (
        f"stopped early at step {progress.last_step} of {steps}, as {spec.study.metric} had not "
        f"improved in {progress.since} evaluations (best {progress.best:.4g} at step "
        f"{progress.best_step})"
    )


def non_finite(spec: StudySpec, metrics: Mapping[str, float]) -> list[str]:
    """Describe non-finite values of the loss and the study's metric; others may be non-finite."""
    names = dict.fromkeys(("val_loss", spec.study.metric))
    return [
        f"{name} was {metrics[name]}"
        for name in names
        if name in metrics and not math.isfinite(metrics[name])
    ]
