"""Run a program in a process group of its own, and end the group with the worker.

Run as a script by path, `python -I -S guardian.py PIPE SECONDS PROGRAM ARGUMENT...`, so it imports
nothing of ours. When the other end of PIPE is closed, by the worker or by its death, the group gets
SIGTERM, and SIGKILL after SECONDS. What the program leaves running in its group is killed when it
ends. The exit code is the program's; 128 + n after signal n, and 127 if it cannot be started.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress


def main() -> int:
    """Run the program and return its exit code."""
    pipe, seconds, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    try:
        process = subprocess.Popen(command, start_new_session=True)  # noqa: S603 - it was allowed
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error.strerror or error}\n")
        return 127
    ended = threading.Event()

    def send(number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)

    def watch() -> None:
        os.read(pipe, 1)
        send(signal.SIGTERM)
        if not ended.wait(seconds):
            send(signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its group keeps its number
    else:
        process.wait()
    ended.set()
    send(signal.SIGKILL)
    code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
