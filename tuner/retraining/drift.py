"""Adding a retraining to the drift curves in MLflow, and intervals as JSON."""

from __future__ import annotations

import math
from typing import Any

from tuner.analysis.drift import values_after
from tuner.analysis.statistics import Interval
from tuner.ledger import Retraining, Retrainings
from tuner.tracking.mlflow.retraining_run import RetrainingRuns


def show(
    runs: RetrainingRuns, store: Retrainings, held: Retraining, outcome: str, metric: str
) -> None:
    """Add a retraining that is about to end to the curves of the parent run."""
    found = values_after(held, outcome)
    number = sum(one.id < held.id for one in store.history(held.study))
    low, high = found["lr_range"]
    values = {"lr": found["lr"], "lr_low": low, "lr_high": high}
    if found["champion"] is not None and math.isfinite(found["champion"]):
        values[f"champion_{metric}"] = found["champion"]
    runs.log_drift(values, number, held.created_at)


def interval_as_json(interval: Interval | None) -> dict[str, Any] | None:
    """Return `Interval.as_json` of an interval, None for none."""
    return interval.as_json() if interval else None
