"""A notebook with a train function in one of its cells is executed by a real kernel."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from processes import assert_whole, environment, left, processes_in, rows, tuner, until

NOTEBOOK = Path(__file__).parent / "jobs" / "notebook" / "tune.ipynb"


@pytest.mark.slow
@pytest.mark.integrations
@pytest.mark.filterwarnings("ignore")  # jupyter_client's and its event loops' own
@pytest.mark.parametrize("workers", [1, 2])
def test_a_function_of_a_cell_is_tuned(tmp_path, monkeypatch, workers):
    import nbformat
    from nbclient import NotebookClient

    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first = notebook.cells[0]
    first.source = first.source.replace("WORKERS = 1", f"WORKERS = {workers}")
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=240, resources=resources).execute()
    *_, shown, printed = notebook.cells
    assert "Best: val_loss" in shown.outputs[0]["data"]["text/html"]
    assert printed.outputs[0]["text"].startswith("{'completed': ")
    assert "'hidden'" in printed.outputs[0]["text"]
    (module,) = (tmp_path / "studies").glob("notebook_*.py")
    assert "LIMIT = 300" in module.read_text()
    doctor = tuner(tmp_path, "doctor", "--json")
    assert (doctor.code, doctor.json["problems"]) == (0, [])


INTERRUPTING = """
import os, signal
from pathlib import Path

Path("kernel").write_text(str(os.getpid()))


def interrupted(number, step):
    \"\"\"Send the kernel's group the signal that a file asks for, in the middle of a trial.\"\"\"
    asked = Path("signal")
    if number >= 3 and step == 30 and asked.exists():
        wanted = int(asked.read_text())
        asked.unlink()
        kernel = int(Path("kernel").read_text())
        if wanted == signal.SIGKILL:
            os.kill(kernel, wanted)
            signal.pause()
        os.killpg(kernel, wanted)
"""


@pytest.mark.slow
@pytest.mark.integrations
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # jupyter_client's and its event loops' own
@pytest.mark.parametrize("workers", [1, 2])
def test_a_notebook_that_is_killed_and_interrupted_goes_on(tmp_path, monkeypatch, workers):
    """What a kernel's death and the button "interrupt" leave is finished by running it again."""
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    for name, value in environment(tmp_path, {"OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "signal").write_text(str(int(signal.SIGKILL)))
    with pytest.raises(DeadKernelError):
        execute(parts, workers)
    until(lambda: processes_in(parts) == [], "the ends of the kernel's workers")
    (parts / "signal").write_text(str(int(signal.SIGINT)))
    with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
        execute(parts, workers)
    until(lambda: processes_in(parts) == [], "the ends of the kernel and its workers")
    endings = "SELECT ending FROM tuner_attempts WHERE ending IN ('stale', 'interrupted')"
    assert {ending for (ending,) in rows(parts, endings)} == {"interrupted", "stale"}

    execute(parts, workers)
    expected = None
    if workers == 1:  # with two, what a trial's draw knows depends on which one ends first
        whole = tmp_path / "whole"
        whole.mkdir()
        execute(whole, workers)
        expected = left(whole, "notebook")
    assert_whole(parts, expected, "notebook")
    assert {trial["state"] for trial in left(parts, "notebook").ledger.values()} == {"completed"}


def execute(folder: Path, workers: int) -> None:
    """Run the notebook in a folder, with a function that may send its kernel a signal."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first, _, train, *_ = notebook.cells
    first.source = first.source.replace("WORKERS = 1", f"WORKERS = {workers}")
    notebook.cells.insert(1, nbformat.v4.new_code_cell(INTERRUPTING))
    reported = "trial.report(step, train_loss=loss.item())"
    assert reported in train.source
    train.source = train.source.replace(
        reported, f"{reported}\n        interrupted(trial.number, step)"
    )
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=240, resources=resources).execute()
