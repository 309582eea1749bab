"""The MLflow UI on our database."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable

from tuner.errors import UnavailableError
from tuner.processes import told_to_stop
from tuner.storage import Addresses, tracking_client, upgrade_tracking, without_password

LOOK_SECONDS = 0.2


def serve(places: Addresses, port: int, say: Callable[[str], None]) -> int:
    """Run MLflow's server until it is interrupted; give its exit code.

    `say` is told where it is.

    Raises `UnavailableError` when the port is taken.
    """
    port = _free(port)
    url = f"http://127.0.0.1:{port}"
    if places.tracking.startswith("http"):
        url = without_password(places.tracking)
    say(url)
    if places.tracking.startswith("http"):
        return 0  # somebody runs that server already
    if places.file is None:
        tracking_client(places)  # only `tuner db upgrade` makes tables there
    else:
        upgrade_tracking(places)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    environment = os.environ | {
        # not as an argument: a password would stand in the list of processes
        "MLFLOW_BACKEND_STORE_URI": places.tracking,
        # without its job runners, eight processes that people who look at curves do not need
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    process = subprocess.Popen(  # noqa: S603 - MLflow's own program
        command,
        env=environment,
        stdout=sys.stderr,  # it tells there of every request
    )
    with told_to_stop("ending MLflow's server") as stop:
        while process.poll() is None and not stop.wait(LOOK_SECONDS):
            pass
        if not stop.is_set():
            return int(process.returncode)
        process.terminate()
        process.wait()
    return 0


def _free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UnavailableError(
                f"port {port} is taken; `tuner ui --port 0` finds a free one"
            ) from error
        return int(probe.getsockname()[1])
