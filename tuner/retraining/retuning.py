"""A retune: a study of its own around the best parameters, on the fresh data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tuner import results, running, submission
from tuner.ledger import Ledger, StudyRecord, TrialRecord
from tuner.outcome import COMPLETED
from tuner.spec import ParameterValue, Range, StudySpec
from tuner.storage import Addresses

WARM = 3
"""How many of the best combinations known are tried first."""


def spec_of(
    spec: StudySpec,
    name: str,
    known: Sequence[Mapping[str, ParameterValue]],
    suggested: tuple[float, float] | None = None,
) -> StudySpec:
    """Give the study that searches around the first of the `known` combinations, on `spec`'s data.

    `suggested` are rates that a probe of the new data found stable and quick, if there was one.
    """
    tables = spec.model_dump(mode="json")
    tables["study"] |= {"name": name, "description": f"Around the champion of {spec.study.name}."}
    if isinstance(spec.space.lr, Range):
        low, high = _around(float(known[0]["lr"]), spec, suggested)
        tables["space"]["lr"] |= {"low": low, "high": high}
    tables["search"] |= {"first": []}
    tables["budget"] = {"trials": spec.retrain.trials, "weight": spec.budget.weight}
    made = StudySpec.model_validate_json(json.dumps(tables))
    different = [dict(one) for index, one in enumerate(known) if one not in known[:index]]
    first = [one for one in different if made.space.contains(one)][:WARM]
    tables["search"] |= {"first": first}
    return StudySpec.model_validate_json(json.dumps(tables))


def _around(
    lr: float, spec: StudySpec, suggested: tuple[float, float] | None
) -> tuple[float, float]:
    """Give the range of rates: around the champion's, and what a probe suggests, in the study's."""
    assert isinstance(spec.space.lr, Range)
    low, high = lr / spec.retrain.around, lr * spec.retrain.around
    if suggested is not None:
        low, high = min(low, suggested[0]), max(high, suggested[1])
    return max(low, spec.space.lr.low), min(high, spec.space.lr.high)


def search(
    ledger: Ledger, places: Addresses, spec: StudySpec, prefixes: Sequence[str]
) -> tuple[StudyRecord, TrialRecord | None]:
    """Train the study to its end, or go on with it; give it and its best trial.

    Raises `KeyboardInterrupt` when this process is told to stop meanwhile.
    """
    study, _ = submission.submit(ledger, spec, submission.prepare(spec, prefixes))
    todo = running.Work(names=(study.name,), prefixes=tuple(prefixes), until_idle=True)
    ended = running.train(ledger, places, todo, recorder=True)
    if ended.interrupted:
        raise KeyboardInterrupt
    return ledger.study(study.name), ledger.best(study)


def best_known(ledger: Ledger, study: StudyRecord) -> list[Mapping[str, ParameterValue]]:
    """Give the parameters of a study's completed trials, the best first."""
    ranked = results.ranked(study, ledger.trials(study.id))
    return [one.params for one in ranked if one.state == COMPLETED and one.params is not None]
