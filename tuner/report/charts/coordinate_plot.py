"""The picture of a coordinate check: the change of each layer by width."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tuner.report.charts import matplotlib_backend
from tuner.report.charts.plot import DASHES, MARKERS, SERIES, Axis, Key, Look, Plot, Series
from tuner.training.coordinates import CoordinateCheck


def plot(found: CoordinateCheck) -> Plot:
    """Return a plot of the changes after the last step; level lines are what muP should show."""
    looks = {
        name: Look(
            colour=SERIES[place % len(SERIES)],
            dash=DASHES[place // len(SERIES) % len(DASHES)],
            marker=MARKERS[place % len(MARKERS)],
        )
        for place, name in enumerate(found.changes)
    }
    return Plot(
        title="",
        x=Axis(title="width", log=True),
        y=Axis(title="change of outputs (root mean square)", log=True),
        series=[
            Series(label=name, x=np.array(found.widths), y=change[-1], look=looks[name], group=name)
            for name, change in found.changes.items()
        ],
        legend=[
            Key(label=f"{name}: power {slope:.2f}", look=looks[name])
            for name, slope in found.slopes.items()
        ],
    )


def save(found: CoordinateCheck, path: Path) -> None:
    """Draw the check into a PNG file."""
    matplotlib_backend.save(matplotlib_backend.draw(plot(found)), path)
