"""Workers as actors of Ray, one each (the extra `ray`). Not Ray Tune: Ray knows no trials.

The actors are detached and named, so any process that reaches the cluster finds them. An actor
whose node is lost is started again by Ray, and its worker trains what is left.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuner.config.cluster import RayTable, WorkerTable
from tuner.core import importing
from tuner.core.errors import UnavailableError, UsageError
from tuner.executors import Phase, WorkerState, starting
from tuner.ledger.launches import Launch

CONNECT_SECONDS = 240.0
"""How long Ray may take to connect and to store the folder that goes with the workers."""
REQUEST_SECONDS = 120.0
VARIABLES = ("TUNER_", "MLFLOW_", "PG", "AWS_", "AZURE_", "GOOGLE_", "OMP_")
"""Beginnings of the names of the variables of this process that go to the workers."""


class RayExecutor:
    """An `Executor` of actors; the handle of a worker is its actor's name, `tuner-KEY-INDEX`."""

    name = "ray"
    poll_seconds = 2.0

    def __init__(self, settings: RayTable) -> None:
        """Raise `UsageError` if there is no Ray here, or nothing to send; connect when asked."""
        if importlib.util.find_spec("ray") is None:
            raise UsageError("there is no Ray here; install it: pip install -e '.[ray]'")
        folder = settings.working_dir
        if folder is not None and not Path(folder).is_dir():
            raise UsageError(f"[ray] working_dir: expected a folder, got {folder!r}")
        self._settings = settings
        self._driver: _Driver | None = None

    def launch(
        self, key: str, workers: int, resources: WorkerTable, arguments: Sequence[str]
    ) -> tuple[str, ...]:
        """Create the actors; those for which there is no place yet wait."""
        handles = _handles(key, workers)
        command = starting.command(key, resources, arguments)
        command[0] = resources.python or ""  # the interpreter that Ray has there
        environment = {k: v for k, v in os.environ.items() if k.startswith(VARIABLES)}
        environment.pop("TUNER_METRICS_PORT", None)
        self._ask(
            "launch",
            handles,
            options_of(self._settings, resources),
            command,
            environment | resources.environment,
            resources.grace_seconds,
        )
        return handles

    def poll(self, launches: Sequence[Launch]) -> Mapping[str, Sequence[WorkerState]]:
        """Ask all actors at once; a worker's end is kept by Ray's key-value store."""
        names = [name for one in launches for name in _handles(one.key, one.workers)]
        found = self._ask("poll", names) if names else {}
        states: dict[str, Sequence[WorkerState]] = {}
        for launch in launches:
            known = {name: found[name] for name in _handles(launch.key, launch.workers)}
            is_known = bool(launch.handles) or any(
                one["there"] or "code" in one for one in known.values()
            )
            states[launch.key] = [_state(*one) for one in known.items()] if is_known else []
        return states

    def cancel(self, launch: Launch) -> None:
        """Send SIGTERM to the workers, and SIGKILL after their grace; remove actors that wait."""
        self._ask("cancel", _handles(launch.key, launch.workers))

    def logs(self, launch: Launch, handle: str) -> str:
        """Return the end of a worker's log."""
        if handle not in _handles(launch.key, launch.workers):
            raise UsageError(f"{handle!r} is no handle of the launch {launch.key}")
        text = self._ask("logs", handle)
        if text is None:
            raise UsageError(f"the worker {handle} has no log: it waits, or was lost with its node")
        return str(text)

    def _ask(self, request: str, *arguments: Any) -> Any:
        """Return the answer to a request. Raise `UsageError` or `UnavailableError`."""
        if self._driver is None:
            self._driver = _Driver(self._settings)
        try:
            return self._driver.ask(request, *arguments)
        except UnavailableError:
            self._driver.close()
            self._driver = None
            raise


class _Driver:
    """The child process that is connected to Ray."""

    def __init__(self, settings: RayTable) -> None:
        about = {
            "address": settings.address,
            "namespace": settings.namespace,
            "working_dir": settings.working_dir,
        }
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            importing.command("tuner.executors.ray_driver", json.dumps(about)),
            env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal is not for it
        )
        self.close = weakref.finalize(self, _close, self._process)
        try:
            self._answer(CONNECT_SECONDS)
        except (UsageError, UnavailableError):
            self.close()
            raise

    def ask(self, request: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([request, arguments]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise UnavailableError("the connection to Ray has ended") from None
        return self._answer(REQUEST_SECONDS)

    def _answer(self, seconds: float) -> Any:
        out = self._process.stdout
        assert out is not None
        if not select.select([out], [], [], seconds)[0]:
            raise UnavailableError(f"Ray does not answer within {seconds:.0f} s")
        line = out.readline()
        if not line:
            raise UnavailableError("the connection to Ray has ended")
        answer = json.loads(line)
        if "error" not in answer:
            return answer.get("result")
        why = " ".join(str(answer["error"]).split())[:500]
        if answer["away"]:
            raise UnavailableError(f"Ray does not answer: {why}")
        raise UsageError(f"Ray refuses the request: {why}")


def _close(process: subprocess.Popen[bytes]) -> None:
    """End the child; the actors go on."""
    process.kill()
    process.communicate()


def _handles(key: str, workers: int) -> tuple[str, ...]:
    return tuple(f"{starting.job_name(key)}-{index}" for index in range(workers))


def options_of(settings: RayTable, resources: WorkerTable) -> dict[str, Any]:
    """Return the options of an actor: what it takes of a node, and of which."""
    options: dict[str, Any] = {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus / resources.workers_per_gpu,
        "resources": dict(settings.resources),
        "scheduling_strategy": {"pack": "DEFAULT", "spread": "SPREAD"}[settings.placement],
    }
    if resources.megabytes is not None:
        options["memory"] = resources.megabytes * 2**20
    return options


def _state(handle: str, known: Mapping[str, Any]) -> WorkerState:
    """Return the state of a worker from what its actor answers and what Ray keeps of it."""
    phase: Phase
    code, detail, where = known.get("code"), "", known.get("where", "")
    if code is not None:
        phase = "failed" if code else "ended"
    elif known["answered"]:
        phase = "running"
    elif known["there"]:
        phase, detail, where = "waiting", "does not answer" if where else "", ""
    elif known["cancelled"]:
        phase = "ended"
    else:
        phase, detail = "failed", "Ray has ended its actor, or could not start it"
    return WorkerState(handle=handle, phase=phase, code=code or None, where=where, detail=detail)
