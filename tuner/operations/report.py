"""Reports: read findings from the ledger, write the page to a folder, upload it to MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.core.errors import UnavailableError
from tuner.ledger import Reader, StudyRecord
from tuner.ledger.database import Addresses
from tuner.report import page
from tuner.report.findings import gather
from tuner.report.page import Written


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A report that was written."""

    written: Written
    in_mlflow: bool  # uploaded as an artifact of the study's parent run
    problem: str | None = None  # why the upload failed


def report(
    ledger: Reader,
    studies: Sequence[StudyRecord],
    places: Addresses,
    *,
    to: Path | None = None,
    ui: str | None = None,
    tracked: bool = True,
) -> Reported:
    """Write the report of one study, or of several side by side; by default under `reports`.

    With `tracked`, the report of one study links to its MLflow runs and is uploaded to the parent
    run. If MLflow is unreachable or refuses the upload, the files are written all the same. Raise
    `OutputError` if they cannot be written.
    """
    folder = to or Path(page.FOLDER) / page.folder_name([one.title for one in studies])
    if len(studies) > 1:
        found = [gather(ledger, one) for one in studies]
        return Reported(written=page.write_studies(found, folder), in_mlflow=False)
    (study,) = studies
    if not tracked:
        return Reported(written=page.write_study(gather(ledger, study), folder), in_mlflow=False)
    from tuner.tracking.mlflow import links as pages  # noqa: PLC0415 - it imports mlflow
    from tuner.tracking.mlflow.study_run import upload_report  # noqa: PLC0415

    links, problem = {}, None
    try:
        links = pages.run_addresses(ledger.engine, places, study, ui)
    except UnavailableError as error:
        problem = str(error)
    written = page.write_study(gather(ledger, study, links=links), folder)
    if problem is not None:
        return Reported(written=written, in_mlflow=False, problem=problem)
    try:
        there = upload_report(ledger.engine, places, study, written.files)
    except UnavailableError as error:
        return Reported(written=written, in_mlflow=False, problem=str(error))
    return Reported(written=written, in_mlflow=there)
