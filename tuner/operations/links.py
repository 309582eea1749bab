"""Addresses of the pages of MLflow's UI about a study."""

from __future__ import annotations

from tuner.core.outcome import DIVERGED
from tuner.ledger import Reader, StudyRecord
from tuner.ledger.database import Addresses
from tuner.ledger.publications import Publications
from tuner.tracking.mlflow.links import study_links
from tuner.tracking.mlflow.study_run import FEW


def pages(
    ledger: Reader, study: StudyRecord, places: Addresses, ui: str | None = None
) -> dict[str, str]:
    """Return the addresses of a study's pages by what they show; empty until it is published.

    Raise `UnavailableError` if MLflow cannot be reached.
    """
    links = study_links(ledger.engine, places, study, ui)
    if links is None:
        return {}
    runs = Publications(ledger.engine, "mlflow").external_ids(study.id)
    best = [runs[number] for number in ledger.ranking(study, FEW) if number in runs]
    found = {"summary": links.study(), "loss curves": links.view("tuner-curves")}
    found["table of trials"] = links.view("tuner-table")
    if best:
        found["best trial"] = links.run(best[0])
    if len(best) > 1:
        found[f"best {len(best)}"] = links.view("tuner-best")
        found[f"best {len(best)} compared"] = links.compare(best)
    if ledger.counts(study.id)[DIVERGED]:
        found["diverged trials"] = links.view("tuner-diverged")
    return found
