"""Processes: the recorder beside a worker, what ends with the process that started it, signals."""

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
"""How often a recorder is started again that dies at the end; what it leaves is never lost."""
WATCH_SECONDS = 1.0
"""How long until a recorder that died earlier is started again; longer each time."""
NOTICE_SECONDS = 3.0
"""How long publishing the rest may take before the log says that this is what we wait for."""
PARENT_SECONDS = 0.5
"""How often a process looks whether the one that started it is still there."""
ORPHAN_SECONDS = 30.0
"""How long a process whose parent has died may take to save its work, and then to end."""

log = logging.getLogger(__name__)


class RecorderProcess:
    """A recorder beside this process. It publishes what is left when this process ends or dies.

    Its standard input is a pipe from here. A byte tells the recorder to finish; so do the pipe's
    end and the end of this process. The pipe's end alone would not do, since a forked child of the
    workload's may hold a copy.
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
        """What `close` waits for, for people."""
        return f"waiting for the recorder (process {self._process.pid}) to publish what is left"

    def _start(self) -> subprocess.Popen[bytes]:
        # a session of its own, so that Ctrl-C in the terminal reaches this process alone
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
        """Start another recorder when this one is gone, until `close`."""
        pause = WATCH_SECONDS
        while not self._closing.wait(pause):
            if self._process.poll() is not None:
                code = self._process.returncode
                log.warning("the recorder ended with %d; another one goes on", code)
                self._finish()
                self._process = self._start()
                pause *= 2

    def _finish(self) -> None:
        """Tell the recorder to finish, unless it has ended or knows."""
        pipe = self._process.stdin
        assert pipe is not None
        if not pipe.closed:
            with suppress(OSError), pipe:
                pipe.write(b"\n")

    def leave(self) -> None:
        """Tell the recorder to finish, and leave it to itself."""
        self._closing.set()
        self._watcher.join()
        self._finish()

    def close(self, seconds: float | None = None) -> bool:
        """Wait until all is published, or for so many seconds; tell whether it could be.

        A recorder that is left alone goes on until it is done.
        """
        self.leave()
        has_tried = self._process.poll() is None  # to publish the rest, when it ends; else earlier
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
                break  # it has said what it cannot reach
            has_tried = True
        return False

    def _wait(self, seconds: float | None) -> int:
        """Wait for the recorder's end; after a while, log so."""
        notice = NOTICE_SECONDS if seconds is None else min(NOTICE_SECONDS, seconds)
        try:
            return self._process.wait(notice)
        except subprocess.TimeoutExpired:
            log.warning(self.waiting)
        return self._process.wait(None if seconds is None else max(0.0, seconds - notice))


def on_end_of(parent: int, act: Callable[[], None]) -> None:
    """Call a function, in a thread of its own, once the process that started this one has ended.

    `parent` is its number, as it knew it: a process whose parent dies is given another one.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        act()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def end_with(parent: int) -> None:
    """End this process after its parent: save the work, then leave at once, then be killed."""

    def end() -> None:
        log.warning("the process that started this one (%d) has ended: ending too", parent)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            os.kill(os.getpid(), number)
            time.sleep(ORPHAN_SECONDS)

    on_end_of(parent, end)


class Stop(threading.Event):
    """Set once this process is told to stop."""

    by: signal.Signals | None = None
    """The signal that told it."""

    def __init__(self, doing: str) -> None:
        super().__init__()
        self.doing = doing
        """What a signal leads to, or what it must wait for; it may change."""


@contextmanager
def told_to_stop(doing: str) -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into an event; a second one interrupts at once.

    `doing` says what happens meanwhile. Only the main thread can be told; in another one the event
    stays unset. A forked child, such as a worker of a `DataLoader`, has a copy of the handlers:
    there the first Ctrl-C of the terminal is ignored, as it is meant for this process, and
    anything else does what it did before.
    """
    stop, us = Stop(doing), os.getpid()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        told, is_first = signal.Signals(number), stop.by is None
        if os.getpid() != us:
            stop.by = told
            if told != signal.SIGINT or not is_first:
                signal.signal(told, before[told])
                signal.raise_signal(told)
            return
        if not is_first:
            raise KeyboardInterrupt
        stop.by = told
        stop.set()
        log.warning("%s: %s; again to leave at once", told.name, stop.doing)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
