"""The recorder process of a worker, processes that end with their parent, and signals."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from tuner.core import importing
from tuner.core.errors import UnavailableError
from tuner.core.forking import keep_from_children

RECORDER_STARTS = 3
"""How many recorders that die at the end are replaced; unpublished records are never lost."""
WATCH_SECONDS = 1.0
"""Time until a recorder that died is replaced; doubled each time."""
NOTICE_SECONDS = 3.0
"""Time after which a log line says that we wait for the recorder."""
PARENT_SECONDS = 0.5
"""Time between two checks for a process's parent."""
ORPHAN_SECONDS = 30.0
"""Timeout for a process without parent to save its work, and then to end."""

log = logging.getLogger(__name__)


class RecorderProcess:
    """A recorder in a child process, which publishes the rest when this process ends or dies.

    Its standard input is a pipe from this process. A byte asks the recorder to finish; so do the
    end of the pipe and the end of this process. The end of the pipe alone is not sufficient, since
    a forked child of the workload may hold a copy.
    """

    def __init__(self, names: Sequence[str]) -> None:
        studies = [argument for name in names for argument in ("--study", name)]
        parent = ("--parent", str(os.getpid()))
        self._command = importing.command("tuner", "recorder", "--until-closed", *parent)
        self._command += studies
        self._process = self._start()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._keep_alive, name="recorder", daemon=True)
        self._watcher.start()

    @property
    def waiting(self) -> str:
        """What `close` waits for, as a message."""
        return f"waiting for the recorder (process {self._process.pid}) to publish what is left"

    def _start(self) -> subprocess.Popen[bytes]:
        # in its own session, so that Ctrl-C in the terminal reaches only this process
        process = subprocess.Popen(  # noqa: S603 - our own program
            self._command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdin is not None
        keep_from_children(process.stdin)
        return process

    def _keep_alive(self) -> None:
        """Replace the recorder when it dies, until `close`."""
        pause = WATCH_SECONDS
        while not self._closing.wait(pause):
            if self._process.poll() is not None:
                code = self._process.returncode
                log.warning("the recorder ended with %d and is replaced", code)
                self._finish()
                self._process = self._start()
                pause *= 2

    def _finish(self) -> None:
        """Ask the recorder to finish, unless it has ended or was asked already."""
        pipe = self._process.stdin
        assert pipe is not None
        if not pipe.closed:
            with suppress(OSError), pipe:
                pipe.write(b"\n")

    def finish_in_background(self) -> None:
        """Ask the recorder to finish, and do not wait for it."""
        self._closing.set()
        self._watcher.join()
        self._finish()

    def close(self, seconds: float | None = None) -> bool:
        """Wait until everything is published, at most `seconds`. Return whether it is.

        After a timeout the recorder continues until it has finished.
        """
        self.finish_in_background()
        has_tried = (
            self._process.poll() is None
        )  # a live recorder publishes the rest before it ends
        for start in range(1 + RECORDER_STARTS):
            if start:
                self._process = self._start()
                self._finish()
            try:
                code = self._wait(seconds)
            except subprocess.TimeoutExpired:
                return False
            if code == 0:
                return True
            if has_tried and code == UnavailableError.exit_code:
                break  # it has logged what it cannot reach
            has_tried = True
        return False

    def _wait(self, seconds: float | None) -> int:
        """Wait for the recorder's end and log a line if that takes long. Return its exit code."""
        notice = NOTICE_SECONDS if seconds is None else min(NOTICE_SECONDS, seconds)
        try:
            return self._process.wait(notice)
        except subprocess.TimeoutExpired:
            log.warning(self.waiting)
        return self._process.wait(None if seconds is None else max(0.0, seconds - notice))


def on_end_of(parent: int, act: Callable[[], None]) -> None:
    """Call a function in a thread when the parent of this process has ended.

    `parent` is its process number; a process whose parent dies gets another parent.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        act()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def end_with(parent: int) -> None:
    """End this process after its parent: by SIGTERM, a second SIGTERM, then SIGKILL."""

    def end() -> None:
        log.warning("the parent process (%d) has ended; ending too", parent)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            os.kill(os.getpid(), number)
            time.sleep(ORPHAN_SECONDS)

    on_end_of(parent, end)


class Stop(threading.Event):
    """An event that a signal sets to stop this process."""

    by: signal.Signals | None = None
    """The signal that set it."""

    def __init__(self, doing: str) -> None:
        super().__init__()
        self.doing = doing
        """What happens after a signal, for the log; it may change."""


@contextmanager
def stop_on_signals(doing: str) -> Iterator[Stop]:
    """Set an event at the first SIGINT or SIGTERM; raise `KeyboardInterrupt` at the second.

    `doing` is logged as what happens meanwhile. Signals are handled in the main thread only; in
    another thread the event stays unset. A forked child, such as a worker of a `DataLoader`, has a
    copy of the handlers: it ignores the first Ctrl-C of the terminal, which is meant for this
    process, and handles every other signal as before.
    """
    stop, pid = Stop(doing), os.getpid()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        received, is_first = signal.Signals(number), stop.by is None
        if os.getpid() != pid:
            stop.by = received
            if received != signal.SIGINT or not is_first:
                signal.signal(received, before[received])
                signal.raise_signal(received)
            return
        if not is_first:
            raise KeyboardInterrupt
        stop.by = received
        stop.set()
        # in a thread: the signal may have interrupted this one while it writes a log line
        message = "%s: %s; repeat to end at once", received.name, stop.doing
        threading.Thread(target=log.warning, args=message, name="signal").start()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
