"""Saved views of a study in MLflow's UI.

MLflow's UI stores a saved view as a tag of the experiment: JSON around the deflated state of its
page. The format is internal to the UI, so views are written only for the MLflow version whose
format is known; a test opens each view in a browser. With other versions there are no views, and
links open the page without one.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlflow

from tuner.config import CHOSEN
from tuner.core.outcome import CANCELLED, COMPLETED, DIVERGED, FAILED, PRUNED, RUNNING
from tuner.ledger import StudyRecord

VERSION = "3.17."
"""The MLflow version whose format is known."""
TAG = "mlflow.sharedViewState."
VALUE = "trial_value"
"""The metric with a trial's value in its study; completed trials only."""

COLOURS: Mapping[str, str] = {
    COMPLETED: "#0072b2",
    PRUNED: "#8a8a8a",
    DIVERGED: "#d55e00",
    FAILED: "#cc79a7",
    CANCELLED: "#cc79a7",
    RUNNING: "#56b4e9",
}
"""The colours of runs in the UI by outcome, the same as in the report's plots."""

BEST = "#009e73"
"""The colour of the best trial."""
COLOUR = "mlflow.runColor"

TRIALS = "tags.tuner.trial != 'study'"
"""The UI's filter for all runs of a study except its parent run."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A saved view: a filter of runs, and either charts or a table."""

    key: str
    name: str
    filter: str = TRIALS
    charts: Sequence[Mapping[str, Any]] = ()  # empty for a table


def is_known() -> bool:
    """Return whether the UI of the installed MLflow supports these views."""
    return str(mlflow.__version__).startswith(VERSION)


def views(study: StudyRecord) -> list[View]:
    """Return the views that every study has."""
    losses, training, applied = _lines(study)
    parallel = _chart(
        "PARALLEL",
        "Parameters and values",
        selectedParams=["log10_lr", "schedule", "optimizer", *study.spec.space.others],
        selectedMetrics=[VALUE],
        showAllRuns=True,
    )
    rates = _chart(
        "SCATTER",
        f"{study.spec.study.metric} against log10 of the rate",
        xaxis={"key": "log10_lr", "type": "PARAM"},
        yaxis={"key": VALUE, "type": "METRIC"},
    )
    diverged = f"tags.tuner.outcome = '{DIVERGED}'"
    return [
        View(key="tuner-curves", name="1 Loss curves", charts=[losses, training]),
        View(key="tuner-rates", name="2 Best value against rate", charts=[rates, parallel]),
        View(key="tuner-schedules", name="3 Schedules as applied", charts=[applied, losses]),
        View(key="tuner-table", name="4 Table of trials"),
        View(key="tuner-diverged", name="5 Diverged trials", filter=diverged),
        View(key="tuner-diverged-curves", name="6 Curves of diverged trials", filter=diverged,
             charts=[training, applied]),
    ]  # fmt: skip


def best_view(study: StudyRecord, run_ids: Sequence[str]) -> View:
    """Return the view of the best runs so far."""
    chosen = ", ".join(f"'{run_id}'" for run_id in run_ids)
    losses, training, applied = _lines(study)
    return View(
        key="tuner-best",
        name="7 The best trials",
        filter=f"attributes.run_id IN ({chosen})",
        charts=[losses, training, applied],
    )


def view_tags(study: StudyRecord, shown: Sequence[View]) -> dict[str, str]:
    """Return the experiment's tags that store views; deterministic."""
    at = round(study.created_at * 1000)
    return {
        TAG + view.key: json.dumps({
            "name": view.name,
            "createdAt": at,
            "updatedAt": at,
            "state": packed(state_of(study, view)),
        })
        for view in shown
    }  # fmt: skip


def _lines(study: StudyRecord) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    metric = study.spec.study.metric
    return (
        _line(f"{metric}, log scale", metric, scaleType="log"),
        _line("train_loss, log scale", "train_loss", scaleType="log"),
        _line("Learning rate as applied", "lr", scaleType="log"),
    )


def packed(state: Mapping[str, Any]) -> str:
    """Return a page state in the format in which the UI stores it."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def state_of(study: StudyRecord, view: View) -> dict[str, Any]:
    """Return the state of the UI's page that shows a view."""
    section = {"uuid": view.key, "name": view.name, "display": True, "isReordered": True,
               "deleted": False, "isGenerated": False}  # fmt: skip
    charts = [
        {**chart, "uuid": f"{view.key}-{index}", "metricSectionId": view.key}
        for index, chart in enumerate(view.charts)
    ]
    return {
        "searchFilter": view.filter,
        "orderByKey": f"metrics.`{VALUE}`",
        "orderByAsc": study.spec.study.direction == "minimize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": _columns(study),
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "compareRunCharts": charts,
        "compareRunSections": [section] if charts else [],
    }


def _columns(study: StudyRecord) -> list[str]:
    params = [f"params.`{name}`" for name in (*CHOSEN, *study.spec.space.others)]
    metrics = [f"metrics.`{name}`" for name in (VALUE, study.spec.study.metric)]
    tags = [f"tags.`tuner.{name}`" for name in ("outcome", "verdict", "reason")]
    return [*params, *metrics, *tags]


def _line(name: str, metric: str, **more: Any) -> dict[str, Any]:
    return _chart(
        "LINE",
        name,
        metricKey=metric,
        selectedMetricKeys=[metric],
        xAxisKey="step",
        xAxisScaleType="linear",
        lineSmoothness=0,
        yAxisKey="metric",
        yAxisExpressions=[],
        selectedXAxisMetricKey="",
        range={},
        ignoreOutliers=False,
        useGlobalXaxisKey=False,
        useGlobalLineSmoothing=False,
        **more,
    )


def _chart(kind: str, name: str, **more: Any) -> dict[str, Any]:
    fixed = {"runsCountToCompare": 100, "deleted": False, "isGenerated": False}
    return {"type": kind, "displayName": name, **fixed, **more}
