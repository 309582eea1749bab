"""Reports of studies: written into a folder and uploaded to MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.core.errors import UnavailableError
from tuner.ledger import Reader, StudyRecord, ranges
from tuner.ledger.database import Addresses
from tuner.report import writing
from tuner.report.charts.picture import Mark
from tuner.report.findings import gather
from tuner.report.writing import Written


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A report that was written."""

    written: Written
    in_mlflow: bool  # whether it was uploaded to the parent run
    problem: str | None = None  # why it could not be uploaded


def report(
    ledger: Reader,
    studies: Sequence[StudyRecord],
    places: Addresses,
    *,
    to: Path | None = None,
    ui: str | None = None,
    tracked: bool = True,
) -> Reported:
    """Write the report of one study or of several side by side, by default under `reports`.

    With `tracked`, the report links to runs, and the report of one study is uploaded to its parent
    run. If MLflow cannot be reached or refuses this login, the files are written nevertheless.
    Raise `OutputError` if they cannot be written.
    """
    folder = to or Path(writing.FOLDER) / writing.folder_name([one.title for one in studies])
    if len(studies) > 1:
        found = [gather(ledger, one) for one in studies]
        return Reported(written=writing.of_many(found, folder), in_mlflow=False)
    (study,) = studies
    marks = stable_rates(ledger, study)
    if not tracked:
        return Reported(
            written=writing.of_study(gather(ledger, study, marks=marks), folder), in_mlflow=False
        )
    from tuner.tracking.mlflow import artifacts  # noqa: PLC0415 - it imports mlflow

    links, problem = {}, None
    try:
        links = artifacts.run_links(ledger.engine, places, study, ui)
    except UnavailableError as error:
        problem = str(error)
    written = writing.of_study(gather(ledger, study, marks=marks, links=links), folder)
    if problem is not None:
        return Reported(written=written, in_mlflow=False, problem=problem)
    try:
        there = artifacts.put_report(ledger.engine, places, study, written.files)
    except UnavailableError as error:
        return Reported(written=written, in_mlflow=False, problem=str(error))
    return Reported(written=written, in_mlflow=there)


def stable_rates(ledger: Reader, study: StudyRecord) -> list[Mark]:
    """Return a mark for each optimizer at the largest stable rate that the probe found."""
    found = ranges.result(ledger, study) or {}
    return [
        Mark(label=f"probe: {name} breaks here", low=one["stable"][0], high=one["stable"][1])
        for name, one in found.get("optimizers", {}).items()
        if None not in one["stable"]
    ]
