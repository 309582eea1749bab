"""A connection to Ray, in a process of its own, and the actors that run workers.

Ray takes over the process that connects to it: signals, output, and its end once the cluster has
been away for a minute. So `tuner.executors.ray` runs this module in a child, which reads a request
a line from standard input and writes an answer a line, both JSON.

Cloudpickle sends what is defined in a main module along with an actor. So Ray's interpreter on the
nodes need not have tuner, and nothing of it may be used in `TunerWorker`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

CONNECT_ATTEMPTS = 3
ANSWER_SECONDS = 3.0
"""How long actors may take to answer; one that has not started, or is lost, does not."""
STOP_SECONDS = 30.0
"""The same of actors that are asked to end; one that does not answer is removed."""
KILL_SECONDS = 10.0
"""Time beyond its grace after which a worker is killed."""
LOG_BYTES = 65_536
"""How much of a worker's log is shown while it runs."""
KEPT_BYTES = 8192
"""How much of it Ray keeps after the worker's end, beside its exit code."""


class TunerWorker:
    """An actor that runs one `tuner worker` as a child, and ends with it.

    Ray starts it again elsewhere when it or its node is lost: another worker then trains what is
    left. What becomes of it is kept in Ray's key-value store, by its name.
    """

    def __init__(
        self,
        name: str,
        namespace: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        grace: float,
    ) -> None:
        self._name, self._namespace, self._grace = name, namespace, grace
        self._stopped = threading.Event()
        log, path = tempfile.mkstemp(prefix=f"{name}-", suffix=".log")
        self._log = Path(path)
        words = [command[0] or sys.executable, *command[1:], "--parent", str(os.getpid())]
        words += ["--index", name.rpartition("-")[2]]
        if read(namespace, cancelled(name)):  # while it waited, or while its node was lost
            os.close(log)
            self._end(None)
            return
        self._keep(where=self._node())
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                words,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            os.write(log, f"{words[0]}: {error.strerror}\n".encode())
            self._end(127)
            return
        finally:
            os.close(log)
        threading.Thread(target=self._watch, daemon=True).start()

    def answer(self) -> None:
        """Return, to show that this actor is there."""

    def stop(self) -> None:
        """Ask the worker to save its trials and end."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._process.send_signal(signal.SIGTERM)
            threading.Thread(target=self._kill, daemon=True).start()

    def log(self) -> str:
        """Return the end of the worker's log."""
        return self._end_of_log(LOG_BYTES)

    def _watch(self) -> None:
        self._end(self._process.wait())

    def _kill(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(self._grace + KILL_SECONDS)
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _end(self, code: int | None) -> None:
        """Keep how the worker ended, and end this actor for good."""
        import ray  # noqa: PLC0415

        stopped = code is None or self._stopped.is_set()
        self._keep(
            code=0 if stopped else code, where=self._node(), log=self._end_of_log(KEPT_BYTES)
        )
        self._log.unlink(missing_ok=True)
        ray.kill(ray.get_actor(self._name, self._namespace), no_restart=True)

    def _end_of_log(self, size: int) -> str:
        with self._log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - size))
            return log.read().decode(errors="replace")

    def _node(self) -> str:
        import ray  # noqa: PLC0415

        node = ray.get_runtime_context().get_node_id()
        return f"{ray.util.get_node_ip_address()} ({node[:8]})"

    def _keep(self, **values: Any) -> None:
        keep(self._namespace, self._name, **values)


def read(namespace: str, name: str) -> dict[str, Any]:
    """Return what is kept under a name."""
    from ray.experimental.internal_kv import _internal_kv_get  # noqa: PLC0415

    found = _internal_kv_get(name, namespace=f"tuner:{namespace}")
    return dict(json.loads(found)) if found else {}


def keep(namespace: str, name: str, **values: Any) -> None:
    """Keep values under a name, in place of those that were kept."""
    from ray.experimental.internal_kv import _internal_kv_put  # noqa: PLC0415

    _internal_kv_put(name, json.dumps(values), namespace=f"tuner:{namespace}")


