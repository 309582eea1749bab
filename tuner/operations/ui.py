"""The MLflow UI on our database."""

from __future__ import annotations

import http.client
import os
import shlex
import socket
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable

from tuner.core import importing
from tuner.core.errors import UnavailableError
from tuner.core.processes import stop_on_signals
from tuner.ledger.database import Addresses, pooled, tracking_client, ui_address, upgrade_tracking

PORT = 5000
"""The default port."""
LOOK_SECONDS = 0.2
LIBRARIES = sysconfig.get_path("purelib")
ANSWER_SECONDS = 10.0
"""Timeout of a request to an MLflow server."""


def serve(places: Addresses, port: int | None, announce: Callable[[str], str | None]) -> int:
    """Run MLflow's server until it is interrupted. Return its exit code.

    `announce` is called with the server's URL and may return a page, which a browser then opens.
    The default port is 5000, or a free one if that is taken. If MLFLOW_TRACKING_URI names a server,
    that one is announced and none is started.

    Raise `UnavailableError` if the port is taken, or if that server does not answer.
    """
    if places.tracking.startswith("http"):
        url = ui_address(places.tracking)
        _require_server(url)
        page = announce(url)
        if page is not None:
            webbrowser.open(page)
        return 0
    port = _free(PORT if port is None else port, otherwise=port is None)
    url = f"http://127.0.0.1:{port}"
    page = announce(url)
    if places.file is None:
        tracking_client(places)  # only `tuner db upgrade` creates tables there
    else:
        upgrade_tracking(places)
    command = importing.command("mlflow", "server", "--host", "127.0.0.1")
    command += ["--port", str(port), "--workers", "1"]
    environment = importing.safe_environment() | {
        # not as an argument: the list of processes would show a password
        "MLFLOW_BACKEND_STORE_URI": pooled(places.tracking),
        # without its eight job runner processes, which viewing curves does not need
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # uvicorn puts the current folder before the libraries, unless another folder is given
        "MLFLOW_UVICORN_OPTS": " ".join(
            [os.environ.get("MLFLOW_UVICORN_OPTS", ""), "--app-dir", shlex.quote(LIBRARIES)]
        ),
    }
    process = subprocess.Popen(  # noqa: S603 - MLflow's own program
        command,
        env=environment,
        stdout=sys.stderr,  # a line for every request
    )
    with stop_on_signals("ending MLflow's server") as stop:
        while process.poll() is None and not stop.wait(LOOK_SECONDS):
            if page is not None and _answers(port):
                webbrowser.open(page)
                page = None
        if not stop.is_set():
            return int(process.returncode)
        process.terminate()
        process.wait()
    return 0


def shows(places: Addresses, run_id: str, port: int = PORT) -> bool:
    """Return whether the UI at a run's link shows this run, and not another database."""
    if not places.owns_tracking:
        return True  # a server of its own, which is not asked
    return _answers(port, f"/api/2.0/mlflow/runs/get?run_id={run_id}")


def _require_server(url: str) -> None:
    """Raise `UnavailableError` unless a server responds; a 401 or 403 counts as a response."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=ANSWER_SECONDS):  # noqa: S310
            pass
    except urllib.error.HTTPError:
        pass
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UnavailableError(
            f"no MLflow server answers at {url}: {reason}; start it, or set MLFLOW_TRACKING_URI to "
            "the address of a running one"
        ) from error


def _answers(port: int, path: str = "/health") -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LOOK_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free(port: int, *, otherwise: bool) -> int:
    """Return the port if it is free; with `otherwise`, return any free port if it is not."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if otherwise:
                return _free(0, otherwise=False)
            raise UnavailableError(
                f"port {port} is taken; `tuner ui` without --port finds a free one"
            ) from error
        return int(probe.getsockname()[1])
