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
"""How often a recorder that dies is started again; what it leaves is never lost."""

log = logging.getLogger(__name__)


class RecorderProcess:
    """A recorder beside this process. It publishes what is left when this process ends or dies.

    Its standard input is a pipe from here: the end of it tells the recorder to finish.
    """

    def __init__(self, names: Sequence[str]) -> None:
        studies = [argument for name in names for argument in ("--study", name)]
        self._command = [sys.executable, "-m", "tuner", "recorder", "--until-closed", *studies]
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # a session of its own, so that Ctrl-C in the terminal reaches this process alone
        return subprocess.Popen(  # noqa: S603 - our own program
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def keep_alive(self) -> None:
        """Start another recorder when this one is gone."""
        if self._process.poll() is not None:
            log.warning("the recorder ended with %d; another one goes on", self._process.returncode)
            self._process = self._start()

    def close(self) -> None:
        """Wait until all is published. Raises `UnavailableError` when it cannot be."""
        for _ in range(RECORDER_STARTS):
            self._process.communicate()
            if self._process.returncode == 0:
                return
            self._process = self._start()
        self._process.communicate()
        if self._process.returncode != 0:
            raise UnavailableError(
                "the trials are safe in the ledger and not all published, since the recorder "
                "cannot work (its message is above); `tuner recorder` publishes them later"
            )


@contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event; a second one interrupts at once."""
    stop = threading.Event()

    def ask(number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        log.warning("%s: saving the trial; again to leave at once", signal.Signals(number).name)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
