"""The identity of this process as a worker, and the environment that a run's tags record."""

from __future__ import annotations

import functools
import getpass
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.core.text import NAME_LIMIT

DISTRIBUTION = "tuner-lr"
"""The name of this package on package indexes, where `tuner` is another project."""
PACKAGES = ("torch", "optuna", "mlflow", "numpy", "scikit-learn", "sqlalchemy")


def identity(pid: int | None = None) -> str:
    """Return an identity of this process, or of another one of this machine, for good.

    No other process ever has it. Raise `psutil.NoSuchProcess` or `FileNotFoundError` if the process
    has ended.
    """
    pid = os.getpid() if pid is None else pid
    return f"{_machine()}:{pid}:{_birth(pid)}"


@dataclass(frozen=True, kw_only=True)
class Person:
    """Who runs this process, as its operating system knows them."""

    os_user: str
    host: str


@functools.cache
def person() -> Person:
    """Return the user of this process: the account, not what `USER` says where accounts exist."""
    try:
        import pwd  # not on Windows

        user = pwd.getpwuid(os.getuid()).pw_name
    except ImportError:
        user = getpass.getuser()
    except KeyError:  # such as a container that runs as a number
        user = f"uid {os.getuid()}"
    return Person(os_user=user[:NAME_LIMIT], host=platform.node()[:NAME_LIMIT])


def is_here(worker: str) -> bool:
    """Return whether a worker is, or was, a process of this machine since it started."""
    return worker.rpartition(":")[0].rpartition(":")[0] == _machine()


def is_gone(worker: object) -> bool:
    """Return whether a worker was a process of this machine that has ended.

    Return False for processes of other machines and containers, about which nothing is known.
    """
    match str(worker).rsplit(":", 2):
        case [machine, pid, birth] if machine == _machine() and re.fullmatch("[0-9]{1,10}", pid):
            pass
        case _:  # a row may have any content
            return False
    import psutil

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
    import psutil

    return f"{psutil.Process(pid).create_time():.2f}"


def _machine() -> str:
    """Return the scope of process numbers: host, boot and process namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    started = boot.read_text().strip()[:8] if boot.exists() else ""
    return f"{platform.node()}/{started}/{namespace.readlink() if namespace.exists() else ''}"


def describe(device: str) -> dict[str, Any]:
    """Return what is needed to judge or to repeat the training of this process."""
    from importlib.metadata import version

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


@functools.cache
def processor() -> str:
    """Return the model of this machine's processor, where the system says it."""
    info = Path("/proc/cpuinfo")
    known = info.read_text() if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", known, re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    return name.strip()[:NAME_LIMIT]


def peak_memory() -> int | None:
    """Return the most bytes of memory that this process has had at a time, if that is known."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _commit() -> tuple[str | None, bool | None]:
    """Return the commit of the working directory, and whether files differ from it.

    A repository's configuration can name programs that git runs: monitors, hooks, filters, remote
    helpers. Looking up the commit runs none. The files are compared in a temporary git directory,
    which has that repository's objects and index, and no configuration.
    """
    asked = _git("rev-parse", "HEAD", "--show-toplevel", "--show-object-format")
    places = _git("rev-parse", "--git-path", "objects", "--git-path", "index")
    if asked is None or places is None or asked.count("\n") != 2 or places.count("\n") != 1:
        return None, None
    commit, top, kind = asked.split("\n")
    objects, index = (str(Path(place).resolve()) for place in places.split("\n"))
    with tempfile.TemporaryDirectory(prefix="tuner-git-") as folder:
        bare = Path(folder)
        (bare / "refs").mkdir()
        (bare / "HEAD").write_text(f"{commit}\n")
        version = "0" if kind == "sha1" else "1\n[extensions]\nobjectformat = " + kind
        (bare / "config").write_text(f"[core]\nbare = false\nrepositoryformatversion = {version}\n")
        own = {"GIT_DIR": folder, "GIT_WORK_TREE": top, "GIT_INDEX_FILE": index}
        own |= {"GIT_OBJECT_DIRECTORY": objects, "GIT_CONFIG_NOSYSTEM": "1"}
        own |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_OPTIONAL_LOCKS": "0"}
        compare = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
        differs = _git("-c", "core.fileMode=false", *compare, environment=own)
    return commit, None if differs is None else bool(differs)


def _git(*arguments: str, environment: Mapping[str, str] | None = None) -> str | None:
    """Return the output of git, or None if it fails or is not installed."""
    git = shutil.which("git")
    if git is None:
        return None
    inherited = {k: v for k, v in os.environ.items() if not environment or k[:4] != "GIT_"}
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [git, *arguments],
            env=inherited | dict(environment or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
