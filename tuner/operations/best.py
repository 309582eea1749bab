"""The best trial of a study, and what was decided between the best ones."""

from __future__ import annotations

from typing import Any

from tuner.analysis import deciding
from tuner.analysis import front as fronts
from tuner.ledger import Reader, StudyRecord
from tuner.ledger.publications import Publications
from tuner.ledger.summaries import best_trial


def best(ledger: Reader, study: StudyRecord) -> dict[str, Any] | None:
    """Return number, value, params and run_id of the best completed trial, or None.

    Of several objectives that is the best trial in the first one.
    """
    found = best_trial(ledger, study)
    return None if found is None else found.as_json()


def front(ledger: Reader, study: StudyRecord) -> dict[str, Any]:
    """Return the trials on the front, as the field `front`; without one for a single objective."""
    if not study.spec.study.objectives:
        return {}
    found = fronts.front(study, ledger.completed(study.id))
    numbers = [one.number for one in found]
    runs = Publications(ledger.engine, "mlflow").external_ids(study.id, numbers)
    return {"front": fronts.as_json(study, found, runs)}


def decision(ledger: Reader, study: StudyRecord) -> dict[str, Any]:
    """Return what the study has decided, as the field `decision`.

    Without one if the study's budget reserves nothing for that.
    """
    if not study.deciding_trials:
        return {}
    found = deciding.decision(ledger, study)
    return {"decision": None if found is None else deciding.as_json(found)}
