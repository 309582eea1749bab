"""The front of a study of several objectives: the trials that no other one dominates.

A trial dominates another one if it is as good in every objective and better in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tuner.analysis import ranking
from tuner.config import StudySpec
from tuner.core.outcome import COMPLETED
from tuner.ledger import StudyRecord, TrialRecord


def front(study: StudyRecord, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the feasible completed trials on the front, by their first objective; none without."""
    own = valued(study.spec, trials)
    if not own:
        return []
    signs = [1.0 if one.direction == "minimize" else -1.0 for one in study.spec.study.objectives]
    losses = np.array([one.objectives for one in own]) * signs  # [trial, objective]
    order = sorted(range(len(own)), key=lambda at: (losses[at, 0], own[at].number))
    return [own[at] for at in order if not _is_dominated(losses[at], losses)]


def valued(spec: StudySpec, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the feasible completed trials that have a value of each of several objectives."""
    count = len(spec.study.objectives)
    return [
        one
        for one in trials
        if one.state == COMPLETED and not one.infeasible and count == len(one.objectives or ()) > 0
    ]


def _is_dominated(own: np.ndarray, others: np.ndarray) -> bool:  # [objective], [trial, objective]
    return bool(((others <= own).all(axis=1) & (others < own).any(axis=1)).any())


def values(study: StudyRecord, trial: TrialRecord) -> dict[str, float]:
    """Return the values of a trial's objectives by their metrics."""
    names = [one.metric for one in study.spec.study.objectives]
    return dict(zip(names, trial.objectives or (), strict=False))


def in_words(study: StudyRecord, trials: Sequence[TrialRecord]) -> list[str]:
    """Return a sentence about the front, and a line for each trial on it."""
    if not study.spec.study.objectives:
        return []
    found = front(study, trials)
    if not found:
        return []
    of = len(valued(study.spec, trials))
    what = " and ".join(
        f"{'lower' if one.direction == 'minimize' else 'higher'} {one.metric}"
        for one in study.spec.study.objectives
    )
    kind = "feasible trials" if study.spec.study.constraints else "trials"
    head = f"The front has {len(found)} of {of} {kind}; no other trial is better in one objective "
    return [
        f"{head}({what}) and as good in all others:",
        *(
            f"trial {one.number}: {values_in_words(study, one)} with {ranking.in_short(one.params)}"
            for one in found
        ),
    ]


def values_in_words(study: StudyRecord, trial: TrialRecord) -> str:
    """Return the values of a trial's objectives, such as `val_loss 0.12, seconds 31`."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values(study, trial).items())


def as_json(
    study: StudyRecord, trials: Sequence[TrialRecord], runs: dict[int, str]
) -> list[dict[str, Any]]:
    """Return what commands print of the front with `--json`; `runs` are MLflow's, by number.

    The trials on the front are enough.
    """
    return [
        {
            "number": one.number,
            "values": values(study, one),
            "params": one.params,
            "run_id": runs.get(one.number),
        }
        for one in front(study, trials)
    ]
