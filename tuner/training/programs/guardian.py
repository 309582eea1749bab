"""Run a program in a process group of its own, and end all of it with the worker.

Run as a script by path, `python -I -S guardian.py PIPE SECONDS USER PROGRAM ARGUMENT...`, so it
imports nothing of ours. USER is `-`, or the numbers of another user and of its groups, which root
may start the program as: `UID:GID:GROUP...`. When the other end of PIPE is closed, by the worker or
by its death, the group gets SIGTERM, and SIGKILL after SECONDS. What the program leaves running is
killed when it ends: its group, and on Linux everything else that it has started, such as ranks in
sessions of their own. The exit code is the program's; 128 + n after signal n, and 127 if it cannot
be started.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

_SET_CHILD_SUBREAPER = 36  # of prctl


def main() -> int:
    """Run the program and return its exit code."""
    pipe, seconds, user, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]
    other = user != "-"
    uid, gid, *groups = map(int, user.split(":")) if other else (None, None)
    adopt_orphans()
    try:
        process = subprocess.Popen(  # noqa: S603 - it was allowed
            command,
            start_new_session=True,
            user=uid,
            group=gid,
            extra_groups=groups if other else None,
        )
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error.strerror or error}\n")
        return 127
    process.returncode = guard(process.pid, pipe, seconds)  # it is waited for already
    return process.returncode


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent ends. Do nothing except on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def guard(pid: int, pipe: int, seconds: float) -> int:
    """Wait for a child that leads its group, end what it leaves running, return its exit code."""
    ended = threading.Event()

    def send(number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)

    def watch() -> None:
        os.read(pipe, 1)
        if not ended.is_set():
            send(signal.SIGTERM)
        if not ended.wait(seconds):
            send(signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # its group keeps its number
        ended.set()
        send(signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    ended.set()
    _end_orphans()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _end_orphans() -> None:
    """Kill the adopted children, and those that are adopted when they end."""
    while children := _children():
        for child in children:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            with suppress(ChildProcessError):
                os.waitpid(child, 0)


def _children() -> list[int]:
    """Return the children of this process."""
    found = []
    own = str(os.getpid())
    for name in os.listdir("/proc") if sys.platform == "linux" else ():  # noqa: PTH208 - no pathlib
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat") as file:  # noqa: PTH123
                if file.read().rpartition(")")[2].split()[1] == own:
                    found.append(int(name))
    return found


if __name__ == "__main__":
    sys.exit(main())
