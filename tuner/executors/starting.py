"""What executors share: a worker's command and environment, the names of jobs, and logs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuner.config.cluster import WorkerTable
from tuner.core import importing
from tuner.core.errors import UsageError

END_BYTES = 65_536
"""How much of a log is shown."""


def job_name(key: str) -> str:
    """Return the name of a launch's job on an engine."""
    return f"tuner-{key}"


def command(
    key: str, resources: WorkerTable, arguments: Sequence[str], *, python: str | None = None
) -> list[str]:
    """Return the command of the workers of a launch.

    `python` is the interpreter unless the settings name one; by default this process's.
    """
    module = importing.command("tuner", "worker", "--launch", key, *arguments)
    device = [] if resources.device is None else ["--device", resources.device]
    if resources.workers_per_gpu > 1:
        device += ["--workers-per-gpu", str(resources.workers_per_gpu)]
    grace = ["--grace", str(resources.grace_seconds)]
    return [resources.python or python or module[0], *module[1:], *device, *grace]


def index_of(environment: Mapping[str, str]) -> int | None:
    """Return the index of this worker in its launch, if its engine says it in a variable."""
    for name in ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"):
        if environment.get(name, "").isdecimal():
            return int(environment[name])
    return None


def is_worker_of(key: str, words: Sequence[str]) -> bool:
    """Return whether a command line is that of a worker of a launch."""
    return "--launch" in words and words[words.index("--launch") + 1 :][:1] == [key]


def environment(resources: WorkerTable) -> dict[str, str]:
    """Return the variables of a worker: those of this process, and those of its settings."""
    # the first worker of a machine would take the port from the others
    inherited = {k: v for k, v in os.environ.items() if k != "TUNER_METRICS_PORT"}
    return inherited | resources.environment


def end_of(file: Path) -> str:
    """Return the end of a log, from the beginning of a line. Raise `UsageError`."""
    try:
        with file.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - END_BYTES))
            content = log.read()
    except OSError as error:
        raise UsageError(
            f"there is no log {file} here: {error.strerror or error}; a worker that waits has "
            "none, and a folder that machines do not share is on the machine of the worker"
        ) from error
    if size > END_BYTES:
        content = content.partition(b"\n")[2]
    return content.decode(errors="replace")
