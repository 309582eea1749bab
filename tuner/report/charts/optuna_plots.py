"""Optuna's analyses of a search: parameter importances and its own plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.core.outcome import COMPLETED
from tuner.ledger import StudyRecord, TrialRecord
from tuner.report.charts.plot import AMBER, BLUE, GREEN, INK

if TYPE_CHECKING:
    from optuna import Study

MIN_TRIALS = 4
"""Least number of completed trials for importances."""
MAX_TRIALS = 300
"""Maximum number of trials, spread evenly over the study; forests and plots of more are slow."""
TREES = 32

SCALE = ((0.0, BLUE), (0.5, GREEN), (1.0, AMBER))
"""Colour scale of numbers, readable on light and dark backgrounds."""
MAX_DRAWN = 200
"""Maximum number of trials in Optuna's plots: the best ones."""
MAX_PARAMETERS = 6
"""Maximum number of parameters in Optuna's plots."""


def in_memory(study: StudyRecord, trials: Sequence[TrialRecord]) -> Study:
    """Return an in-memory Optuna study of completed trials, at most about `MAX_TRIALS`.

    Values too large for Optuna to compute their variance are clipped.
    """
    import optuna  # noqa: PLC0415

    from tuner.search.mirror import LARGEST, frozen  # noqa: PLC0415

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = optuna.create_study(direction=study.spec.study.direction, study_name=study.title)
    completed = [one for one in trials if one.state == COMPLETED and one.params is not None]
    every = -(-len(completed) // MAX_TRIALS) or 1
    for one in completed[::every]:
        trial = frozen(replace(one, attrs={}), study.spec)  # Optuna draws infeasible ones apart
        trial.values = [min(max(one.value or 0.0, -LARGEST), LARGEST)]  # of the first objective
        made.add_trial(trial)
    return made


def importances(study: Study) -> dict[str, float]:
    """Return the share of the values' variance that each parameter explains (fANOVA).

    Only for parameters that every trial has; empty if unknown. Hutter et al., An Efficient Approach
    for Assessing Hyperparameter Importance (2014).
    """
    import optuna  # noqa: PLC0415

    values = [one.value for one in study.trials]
    if len(values) < MIN_TRIALS or np.ptp(np.array(values, dtype=float)) == 0:
        return {}
    everywhere = [name for name in varied(study) if all(name in one.params for one in study.trials)]
    if not everywhere:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=everywhere)
    return {name: float(share) for name, share in found.items()}


def varied(study: Study) -> list[str]:
    """Return the names of parameters with several values, those of the most trials first."""
    values: dict[str, list[Any]] = {}
    for trial in study.trials:
        for name, value in trial.params.items():
            values.setdefault(name, []).append(value)
    several = [name for name, own in values.items() if len(set(own)) > 1]
    return sorted(several, key=lambda name: -len(values[name]))


def plots(study: Study) -> dict[str, dict[str, Any]]:
    """Return Optuna's slice and parallel coordinate plots as plotly figures, by name."""
    import optuna  # noqa: PLC0415

    params = varied(study)[:MAX_PARAMETERS]
    if not params:
        return {}
    study = _best(study)
    drawn = {
        "slices": optuna.visualization.plot_slice(study, params),
        "parallel": optuna.visualization.plot_parallel_coordinate(study, params),
    }
    return {name: _plain(json.loads(figure.to_json())) for name, figure in drawn.items()}


def _best(study: Study) -> Study:
    """Return a study of the best trials only: Optuna draws a line for each trial."""
    import optuna  # noqa: PLC0415

    if len(study.trials) <= MAX_DRAWN:
        return study
    sign = 1.0 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1.0
    made = optuna.create_study(direction=study.direction)
    made.add_trials(sorted(study.trials, key=lambda one: sign * (one.value or 0.0))[:MAX_DRAWN])
    return made


def _plain(figure: dict[str, Any]) -> dict[str, Any]:
    """Remove what the page sets itself, and use colours that suit both of its themes."""
    layout = figure["layout"]
    for name in ("template", "title", "width", "height", "coloraxis", "legend"):
        layout.pop(name, None)
    for name, axis in layout.items():
        if name.startswith("xaxis") and axis.get("type") == "log":
            axis["dtick"] = 1  # decades alone: there are several axes side by side
    for note in layout.get("annotations", ()):
        note["font"] = {**note.get("font", {}), "color": INK}
    for trace in figure["data"]:
        if "colorscale" in trace.get("marker", {}):
            trace["marker"]["colorscale"] = [[at, colour] for at, colour in SCALE]
        elif trace.get("mode") == "lines":  # of a trial; it begins at the height of its value
            trace["line"]["color"] = _between(1 - float(trace["y"][0]))
    return figure


def _between(share: float) -> str:
    """Return the colour at a position of the scale."""
    places = [at for at, _ in SCALE]
    parts = [[int(colour[k : k + 2], 16) for _, colour in SCALE] for k in (1, 3, 5)]
    return "#" + "".join(f"{round(np.interp(share, places, part)):02x}" for part in parts)
