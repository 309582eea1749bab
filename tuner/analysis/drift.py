"""Drift: how rate, range and metric change from one retraining of a study to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuner.ledger import Retraining
from tuner.ledger.retrainings import EVALUATE, FAILED, LOG, PROMOTED, TRAIN


@dataclass(frozen=True, kw_only=True)
class RetrainingStep:
    """One ended retraining of a study."""

    run_key: str
    ended_at: float  # seconds since 1970
    outcome: str
    reason: str
    lr: float  # of the challenger
    lr_range: tuple[float, float]  # the searched range
    champion: float | None  # the gate's metric of the champion after it
    version: int | None  # of the challenger

    def as_json(self) -> dict[str, Any]:
        """Return the object that `tuner retrain --history --json` prints."""
        return vars(self) | {"lr_range": list(self.lr_range)}


def steps(history: Sequence[Retraining]) -> list[RetrainingStep]:
    """Return the retrainings that have ended, in the order of the history."""
    return [
        RetrainingStep(
            run_key=one.run_key,
            ended_at=one.ended_at or 0.0,
            outcome=one.outcome or "",
            reason=one.reason or "",
            **values_after(one, one.outcome or ""),
            version=one.result.get(LOG, {}).get("version"),
        )
        for one in history
        if one.outcome is not None
    ]


def values_after(held: Retraining, outcome: str) -> dict[str, Any]:
    """Return rate, range and the champion's metric after a retraining with that outcome."""
    origin: Mapping[str, Any] = held.result[TRAIN]["origin"]
    low, high = origin["lr_range"]
    champion = None
    if outcome != FAILED:
        values = held.result[EVALUATE]["values"]
        champion = values["challenger" if outcome == PROMOTED else "champion"]
    return {"lr": float(origin["params"]["lr"]), "lr_range": (low, high), "champion": champion}
