"""Start Python programs without their seconds of imports: fork a process that has imported all.

`python()` is the path of a stand-in for the interpreter. Run with `-m` and one of `PROGRAMS`, or
with `-m script` and the path of a script, it passes its arguments, environment, folder and standard
streams to a server, which has imported the libraries and forks a process for the program. The
stand-in forwards signals to that process, ends as it ends, and takes it along when it is killed.
Everything else it hands to the real interpreter. A program's own child processes, started with
`sys.executable`, come from the same server.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import logging
import os
import pkgutil
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np

SCRIPT = "script"  # whose path is the first argument
PROGRAMS = ("tuner", "mlflow", "uvicorn", "optuna_dashboard._cli", SCRIPT)
ROOT = Path(__file__).parents[1]
LIBRARIES = [
    "torch.func",
    "torch._dynamo",  # an optimiser imports it
    "mlflow",
    "mlflow.cli",
    "mlflow.pyfunc",
    "mlflow.store.tracking.sqlalchemy_workspace_store",
    "fastapi",
    "flask_cors",
    "graphene",
    "uvicorn",
    "optuna",
    "optuna.visualization.matplotlib",
    "matplotlib.pyplot",
    "plotly.graph_objects",
    "narwhals.stable.v2",
    "alembic.command",
    "sqlalchemy.dialects.postgresql.psycopg",
    "rich.progress",
    "rich.table",
    "scipy.optimize",
]
STAND_IN = """\
#!{real} -IS
import os, sys
arguments = sys.argv[1:]
is_safe = arguments[:1] == ["-P"]
if is_safe:
    del arguments[0]
if arguments[:1] != ["-m"] or arguments[1] not in {programs!r}:
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
import array, json, signal, socket
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
is_safe = is_safe or bool(os.environ.get("PYTHONSAFEPATH"))
asked = [arguments[1:], os.getcwd(), dict(os.environ), os.getppid(), is_safe]
asked = json.dumps(asked).encode()
descriptors = socket.SCM_RIGHTS, array.array("i", [0, 1, 2])
server.sendmsg([len(asked).to_bytes(4, "big")], [(socket.SOL_SOCKET, *descriptors)])
os.chdir("/")  # whoever looks for processes in that folder finds the program alone
forwarded = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
for number in forwarded:
    signal.signal(number, lambda number, _: server.send(bytes([number])))
