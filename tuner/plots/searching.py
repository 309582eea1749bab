"""What Optuna has to say of a search: how much each parameter matters, and its own plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.ledger import StudyRecord, TrialRecord
from tuner.outcome import COMPLETED

if TYPE_CHECKING:
    from optuna import Study

ENOUGH = 4
"""Completed trials that importances need; of fewer they say nothing."""
MOST = 1000
"""Trials that are looked at, the last ones; forests and plots of more take seconds."""


def in_memory(study: StudyRecord, trials: Sequence[TrialRecord]) -> Study:
    """Give the completed trials of a study as Optuna's study, in memory."""
    import optuna  # noqa: PLC0415

    from tuner.search.mirror import frozen  # noqa: PLC0415

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = optuna.create_study(direction=study.spec.study.direction, study_name=study.title)
    completed = [one for one in trials if one.state == COMPLETED and one.params is not None]
    made.add_trials([frozen(one, study.spec) for one in completed[-MOST:]])
    return made


def importances(study: Study) -> dict[str, float]:
    """Give how much of the values' variance each parameter explains (fANOVA); empty: not known.

    Only parameters that every trial has are looked at. Hutter et al., An Efficient Approach for
    Assessing Hyperparameter Importance (2014).
    """
    import optuna  # noqa: PLC0415

    values = [one.value for one in study.trials]
    if len(values) < ENOUGH or np.ptp(np.array(values, dtype=float)) == 0:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}


def plots(study: Study) -> dict[str, dict[str, Any]]:
    """Give Optuna's slices and parallel coordinates as plotly has them, by name."""
    import optuna  # noqa: PLC0415

    if len(study.trials) < 2:
        return {}
    drawn = {
        "slices": optuna.visualization.plot_slice(study),
        "parallel": optuna.visualization.plot_parallel_coordinate(study),
    }
    return {name: _plain(json.loads(figure.to_json())) for name, figure in drawn.items()}


def _plain(figure: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the page decides: theme, title, size."""
    for name in ("template", "title", "width", "height"):
        figure["layout"].pop(name, None)
    return figure
