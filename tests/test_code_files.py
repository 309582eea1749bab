"""The files of a study's code: which they are, and what a worker with others says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.test_programs import spec_of
from tuner.core.errors import WorkloadError
from tuner.ledger.versions import refuse_other_workload
from tuner.training import code_files

FILES = {
    "job/__init__.py": "",
    "job/train.py": "import torch\nfrom . import utils\nfrom .models.net import Net\n"
    "def train(trial):\n    import job.late\n",
    "job/utils.py": "from job import late, missing\nraise SystemExit('it was imported')\n",
    "job/late.py": "this is no Python\n",
    "job/models/__init__.py": "from .. import train\n",
    "job/models/net.py": "class Net: ...\n",
    "job/unused.py": "",
    "other.py": "",
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, FILES)
    return tmp_path


def digests() -> dict[str, str]:
    spec = spec_of([], workload={"command": None, "train": "job.train:train"})
    return code_files.digests(spec.workload, ["job."])


def test_they_are_the_module_and_what_it_imports_from_its_package(here):
    assert [*digests()] == [
        name for name in sorted(FILES) if name not in {"job/unused.py", "other.py"}
    ]
    assert not [name for name in sys.modules if name.partition(".")[0] == "job"]


def test_a_worker_with_other_files_names_them(here):
    submitted = {"code": "1", "data": "2", "files": digests()}
    refuse_other_workload("s", "job.train:train", submitted, submitted)
    (here / "job" / "utils.py").unlink()
    (here / "job" / "models" / "net.py").write_text("from job import unused")
    with pytest.raises(WorkloadError) as refused:
        refuse_other_workload("s", "job.train:train", submitted, submitted | {"files": digests()})
    assert (
        "the code of job.train:train is not what study 's' was submitted with "
        "(differs: job/models/net.py; missing: job/utils.py; new: job/unused.py); restore it"
    ) in str(refused.value)


def test_studies_of_earlier_versions_have_no_files(here):
    earlier = {"code": "1", "data": "2"}
    refuse_other_workload("s", "job.train:train", earlier, earlier | {"files": digests()})


def test_those_of_a_command_are_the_files_that_it_names(here):
    spec = spec_of(["job/train.py", "--lr", "{lr}", "other.py"])
    assert [*code_files.digests(spec.workload, ["command:python"])] == ["job/train.py", "other.py"]


def test_an_example_does_not_depend_on_the_version_of_this_package():
    spec = spec_of([], workload={"command": None, "factory": "tuner.examples.wine:train"})
    names = code_files.digests(spec.workload, ["tuner.examples."])
    assert names
    assert all(name.startswith("tuner/examples/") for name in names)
