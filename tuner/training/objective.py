"""What a trial is judged by: the metric's last value or its best, and when it stopped improving."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tuner.config import StudySpec
from tuner.core.errors import WorkloadError
from tuner.training.workloads import Workload


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the evaluations of a trial have shown so far; every value is finite."""

    last: float | None = None
    last_step: int = -1
    best: float | None = None
    best_step: int = -1
    since: int = 0  # evaluations after the best one


NOTHING_YET = Progress()

TIME_HINT = "raise seconds in [training] or lower steps to train all of them"
"""What to change where a trial's time was up."""


def refuse_unmeasured(spec: StudySpec, workload: Workload) -> None:
    """Refuse a workload that does not measure the study's metric: `WorkloadError`."""
    if spec.study.metric not in workload.metric_names:
        raise WorkloadError(
            f"[study] metric: expected one of {', '.join(workload.metric_names)}, which "
            f"{spec.workload.function} measures, got {spec.study.metric}"
        )


def observed(spec: StudySpec, progress: Progress, step: int, value: float) -> Progress:
    """Take in the metric of the next evaluation."""
    sign = 1 if spec.study.direction == "minimize" else -1
    new = replace(progress, last=value, last_step=step)
    if progress.best is None or sign * value < sign * progress.best:
        return replace(new, best=value, best_step=step, since=0)
    return replace(new, since=progress.since + 1)


def value_of(spec: StudySpec, progress: Progress) -> float | None:
    """Give the objective: `[study] value` says whether it is the last value or the best."""
    return progress.best if spec.study.value == "best" else progress.last


def out_of_patience(spec: StudySpec, progress: Progress) -> str:
    """Give the reason to stop early, if `[training] patience` is spent before the horizon."""
    patience, steps = spec.training.patience, spec.training.steps
    if patience is None or progress.since < patience or progress.last_step >= steps:
        return ""
    return (
        f"stopped early at step {progress.last_step} of {steps}, as {spec.study.metric} had not "
        f"improved in {progress.since} evaluations (best {progress.best:.4g} at step "
        f"{progress.best_step})"
    )


def not_finite(spec: StudySpec, metrics: Mapping[str, float]) -> list[str]:
    """Name what must be finite and is not; other metrics are only numbers."""
    names = dict.fromkeys(("val_loss", spec.study.metric))
    return [
        f"{name} was {metrics[name]}"
        for name in names
        if name in metrics and not math.isfinite(metrics[name])
    ]
