"""A notebook with a train function in one of its cells is executed by a real kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import environment, tuner

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
