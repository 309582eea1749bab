"""A GPU of its own for each worker of a machine: `tuner worker --device auto`.

A GPU is taken by locking a file, which the operating system unlocks when the process ends, however
it ends. GPUs are told apart by their UUIDs, since their numbers differ between containers and jobs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import filelock

from tuner.core.errors import UsageError
from tuner.core.outputs import private_folder

VISIBLE = "CUDA_VISIBLE_DEVICES"
_taken: list[filelock.BaseFileLock] = []  # until this process ends


def take(workers_per_gpu: int = 1) -> str | None:
    """Take a visible GPU for this process and hide the others; return its name.

    It must be called before PyTorch uses a GPU. Return None on a machine without any. Raise
    `UsageError` if other workers have all of them.
    """
    gpus = visible(os.environ)
    folder = Path(tempfile.gettempdir()) / f"tuner-gpus-{os.getuid()}"
    private_folder(folder)
    for place in range(workers_per_gpu):  # one on each GPU before a second one on any
        for gpu in gpus:
            lock = filelock.FileLock(folder / f"{gpu.replace('/', '-')}.{place}.lock")
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                continue
            _taken.append(lock)
            os.environ[VISIBLE] = gpu
            return gpu
    if gpus:
        raise UsageError(
            f"other workers have the {len(gpus)} visible GPUs of this machine, {workers_per_gpu} "
            "each; start fewer workers here, or raise --workers-per-gpu"
        )
    return None


def visible(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs that this process may use, by their UUIDs where the driver says them.

    `CUDA_VISIBLE_DEVICES` is respected; numbers in it are those of `nvidia-smi`.
    """
    present = _present()
    given = environment.get(VISIBLE)
    if given is None:
        return present
    return [_named(one.strip(), present) for one in _up_to_invalid(given.split(","))]


def _up_to_invalid(entries: Sequence[str]) -> Sequence[str]:
    """Return the entries before the first that CUDA does not accept, as CUDA does."""
    bad = next((n for n, one in enumerate(entries) if one.strip() in ("", "-1")), len(entries))
    return entries[:bad]


def _named(entry: str, present: Sequence[str]) -> str:
    """Return the UUID of an entry, which may be a number or the beginning of a UUID."""
    if entry.isdecimal():
        return present[int(entry)] if int(entry) < len(present) else entry
    return next((one for one in present if one.startswith(entry)), entry)


def _present() -> list[str]:
    """Return the UUIDs of the machine's GPUs in the order of their numbers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=uuid", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
    return [line.strip() for line in done.stdout.splitlines() if line.startswith("GPU-")]
