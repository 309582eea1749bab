"""The working folder runs no code of its own, beyond the workloads that are allowed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment, prepare, until

from tuner.core import environment as own_environment
from tuner.operations import ui

NAMES = ("optuna", "mlflow", "torch", "pandas", "uvicorn", "click", "json", "apprise", "tensorflow")
WORKLOAD = """
from tests import workloads
from tuner.training.workloads import Workload


def noisy(**arguments: object) -> Workload:
    return workloads.noisy(**arguments)
"""


@pytest.fixture
def trapped(tmp_path) -> Path:
    """A folder with a study, and modules named as libraries that leave a mark when imported."""
    prepare(tmp_path, trials="2", factory='"mine.noise:noisy"')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "noise.py").write_text(WORKLOAD)
    for name in NAMES:
        mark = tmp_path / f"ran-{name}"
        (tmp_path / f"{name}.py").write_text(
            f"open({str(mark)!r}, 'w').close()\nraise SystemExit\n"
        )
    return tmp_path


def marks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("ran-*"))


def start(folder: Path, *arguments: str, **popen) -> subprocess.Popen[str]:
    own = environment(folder, {"TUNER_ALLOW": "mine. tests."})
    command = [sys.executable, "-m", "tuner", *arguments]
    return subprocess.Popen(command, cwd=folder, env=own, text=True, **popen)


@pytest.mark.slow
@pytest.mark.thorough
def test_a_run_and_its_recorder_import_no_library_from_the_folder(trapped):
    """The workload is imported from there, after which a library would be too."""
    done = start(trapped, "run", "study.toml", "--no-report", stderr=subprocess.PIPE)
    _, said = done.communicate()
    assert marks(trapped) == [], said
    assert done.returncode == 0, said


@pytest.mark.slow
@pytest.mark.thorough
def test_workers_of_a_run_import_no_library_from_the_folder(trapped):
    done = start(
        trapped, "run", "study.toml", "--no-report", "--workers", "2", stderr=subprocess.PIPE
    )
    _, said = done.communicate()
    assert marks(trapped) == [], said
    assert done.returncode == 0, said


@pytest.mark.slow
@pytest.mark.thorough
def test_mlflows_server_imports_no_library_from_the_folder(trapped):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with start(trapped, "ui", "--port", str(port)) as server:
        try:
            until(lambda: ui._answers(port) or server.poll() is not None, "the server", 200)
        finally:
            server.send_signal(signal.SIGTERM)
    assert marks(trapped) == []
    assert server.returncode == 0
    assert Path(ui.LIBRARIES, "mlflow").is_dir()


SPAWN = """
import multiprocessing
from tuner.core.importing import allow_from_current_folder
if __name__ == "__main__":
    allow_from_current_folder(["mine."])
    from mine import spawned
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(spawned.answer))
    try:
        import tensorflow
    except ModuleNotFoundError:
        print("not found")
"""


@pytest.mark.slow
def test_spawned_children_find_the_workload_and_nobody_a_library_that_is_not_installed(trapped):
    (trapped / "mine" / "spawned.py").write_text("import torch\ndef answer():\n    return 42\n")
    (trapped / "main.py").write_text(SPAWN)
    done = subprocess.run(
        [sys.executable, "-P", "main.py"],
        cwd=trapped, env=environment(trapped), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "42\nnot found\n", done.stderr
    assert marks(trapped) == []


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository whose configuration runs a program wherever git would."""
    monkeypatch.chdir(tmp_path)
    for key in [key for key in os.environ if key.startswith("GIT_")]:
        monkeypatch.delenv(key)
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    (tmp_path / ".gitattributes").write_text("* filter=evil diff=evil\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    trap = tmp_path / "trap.sh"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran-$1\ncat\n")
    trap.chmod(0o755)
    (tmp_path / ".git" / "hooks").mkdir(exist_ok=True)
    for hook in ("post-index-change", "fsmonitor-watchman"):
        (tmp_path / ".git" / "hooks" / hook).symlink_to(trap)
    for key in ("core.fsmonitor", "diff.external", "diff.evil.textconv", "filter.evil.clean",
                "filter.evil.smudge", "filter.evil.process", "core.sshCommand", "core.pager",
                "core.askPass", "gpg.program", "alias.status", "core.editor"):  # fmt: skip
        git(tmp_path, "config", key, f"{trap} {key}")
    return tmp_path


def test_looking_up_the_commit_runs_nothing(repository):
    (repository / "code.py").write_text("2\n")  # as long as before: git must read it
    found = own_environment.describe("cpu")
    assert marks(repository) == []
    assert found["git_dirty"] is True
    assert len(found["git_commit"]) == 40


def test_a_clean_repository_is_clean(repository):
    os.utime(repository / "code.py", (1e9, 1e9))
    (repository / "inner").mkdir()
    os.chdir(repository / "inner")
    assert own_environment.describe("cpu")["git_dirty"] is False
    assert marks(repository) == []


def test_without_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = own_environment.describe("cpu")
    assert (found["git_commit"], found["git_dirty"]) == (None, None)
