"""Processes: the recorder beside a worker, and being told to stop."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from tuner.errors import UnavailableError

RECORDER_STARTS = 3
"""How often a recorder is started again that dies at the end; what it leaves is never lost."""
WATCH_SECONDS = 1.0
"""How long until a recorder that died earlier is started again; longer each time."""

log = logging.getLogger(__name__)


class RecorderProcess:
    """A recorder beside this process. It publishes what is left when this process ends or dies.

    Its standard input is a pipe from here: the end of it tells the recorder to finish.
    """

    def __init__(self, names: Sequence[str]) -> None:
        studies = [argument for name in names for argument in ("--study", name)]
        self._command = [sys.executable, "-m", "tuner", "recorder", "--until-closed", *studies]
        self._process = self._start()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._keep_alive, name="recorder", daemon=True)
        self._watcher.start()

    def _start(self) -> subprocess.Popen[bytes]:
        # a session of its own, so that Ctrl-C in the terminal reaches this process alone
        return subprocess.Popen(  # noqa: S603 - our own program
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _keep_alive(self) -> None:
        """Start another recorder when this one is gone, until `close`."""
        pause = WATCH_SECONDS
        while not self._closing.wait(pause):
            if self._process.poll() is not None:
                code = self._process.returncode
                log.warning("the recorder ended with %d; another one goes on", code)
                self._process.communicate()  # closes its pipe
                self._process = self._start()
                pause *= 2

    def close(self, seconds: float | None = None) -> bool:
        """Wait until all is published, or for so many seconds; tell whether it could be.

        A recorder that is left alone goes on until it is done.
        """
        self._closing.set()
        self._watcher.join()
        has_tried = self._process.poll() is None  # to publish the rest, when it ends; else earlier
        for start in range(1 + RECORDER_STARTS):
            if start:
                self._process = self._start()
            try:
                self._process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                return False
            if self._process.returncode == 0:
                return True
            if has_tried and self._process.returncode == UnavailableError.exit_code:
                break  # it has said what it cannot reach
            has_tried = True
        return False


class Stop(threading.Event):
    """Set once this process is told to stop."""

    by: signal.Signals | None = None
    """The signal that told it."""


@contextmanager
def told_to_stop(doing: str) -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into an event; a second one interrupts at once.

    `doing` says what happens meanwhile. Only the main thread can be told; in another one the event
    stays unset.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.by = signal.Signals(number)
        stop.set()
        log.warning("%s: %s; again to leave at once", signal.Signals(number).name, doing)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