def cancelled(name: str) -> str:
    """Return the name under which it is kept that a worker was cancelled."""
    return f"{name}/cancelled"


def launch(
    namespace: str,
    names: Sequence[str],
    options: Mapping[str, Any],
    command: Sequence[str],
    environment: Mapping[str, str],
    grace: float,
) -> None:
    """Create an actor for each name, unless it is there."""
    import ray  # noqa: PLC0415

    actor = ray.remote(TunerWorker)
    for name in names:
        actor.options(
            name=name,
            namespace=namespace,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_concurrency=4,
            **options,
        ).remote(name, namespace, command, environment, grace)


def poll(namespace: str, names: Sequence[str]) -> dict[str, Any]:
    """Return what is known of workers: whether they are there, answer, and what is kept of them."""
    import ray  # noqa: PLC0415
    from ray.util import list_named_actors  # noqa: PLC0415

    there = set(list_named_actors())
    asked = {}
    for name in there.intersection(names):
        with suppress(ValueError):  # it has ended meanwhile
            asked[ray.get_actor(name, namespace).answer.remote()] = name
    ready: Sequence[Any] = []
    if asked:
        ready, _ = ray.wait([*asked], num_returns=len(asked), timeout=ANSWER_SECONDS)
    answered = set()
    for one in ready:
        with suppress(ray.exceptions.RayError):  # it is being started again, or has ended
            ray.get(one)
            answered.add(asked[one])
    there = set(list_named_actors())  # what has ended meanwhile is kept already
    return {
        name: {
            "there": name in there,
            "answered": name in answered,
            "cancelled": bool(read(namespace, cancelled(name))),
            **read(namespace, name),
        }
        for name in names
    }


def cancel(namespace: str, names: Sequence[str]) -> None:
    """Ask workers to end; those that do not answer never start again."""
    import ray  # noqa: PLC0415

    asked = {}
    for name in names:
        keep(namespace, cancelled(name), cancelled=True)
        with suppress(ValueError):  # there is none
            actor = ray.get_actor(name, namespace)
            if read(namespace, name):
                asked[actor.stop.remote()] = actor
            else:
                ray.kill(actor, no_restart=True)
    if not asked:
        return
    ready, silent = ray.wait([*asked], num_returns=len(asked), timeout=STOP_SECONDS)
    for one in ready:
        try:
            ray.get(one)
        except ray.exceptions.ActorUnavailableError:
            silent.append(one)
        except ray.exceptions.RayError:  # it has ended
            continue
    for one in silent:
        ray.kill(asked[one], no_restart=True)


def logs(namespace: str, name: str) -> str | None:
    """Return the end of a worker's log; None if there is none."""
    import ray  # noqa: PLC0415

    with suppress(ValueError, ray.exceptions.RayError):
        actor = ray.get_actor(name, namespace)
        return str(ray.get(actor.log.remote(), timeout=ANSWER_SECONDS))
    found = read(namespace, name).get("log")
    return None if found is None else str(found)


def _connect(**arguments: Any) -> None:
    """Connect, again if the process that the head starts for a `ray://` connection ends at once."""
    import ray  # noqa: PLC0415

    for _ in range(CONNECT_ATTEMPTS - 1):
        with suppress(ConnectionAbortedError):
            ray.init(**arguments)
            return
    ray.init(**arguments)


def serve(address: str | None, namespace: str, working_dir: str | None) -> None:
    """Connect, and answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    def problem(error: Exception) -> None:
        last = (str(error).strip() or type(error).__name__).splitlines()[-1]
        answer(error=last, away=isinstance(error, (ConnectionError, TimeoutError)))

    try:
        _connect(
            address=address or os.environ.get("RAY_ADDRESS", "auto"),
            namespace=namespace,
            runtime_env={} if working_dir is None else {"working_dir": working_dir},
            log_to_driver=False,
            logging_level="ERROR",
        )
    except Exception as error:  # of many types
        problem(error)
        return
    answer()
    calls = {one.__name__: one for one in (launch, poll, cancel, logs)}
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer(result=calls[name](namespace, *arguments))
        except Exception as error:
            problem(error)


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
