"""List the studies that another study could learn from, and how well each predicts its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from tuner.ledger import Reader, StudyRecord
from tuner.search import gp, transfer
from tuner.search.encoding import Encoding, encoding_of
from tuner.search.space import for_sampler
from tuner.search.transfer import Source


@dataclass(frozen=True, kw_only=True)
class Similar:
    """A study that predicts another one's trials, or could."""

    source: Source
    compared: int  # trials of the other study that its predictions are compared with
    correlation: float | None  # the rank correlation with their values; None: fewer than three
    weight: float  # what a Gaussian process gives it beside the others; 0: no use

    @property
    def sentence(self) -> str:
        """Why it would help or not."""
        shared = f"{self.source.trials} trials, {', '.join(self.source.parameters)}"
        if self.correlation is None:
            return f"{shared}; too few trials to compare with"
        predicts = f"rank correlation {self.correlation:+.2f} over {self.compared} trials"
        return f"{shared}; {predicts}, weight {self.weight:.2f}"

    def as_json(self) -> dict[str, Any]:
        """Return what `tuner similar --json` prints."""
        return {
            "study": self.source.name,
            "trials": self.source.trials,
            "parameters": list(self.source.parameters),
            "compared": self.compared,
            "correlation": self.correlation,
            "weight": self.weight,
        }


def similar(ledger: Reader, study: StudyRecord) -> list[Similar]:
    """Return the studies that share parameters with a study, the most useful first."""
    space = encoding_of(study.spec.space)
    now = replace(study, created_at=ledger.now())
    sources = transfer.earlier(now, study.spec.space, ledger, ["*"])
    params, losses = transfer.valued(ledger, [study], now.created_at)
    rows = _rows(space, [for_sampler(study.spec.space, one) for one in params])
    if len(losses) < 3 or not sources:
        found = [
            Similar(source=one, compared=len(losses), correlation=None, weight=0.0)
            for one in sources
        ]
        return sorted(found, key=lambda one: -one.source.trials)
    model = gp.Model(space, rows, np.array(losses), lambda at: transfer.columns(sources, at))
    found = [
        Similar(
            source=one,
            compared=len(losses),
            correlation=_correlation(one.predict(rows), losses),
            weight=float(weight),
        )
        for one, weight in zip(sources, model.weights[1:], strict=True)
    ]
    return sorted(found, key=lambda one: (-one.weight, -(one.correlation or 0.0)))


def _rows(space: Encoding, params: Sequence[Mapping[str, Any]]) -> gp.Vector:
    return np.array([space.encode(dict(one)) for one in params]).reshape(len(params), len(space))


def _correlation(predicted: gp.Vector, losses: Sequence[float]) -> float:
    """Return the rank correlation; 0 if either is constant."""
    if np.ptp(predicted) == 0 or np.ptp(losses) == 0:
        return 0.0
    return float(spearmanr(predicted, losses).statistic)
