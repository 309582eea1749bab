"""Programs that others wrote: their environment, their limits, and their place in job scripts."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tuner.core.errors import UsageError

KEPT = frozenset({
    "HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER",
    "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV",
})  # fmt: skip
KEPT_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "OMP_", "MKL_", "CONDA_")
"""Variables that a program needs to run on this machine; none is a secret of ours."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int  # negative: the signal that ended it
    output: str  # the end of both streams
    timed_out: bool


def clean_environment(
    environment: Mapping[str, str] = os.environ, *, keep: Sequence[str] = ()
) -> dict[str, str]:
    """Return the variables that a program of others needs, and those named in `keep`.

    Addresses and passwords of the database, of MLflow and of notifications are left out, and so is
    everything else. `keep` has names, or prefixes that end in `_`.
    """
    names = KEPT | {name for name in keep if not name.endswith("_")}
    prefixes = (*KEPT_PREFIXES, *(name for name in keep if name.endswith("_")))
    return {k: v for k, v in environment.items() if k in names or k.startswith(prefixes)}


def run_limited(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    seconds: float,
    output_bytes: int = 1 << 20,
    folder: Path | None = None,
) -> Ended:
    """Run a command in a process group of its own, without a shell and without input.

    Kill the whole group after `seconds`, and what it has left running when the command ends. Keep
    the last `output_bytes` of its output. A process that leaves the group is not killed.
    """
    process = subprocess.Popen(  # noqa: S603 - the caller decides what may be run
        list(command),
        env=dict(environment),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    late = threading.Event()

    def end_group() -> None:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            late.set()
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    watcher = threading.Thread(target=end_group, daemon=True)
    watcher.start()
    assert process.stdout is not None
    output = b""
    with process.stdout as stream:
        while part := stream.read1(1 << 16):  # type: ignore[attr-defined]
            output = (output + part)[-output_bytes:]
    watcher.join()
    return Ended(
        code=process.wait(), output=output.decode(errors="replace"), timed_out=late.is_set()
    )


def quoted(*words: str) -> str:
    """Return words as one line of a shell script, in which nothing of them is obeyed.

    Every value in a job script goes through this. Raise `UsageError` for control characters: a line
    end would begin another line of the script, which may be a directive to the engine.
    """
    for word in words:
        if not word.isprintable():
            raise UsageError(f"{word!r} cannot be in a job script; remove its control characters")
    return shlex.join(words)
