"""Who and where this process is: its identity as a worker, and what a run's tags say of it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("tuner", "torch", "optuna", "mlflow", "numpy", "scikit-learn", "sqlalchemy")


def identity() -> str:
    """Name this process so that no other one, before or after it, has the same name."""
    process = psutil.Process()
    return f"{_machine()}:{process.pid}:{process.create_time():.2f}"


def is_gone(worker: str) -> bool:
    """Tell whether a worker was a process of this machine that is no more.

    Of another machine's processes, or those in another container, nothing is known: False.
    """
    machine, pid, created = worker.rsplit(":", 2)
    if machine != _machine():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" != created
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    """Name the place where process numbers mean the same: host and process namespace."""
    namespace = Path("/proc/self/ns/pid")
    return f"{platform.node()}/{namespace.readlink() if namespace.exists() else ''}"


def describe(device: str) -> dict[str, Any]:
    """Say what a later reader needs to judge or repeat what is trained here."""
    commit, dirty = _commit()
    return {
        "device": device,
        "machine": platform.machine(),
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "git_commit": commit,
        "git_dirty": dirty,
    }


def _commit() -> tuple[str | None, bool | None]:
    """Give the commit of the working directory, and whether files differ from it."""
    git = shutil.which("git")
    if git is None:
        return None, None

    def ask(*arguments: str) -> str | None:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [git, *arguments], capture_output=True, text=True, check=False, timeout=10
        )
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return None, None
    return commit, bool(ask("status", "--porcelain", "--untracked-files=no"))
