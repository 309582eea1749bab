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
from tuner.core.processes import told_to_stop
from tuner.ledger.database import Addresses, pooled, tracking_client, upgrade_tracking
from tuner.tracking.mlflow.artifacts import served

PORT = 5000
"""Where the UI is looked for, unless it is taken."""
LOOK_SECONDS = 0.2
LIBRARIES = sysconfig.get_path("purelib")
ANSWER_SECONDS = 10.0
"""How long somebody else's server may take to answer."""


def serve(places: Addresses, port: int | None, say: Callable[[str], str | None]) -> int:
    """Run MLflow's server until it is interrupted; give its exit code.

    `say` is told where it is; a browser opens the page that it gives, if any. Without a port it is
    5000, or a free one where that is taken. Where somebody runs a server already, that one is
    meant.

    Raises `UnavailableError` when the port is taken, or that server does not answer.
    """
    if places.tracking.startswith("http"):
        url = served(places.tracking)
        _refuse_silent(url)
        page = say(url)
        if page is not None:
            webbrowser.open(page)
        return 0
    port = _free(PORT if port is None else port, otherwise=port is None)
    url = f"http://127.0.0.1:{port}"
    page = say(url)
    if places.file is None:
        tracking_client(places)  # only `tuner db upgrade` makes tables there
    else:
        upgrade_tracking(places)
    command = importing.command("mlflow", "server", "--host", "127.0.0.1")
    command += ["--port", str(port), "--workers", "1"]
    environment = importing.safe_environment() | {
        # not as an argument: a password would stand in the list of processes
        "MLFLOW_BACKEND_STORE_URI": pooled(places.tracking),
        # without its job runners, eight processes that people who look at curves do not need
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # uvicorn puts the current folder before the libraries, unless it is given another one
        "MLFLOW_UVICORN_OPTS": " ".join(
            [os.environ.get("MLFLOW_UVICORN_OPTS", ""), "--app-dir", shlex.quote(LIBRARIES)]
        ),
    }
    process = subprocess.Popen(  # noqa: S603 - MLflow's own program
        command,
        env=environment,
        stdout=sys.stderr,  # it tells there of every request
    )
    with told_to_stop("ending MLflow's server") as stop:
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
    """Return whether a UI shows a run at its link; the UI of another database does not."""
    if not places.owns_tracking:
        return True  # a server, which whoever reads the pages asks itself
    return _answers(port, f"/api/2.0/mlflow/runs/get?run_id={run_id}")


def _refuse_silent(url: str) -> None:
    """Raise `UnavailableError` unless somebody answers there, if only to refuse a login."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=ANSWER_SECONDS):  # noqa: S310
            pass
    except urllib.error.HTTPError:
        pass
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UnavailableError(
            f"no MLflow server answers at {url}: {reason}; start it, or set MLFLOW_TRACKING_URI to "
            "the address of one that runs"
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
    """Find out whether a port is free; with `otherwise` give any free one where it is not."""
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
