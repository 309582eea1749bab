"""Addresses of the pages of MLflow's UI about a study."""

from __future__ import annotations

from collections.abc import Sequence

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


def page(
    ledger: Reader, studies: Sequence[StudyRecord], places: Addresses, ui: str, what: str
) -> str | None:
    """Return the address of one of a study's pages, or of the comparison of several studies.

    It is None for no study, and for one that is not published yet. Raise `UnavailableError` if
    MLflow cannot be reached.
    """
    if len(studies) < 2:
        return pages(ledger, studies[0], places, ui).get(what) if studies else None
    found = [study_links(ledger.engine, places, one, ui) for one in studies]
    published = [one for one in found if one is not None]
    if not published:
        return None
    return published[0].compare_studies(
        published[1:], minimize=studies[0].spec.study.direction == "minimize"
    )
