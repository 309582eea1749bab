"""What a trial's program may use: memory, processes and time, as its worker's operator has set.

A program is a command, or a train function in a process of its own.

Limits of the kernel (`setrlimit`) do not fit: torch reserves far more addresses than it uses, and
processes are counted by user. So the program's processes are measured each second. That stops
programs that go wrong; hard limits need a container.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import psutil
from pydantic import ByteSize, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from tuner.core.errors import WorkloadError

MEMORY, PROCESSES, SECONDS = (
    "TUNER_COMMAND_MEMORY",
    "TUNER_COMMAND_PROCESSES",
    "TUNER_COMMAND_SECONDS",
)
"""The worker's variables with the limits, such as 8GiB, 64 and 86400."""
LOOK_SECONDS = 1.0

N = TypeVar("N", bound=float)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use; None: as much as it wants."""

    memory: int | None = None  # bytes that are resident, shared ones divided by who shares them
    processes: int | None = None
    seconds: float | None = None  # of one attempt

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Limits:
        """Return the limits that variables set. Raise `WorkloadError`."""
        return cls(
            memory=_read(environment, MEMORY, TypeAdapter(ByteSize), "a size such as 8GiB"),
            processes=_read(environment, PROCESSES, TypeAdapter(PositiveInt), "a whole number"),
            seconds=_read(environment, SECONDS, TypeAdapter(PositiveFloat), "seconds"),
        )


def _read(environment: Mapping[str, str], name: str, kind: TypeAdapter[N], what: str) -> N | None:
    text = environment.get(name, "")
    if not text:
        return None
    try:
        found = kind.validate_python(text)
    except ValidationError:
        found = None
    if found is None or found <= 0:
        raise WorkloadError(f"{name}: expected {what}, got {text!r}")
    return found


@dataclass(kw_only=True)
class Watch:
    """The processes that a program has started, and which limit they have exceeded."""

    root: int  # the process under which they run
    limits: Limits
    exceeded: str | None = None
    _started: float = field(default_factory=time.monotonic)
    _seen: set[psutil.Process] = field(default_factory=set)  # also those that left their parent

    def look(self) -> None:
        """Measure the processes; end all that there are from when they exceed a limit."""
        with suppress(psutil.NoSuchProcess):
            self._seen |= set(psutil.Process(self.root).children(recursive=True))
        self._seen = {one for one in self._seen if one.is_running()}
        self.exceeded = self.exceeded or self._exceeded()
        for one in self._seen if self.exceeded else ():
            with suppress(psutil.Error):
                one.kill()

    def _exceeded(self) -> str | None:
        limits, ran = self.limits, time.monotonic() - self._started
        if limits.seconds is not None and ran > limits.seconds:
            return f"it ran longer than {limits.seconds:g} seconds ({SECONDS})"
        if limits.processes is not None and len(self._seen) > limits.processes:
            return f"it had {len(self._seen)} processes, more than {limits.processes} ({PROCESSES})"
        if limits.memory is not None and (used := sum(map(_memory, self._seen))) > limits.memory:
            return (
                f"it used {ByteSize(used).human_readable()} of memory, more than "
                f"{ByteSize(limits.memory).human_readable()} ({MEMORY})"
            )
        return None


def _memory(process: psutil.Process) -> int:
    try:
        found = process.memory_full_info()
    except psutil.Error:  # it has ended, or is of another user
        return 0
    return int(getattr(found, "pss", found.uss))


@contextmanager
def watched(root: int, limits: Limits) -> Iterator[Watch]:
    """Watch within the context what a process has started."""
    watch, ended = Watch(root=root, limits=limits), threading.Event()

    def run() -> None:
        while not ended.is_set():
            watch.look()
            ended.wait(LOOK_SECONDS)

    thread = threading.Thread(target=run, daemon=True)
    if limits != Limits():
        thread.start()
    try:
        yield watch
    finally:
        ended.set()
        if limits != Limits():
            thread.join()
