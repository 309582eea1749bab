"""The chart of a front: two objectives against each other, as a figure of plotly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuner.analysis import front
from tuner.ledger import StudyRecord, TrialRecord
from tuner.report.charts.plot import AMBER, BLUE


def figure(study: StudyRecord, trials: Sequence[TrialRecord]) -> dict[str, Any] | None:
    """Return the figure of the first two objectives; None without a trial on the front."""
    on_it = front.front(study, trials)
    if not on_it:
        return None
    numbers = {one.number for one in on_it}
    others = [one for one in front.valued(study.spec, trials) if one.number not in numbers]
    first, second = study.spec.study.objectives[:2]
    return {
        "data": [
            _points(study, others, "dominated", BLUE, 6),
            _points(study, on_it, "front", AMBER, 10),
        ],
        "layout": {
            "xaxis": {"title": {"text": first.metric}},
            "yaxis": {"title": {"text": second.metric}},
            "hovermode": "closest",
        },
    }


def _points(
    study: StudyRecord, trials: Sequence[TrialRecord], name: str, colour: str, size: int
) -> dict[str, Any]:
    pairs = [list(front.values(study, one).values())[:2] for one in trials]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [x for x, _ in pairs],
        "y": [y for _, y in pairs],
        "text": [f"trial {one.number}: {front.values_in_words(study, one)}" for one in trials],
        "hoverinfo": "text",
        "marker": {"color": colour, "size": size},
    }
