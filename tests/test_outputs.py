"""Output that cannot be written: a sentence, an exit code, and nothing of the trials is lost."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import environment, prepare, reader, tuner
from test_report import fill

from tuner.core.errors import OutputError
from tuner.ledger import Ledger
from tuner.ledger.database import Addresses
from tuner.operations import export, report
from tuner.report import comparison

Write = Callable[[Ledger, Addresses, Path], object]
WRITERS: dict[str, Write] = {
    "report": lambda ledger, places, to: report.report(
        ledger, [ledger.study("small")], places, to=to, tracked=False
    ),
    "compare": lambda ledger, _, to: comparison.write(
        comparison.choose(ledger, ["small:all"]), "train_loss", "step", to
    ),
    "csv": lambda ledger, _, to: export.export(ledger, ledger.study("small"), to),
    "parquet": lambda ledger, _, to: export.export(ledger, ledger.study("small"), to, "parquet"),
}


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process grow: what a full disk does, as an OSError with another code."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_said_and_what_was_there_stays(
    ledger: Ledger, places: Addresses, tmp_path: Path, name: str
) -> None:
    fill(ledger)
    to = tmp_path / "out"
    WRITERS[name](ledger, places, to)
    before = {file.name: file.read_bytes() for file in to.iterdir()}
    with full_disk(), pytest.raises(OutputError, match=r"cannot write into .* safe in the ledger"):
        WRITERS[name](ledger, places, to)
    assert {file.name: file.read_bytes() for file in to.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_where_a_folder_should_be(
    ledger: Ledger, places: Addresses, tmp_path: Path, name: str
) -> None:
    fill(ledger)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Not a directory"):
        WRITERS[name](ledger, places, tmp_path / "file" / "out")


@pytest.mark.slow
def test_a_run_whose_report_cannot_be_written_keeps_its_trials(tmp_path: Path) -> None:
    prepare(tmp_path, trials="1", lr="{ low = 1e-3, high = 1e-2 }")
    (tmp_path / "reports").touch()
    done = tuner(tmp_path, "run", "study.toml", "--json")
    assert done.code == OutputError.exit_code
    assert done.json["report"] is None
    assert "Error: cannot write into reports" in done.err
    assert "The trials are safe in the ledger; `tuner report small` writes the report" in done.err
    assert "Traceback" not in done.err
    ledger = reader(tmp_path)
    assert ledger.counts(ledger.study("small").id)["completed"] == 1
    ledger.engine.dispose()


@pytest.mark.slow
def test_standard_output_that_takes_nothing(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tuner", "schema"],
            cwd=tmp_path,
            env=environment(tmp_path),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == OutputError.exit_code
    assert done.stderr.startswith("Error: cannot write the output: No space left on device")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
