"""Views of a study that MLflow's UI opens: its saved views, and links to them, runs, comparisons.

MLflow's UI keeps a saved view as a tag of the experiment: JSON around the state of its page,
deflated. That format is internal to the UI, so it is written where the installed MLflow is of the
version that it was read from, and a test opens each view in a browser. Elsewhere there are no
views, and links name the page without one.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import mlflow

from tuner.core.outcome import CANCELLED, COMPLETED, DIVERGED, FAILED, PRUNED, RUNNING
from tuner.ledger import StudyRecord

VERSION = "3.17."
"""The MLflow whose saved views these are."""
TAG = "mlflow.sharedViewState."
VALUE = "trial_value"
"""The metric that says what a trial's value in its study is; of completed trials only."""

COLOURS: Mapping[str, str] = {
    COMPLETED: "#0072b2",
    PRUNED: "#8a8a8a",
    DIVERGED: "#d55e00",
    FAILED: "#cc79a7",
    CANCELLED: "#cc79a7",
    RUNNING: "#56b4e9",
}
"""The colours of outcomes in every plot of ours, as the UI draws runs."""

BEST = "#009e73"
"""The colour of the best trial."""
COLOUR = "mlflow.runColor"

TRIALS = "tags.tuner.trial != 'study'"
"""All runs of a study but its parent run, as the UI filters them."""
SIDE = "workflowType=machine_learning"
"""What makes the UI open on training runs whatever the browser showed last."""


@dataclass(frozen=True, kw_only=True)
class View:
    """A saved view: which runs, in which order, with which columns or charts."""

    key: str
    name: str
    filter: str = TRIALS
    charts: Sequence[Mapping[str, Any]] = ()  # none: it is a table


def is_known() -> bool:
    """Tell whether the installed MLflow is one whose UI reads these views."""
    return str(mlflow.__version__).startswith(VERSION)


def views(study: StudyRecord) -> list[View]:
    """Give the views that every study has."""
    losses, training, applied = _lines(study)
    parallel = _chart(
        "PARALLEL",
        "Parameters and values",
        selectedParams=["log10_lr", "schedule", "optimizer"],
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
    """Give the view of some runs, which are the best so far."""
    chosen = ", ".join(f"'{run_id}'" for run_id in run_ids)
    losses, training, applied = _lines(study)
    return View(
        key="tuner-best",
        name="7 The best trials",
        filter=f"attributes.run_id IN ({chosen})",
        charts=[losses, training, applied],
    )


def view_tags(study: StudyRecord, shown: Sequence[View]) -> dict[str, str]:
    """Give the tags of an experiment that are views of a study; the same for the same ones."""
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
    """Give a state as the UI stores it."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def state_of(study: StudyRecord, view: View) -> dict[str, Any]:
    """Give the state of the UI's page that shows a view."""
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
    params = [f"params.`{name}`" for name in ("lr", "schedule", "optimizer")]
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


@dataclass(frozen=True, kw_only=True)
class Links:
    """The pages of one study in MLflow's UI.

    `ui` is the address of a server, or nothing: from one page of the UI to another.
    """

    experiment: str
    parent: str  # the id of the study's parent run
    ui: str = ""

    def view(self, key: str) -> str:
        """Open a saved view; without views the runs, sorted."""
        mode = "TABLE" if key in ("tuner-table", "tuner-diverged") else "CHART"
        shown = f"&viewStateShareKey={key}" if is_known() else ""
        return f"{self._page()}/runs?{SIDE}{shown}&compareRunsMode={mode}"

    def run(self, run_id: str) -> str:
        """Open a run."""
        return f"{self._page()}/runs/{run_id}?{SIDE}"

    def study(self) -> str:
        """Open the parent run, which has the summary."""
        return self.run(self.parent)

    def file(self, path: str) -> str:
        """Open an artifact of the parent run."""
        return f"{self._page()}/runs/{self.parent}/artifacts/{quote(path)}?{SIDE}"

    def picture(self, path: str) -> str:
        """Give the address of an artifact's bytes."""
        asked = urlencode({"path": path, "run_uuid": self.parent})
        return f"{self._root()}get-artifact?{asked}"

    def compare(self, run_ids: Sequence[str]) -> str:
        """Open a comparison of runs."""
        asked = {"runs": _asked(run_ids), "experiments": _asked([self.experiment])}
        return f"{self._root()}#/compare-runs?{urlencode(asked, quote_via=quote)}&{SIDE}"

    def _page(self) -> str:
        return f"{self._root()}#/experiments/{self.experiment}"

    def _root(self) -> str:
        return f"{self.ui}/" if self.ui else ""


def _asked(values: Sequence[str]) -> str:
    return json.dumps(list(values), separators=(",", ":"))
