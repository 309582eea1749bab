"""Drift: how rate, range and metric moved from one retraining of a study to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.ledger import Retraining, Retrainings
from tuner.ledger.retrainings import EVALUATE, FAILED, LOG, PROMOTED, TRAIN
from tuner.statistics import Interval
from tuner.tracking.retrain_runs import RetrainRuns


@dataclass(frozen=True, kw_only=True)
class Step:
    """One retraining, among those of its study."""

    run_key: str
    ended_at: float  # seconds since 1970
    outcome: str
    reason: str
    lr: float  # of the challenger
    lr_range: tuple[float, float]  # in which it was searched
    champion: float | None  # the gate's metric of whoever is the champion after it
    version: int | None  # of the challenger

    def as_json(self) -> dict[str, Any]:
        """Give what `tuner retrain --history --json` prints."""
        return vars(self) | {"lr_range": list(self.lr_range)}


def steps(history: Sequence[Retraining]) -> list[Step]:
    """Give the retrainings that have ended, in their order; for tables, plots and reports."""
    return [
        Step(
            run_key=one.run_key,
            ended_at=one.ended_at or 0.0,
            outcome=one.outcome or "",
            reason=one.reason or "",
            **_moved(one, one.outcome or ""),
            version=one.result.get(LOG, {}).get("version"),
        )
        for one in history
        if one.outcome is not None
    ]


def show(
    runs: RetrainRuns, store: Retrainings, held: Retraining, outcome: str, metric: str
) -> None:
    """Add a retraining that is about to end to the curves of the parent run."""
    moved = _moved(held, outcome)
    number = sum(one.id < held.id for one in store.history(held.study))
    low, high = moved["lr_range"]
    values = {"lr": moved["lr"], "lr_low": low, "lr_high": high}
    if moved["champion"] is not None and math.isfinite(moved["champion"]):
        values[f"champion_{metric}"] = moved["champion"]
    runs.show_drift(values, number, held.created_at)


def interval_as_json(interval: Interval | None) -> dict[str, Any] | None:
    """Give an interval as the ledger keeps it; an end that is not there is None."""
    if interval is None:
        return None
    ends = {"low": interval.low, "high": interval.high}
    found = {key: end if math.isfinite(end) else None for key, end in ends.items()}
    return {"mean": interval.mean, **found, "level": interval.level, "pairs": interval.n}


def _moved(held: Retraining, outcome: str) -> dict[str, Any]:
    origin: Mapping[str, Any] = held.result[TRAIN]["origin"]
    low, high = origin["lr_range"]
    champion = None
    if outcome != FAILED:
        values = held.result[EVALUATE]["values"]
        champion = values["challenger" if outcome == PROMOTED else "champion"]
    return {"lr": float(origin["params"]["lr"]), "lr_range": (low, high), "champion": champion}