server.sendall(asked)
status = int.from_bytes(server.recv(4), "big")
if os.WIFSIGNALED(status):
    if os.WTERMSIG(status) in forwarded:
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(status))
os._exit(os.waitstatus_to_exitcode(status))
"""


def keep_migrations() -> None:
    """Let Alembic load each migration once a process, not whenever it compares versions.

    It does so whenever Optuna's or MLflow's tables are opened: a third of the time of many tests.
    """
    from alembic.util import pyfiles

    load = pyfiles.load_module_py
    kept = functools.cache(load)

    def load_once(module_id: str, path: str | os.PathLike[str]) -> object:
        # others are programs, which run when they are loaded
        return (kept if Path(path).parent.name == "versions" else load)(module_id, path)

    pyfiles.load_module_py = load_once


@functools.cache
def python() -> str:
    """Return the path of the stand-in, for as long as this process lives."""
    folder = Path(tempfile.mkdtemp(prefix="tuner-warm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address, stand_in = folder / "socket", folder / "python"
    text = STAND_IN.format(real=sys.executable, programs=PROGRAMS, address=str(address))
    stand_in.write_text(text)
    stand_in.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(100)
        server = subprocess.Popen(
            [sys.executable, __file__, str(listener.fileno()), str(stand_in)],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if not k.startswith(("TUNER_", "MLFLOW_"))}
            | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,  # whose end is the server's
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
    atexit.register(server.communicate)
    return str(stand_in)


# --- the server


def _import() -> None:
    """Import what the programs need, all of `tuner` included."""
    for name in LIBRARIES:
        importlib.import_module(name)
    sys.path.insert(0, str(ROOT))
    import tuner

    for found in pkgutil.walk_packages(tuner.__path__, "tuner."):
        left_out = ("__main__", ".migrations.", ".integrations.")
        if not any(part in found.name for part in left_out):
            importlib.import_module(found.name)
    sys.path.remove(str(ROOT))
    keep_migrations()
    _load_migrations()
    logging.root.handlers.clear()  # of mlflow.pytorch, which comes after ours in a cold process
    logging.root.setLevel(logging.WARNING)


def _load_migrations() -> None:
    """Load the migrations of Optuna and MLflow, as a program does that opens their tables."""
    from alembic.script import ScriptDirectory

    for package in ("optuna.storages._rdb", "mlflow.store.db_migrations"):
        folder = Path(str(importlib.import_module(package).__file__)).parent
        scripts = folder / "alembic" if package.startswith("optuna") else folder
        ScriptDirectory(str(scripts)).get_current_head()


class Asked(NamedTuple):
    """What a stand-in is to run."""

    arguments: list[str]
    folder: str
    environment: dict[str, str]
    parent: int  # the id of the process that started it
    is_safe: bool  # as by `python -P`: modules are not looked for in the current folder


class _Server:
    """Forks a process for each stand-in, and passes signals there and exit statuses back."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._programs: dict[int, tuple[socket.socket, int]] = {}  # pid: stand-in, pidfd
        self._selector = selectors.DefaultSelector()
        for file in (listener, sys.stdin):
            self._selector.register(file, selectors.EVENT_READ)

    def serve(self) -> Asked:
        """Serve until standard input ends; return in each fork, with what it is to do."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    for pid in self._programs:
                        os.kill(pid, signal.SIGKILL)
                    os._exit(0)
                if key.fileobj is self._listener:
                    asked = self._fork()
                    if asked is not None:
                        return asked
                elif isinstance(key.fileobj, int):
                    self._reap(key.data)
                elif key.data in self._programs:  # else it was reaped a moment ago
                    self._signal(key.data)

    def _fork(self) -> Asked | None:
        connection, _ = self._listener.accept()
        header, streams, _, _ = socket.recv_fds(connection, 4, 3)
        asked = connection.recv(int.from_bytes(header, "big"), socket.MSG_WAITALL)
        pid = os.fork()
        if pid == 0:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            self._selector.close()
            self._listener.close()
        for stream in streams:
            os.close(stream)
        if pid == 0:
            connection.close()
            for other, descriptor in self._programs.values():
                other.close()
                os.close(descriptor)
            return Asked(*json.loads(asked))
        self._programs[pid] = connection, os.pidfd_open(pid)
        for file in self._programs[pid]:
            self._selector.register(file, selectors.EVENT_READ, pid)
        return None

    def _signal(self, pid: int) -> None:
        connection, _ = self._programs[pid]
        numbers = connection.recv(100)
        for number in numbers or [signal.SIGKILL]:  # nothing more: the stand-in was killed
            os.kill(pid, number)
        if not numbers:
            self._reap(pid)

    def _reap(self, pid: int) -> None:
        connection, descriptor = self._programs.pop(pid)
        for file in (connection, descriptor):
            self._selector.unregister(file)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        with connection, contextlib.suppress(OSError):  # the stand-in may have been killed
            connection.sendall(status.to_bytes(4, "big"))


def _run(asked: Asked, stand_in: str) -> None:
    """Run the program as if the interpreter had just been started for it by `parent`."""
    arguments, folder, environment, parent, is_safe = asked
    os.setsid()
    # the server is the real parent of every fork; programs watch the process that started them
    os.getppid = lambda: parent if Path(f"/proc/{parent}").exists() else 1
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    if not is_safe:
        sys.path.insert(0, folder)
    sys.executable = stand_in
    is_script = arguments[0] == SCRIPT
    sys.argv[:] = arguments[is_script:]
    from tuner.core import failpoints

    np.random.seed()  # else the state that all forks share
    failpoints.arm(environment.get("TUNER_FAILPOINTS", ""))
    code: object = 0
    try:
        if is_script:
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # at once: to clear all modules would be to copy all memory that is shared with the server
    os._exit(code if isinstance(code, int) else int(code is not None))


def _main() -> None:
    descriptor, stand_in = sys.argv[1:]
    sys.path.remove(str(Path(__file__).parent))
    _import()
    gc.freeze()  # collections would touch, and so copy, the memory that forks share
    _run(_Server(socket.socket(fileno=int(descriptor))).serve(), stand_in)


if __name__ == "__main__":
    _main()
