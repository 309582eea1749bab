"""The identity of this process as a worker, and the environment that a run's tags record."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

DISTRIBUTION = "tuner-lr"
"""The name of this package on package indexes, where `tuner` is another project."""
PACKAGES = ("torch", "optuna", "mlflow", "numpy", "scikit-learn", "sqlalchemy")


def identity() -> str:
    """Return an identity of this process that no other process ever has."""
    return f"{_machine()}:{os.getpid()}:{_birth(os.getpid())}"


def is_gone(worker: str) -> bool:
    """Return whether a worker was a process of this machine that has ended.

    Return False for processes of other machines and containers, about which nothing is known.
    """
    match worker.rsplit(":", 2):
        case [machine, pid, birth] if machine == _machine() and pid.isdecimal():
            pass
        case _:  # a row may have any text
            return False
    try:
        dead = (
            psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
        )  # its parent has not waited for it
        return dead or _birth(int(pid)) != birth
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


def _birth(pid: int) -> str:
    """Return the start time of a process, which tells it from a later one with its number.

    Linux counts ticks since the machine started, which do not change when its clock is set.
    """
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        return stat.read_text().rpartition(")")[2].split()[19]
    return f"{psutil.Process(pid).create_time():.2f}"


def _machine() -> str:
    """Return the scope of process numbers: host, boot and process namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    started = boot.read_text().strip()[:8] if boot.exists() else ""
    return f"{platform.node()}/{started}/{namespace.readlink() if namespace.exists() else ''}"


def describe(device: str) -> dict[str, Any]:
    """Return what is needed to judge or to repeat the training of this process."""
    commit, dirty = _commit()
    return {
        "device": device,
        "machine": platform.machine(),
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": {"tuner": version(DISTRIBUTION)} | {name: version(name) for name in PACKAGES},
        "git_commit": commit,
        "git_dirty": dirty,
    }


def _commit() -> tuple[str | None, bool | None]:
    """Return the commit of the working directory, and whether files differ from it."""
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
