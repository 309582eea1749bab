"""Workers as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuner.config.cluster import WorkerTable
from tuner.core.environment import identity, is_gone, is_here
from tuner.core.errors import UsageError
from tuner.core.outputs import private_folder
from tuner.executors import Phase, WorkerState, starting
from tuner.ledger.launches import Launch

_children: dict[str, subprocess.Popen[bytes]] = {}
"""The processes that this one has started, by handle; whoever asks for their state reaps them."""


class LocalExecutor:
    """An `Executor` of processes on this machine; a handle is the identity of a process."""

    name = "local"
    poll_seconds = 0.2

    def __init__(self, logs: Path, *, end_with_this: bool = True) -> None:
        """Log into files of the folder `logs`; the workers end with this process, or go on."""
        self._logs = logs
        self._end_with_this = end_with_this

    def launch(
        self, key: str, workers: int, resources: WorkerTable, arguments: Sequence[str]
    ) -> tuple[str, ...]:
        """Start workers in sessions of their own, which Ctrl-C in the terminal does not reach."""
        private_folder(self._logs)
        parent = ["--parent", str(os.getpid())] if self._end_with_this else []
        command = starting.command(key, resources, [*parent, *arguments])
        return tuple(
            self._start([*command, "--index", str(index)], resources, self._log(key, index))
            for index in range(workers)
        )

    def _start(self, command: Sequence[str], resources: WorkerTable, file: Path) -> str:
        with file.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own program
                command,
                env=starting.environment(resources),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        handle = identity(process.pid)  # it is there until we wait for it
        _children[handle] = process
        return handle

    def poll(self, launches: Sequence[Launch]) -> Mapping[str, Sequence[WorkerState]]:
        """Return the states of processes; those of other machines are unknown."""
        return {one.key: [self._state(handle) for handle in one.handles] for one in launches}

    def _state(self, handle: str) -> WorkerState:
        where = handle.partition("/")[0]
        if handle in _children:
            code = _children[handle].poll()
            if code is not None:
                phase: Phase = "failed" if code else "ended"
                return WorkerState(handle=handle, phase=phase, code=code, where=where)
        elif not is_here(handle):
            detail = "a process of another machine, or of this one before it was restarted"
            return WorkerState(handle=handle, phase="unknown", where=where, detail=detail)
        elif is_gone(handle):
            return WorkerState(handle=handle, phase="ended", where=where)
        return WorkerState(handle=handle, phase="running", where=where)

    def cancel(self, launch: Launch) -> None:
        """Send SIGTERM to the processes that are workers of this launch."""
        elsewhere = [handle for handle in launch.handles if not is_here(handle)]
        for handle in launch.handles:
            if handle not in elsewhere and not self._state(handle).is_over:
                _terminate(handle, launch.key)
        if elsewhere:
            raise UsageError(
                f"the worker {elsewhere[0]} is a process of another machine; run the command there"
            )

    def logs(self, launch: Launch, handle: str) -> str:
        """Return the end of a worker's log."""
        return starting.end_of(self._log(launch.key, launch.handles.index(handle)))

    def _log(self, key: str, index: int) -> Path:
        return self._logs / f"{key}-{index}.jsonl"


def _terminate(handle: str, key: str) -> None:
    """Send SIGTERM to a process if its command line says that it is a worker of the launch."""
    import psutil  # noqa: PLC0415 - `tuner status` imports this module

    try:
        process = psutil.Process(int(handle.split(":")[-2]))
        if starting.is_worker_of(key, process.cmdline()) and identity(process.pid) == handle:
            process.send_signal(signal.SIGTERM)
    except (psutil.Error, FileNotFoundError, ValueError):  # it has ended, or never was
        return
