"""A retune: a study of its own around the best parameters, on the fresh data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tuner.analysis import ranking
from tuner.config import GP, Auto, ParameterValue, Range, StudySpec
from tuner.core.outcome import COMPLETED
from tuner.ledger import Ledger, StudyRecord

WARM = 3
"""How many of the best known combinations are tried first."""


def spec_of(
    spec: StudySpec,
    name: str,
    known: Sequence[Mapping[str, ParameterValue]],
    suggested: tuple[float, float] | None = None,
) -> StudySpec:
    """Return the study that searches around the first `known` combination, on `spec`'s data.

    The sampler learns from the trials of the study and of its earlier retunes, where it can.
    `suggested` are rates that a probe of the new data found stable and quick, if there was one.
    """
    tables = spec.model_dump(mode="json")
    tables["study"] |= {"name": name, "description": f"Around the champion of {spec.study.name}."}
    if isinstance(spec.space.lr, Range):
        low, high = _around(float(known[0]["lr"]), spec, suggested)
        tables["space"]["lr"] |= {"low": low, "high": high}
    tables["search"] |= {"first": []}
    if isinstance(spec.search.sampler, Auto | GP):  # which weighs what it learns by how true it is
        known_studies = [*spec.search.learn_from, spec.study.name, f"{spec.study.name} retune *"]
        tables["search"] |= {"learn_from": known_studies}
    tables["notify"] = {}  # the retraining notifies
    tables["budget"] = {"trials": spec.retrain.trials, "weight": spec.budget.weight}
    if spec.retrain.limits.retune_minutes is not None:
        tables["budget"] |= {"decide": 0, "wall_seconds": 60 * spec.retrain.limits.retune_minutes}
    made = StudySpec.model_validate_json(json.dumps(tables))
    different = [dict(one) for index, one in enumerate(known) if one not in known[:index]]
    first = [one for one in different if made.space.contains(one)][:WARM]
    tables["search"] |= {"first": first}
    return StudySpec.model_validate_json(json.dumps(tables))


def _around(
    lr: float, spec: StudySpec, suggested: tuple[float, float] | None
) -> tuple[float, float]:
    """Return the range of rates around the champion's and the probe's, in the study's range."""
    assert isinstance(spec.space.lr, Range)
    low, high = lr / spec.retrain.around, lr * spec.retrain.around
    if suggested is not None:
        low, high = min(low, suggested[0]), max(high, suggested[1])
    return max(low, spec.space.lr.low), min(high, spec.space.lr.high)


def best_known(ledger: Ledger, study: StudyRecord) -> list[Mapping[str, ParameterValue]]:
    """Return the parameters of a study's completed and feasible trials, best first."""
    ranked = ranking.ranked(study, ledger.trials(study.id))
    best = [one for one in ranked if one.state == COMPLETED and not one.infeasible]
    return [one.params for one in best if one.params is not None]
