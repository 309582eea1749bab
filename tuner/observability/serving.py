"""What a service says of itself over HTTP: /metrics, /healthz and /readyz, on a port of its own.

- `/metrics`: the numbers of `tuner.observability.metrics`, and counts over the whole ledger
  (`tuner_trials` ...).
- `/healthz`: the process lives and its loops turn; 503 names those that do not. It asks nobody
  else: who restarted a service because its database is away would lose what it holds.
- `/readyz`: the database can be reached and has this version's schema; 503 says what is wrong.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from socketserver import ThreadingTCPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import Engine

from tuner.core.environment import DISTRIBUTION
from tuner.core.errors import TunerError, UnavailableError
from tuner.core.forking import keep_from_children
from tuner.ledger.database import Addresses, check_schema
from tuner.ledger.tables import HEAD
from tuner.ledger.totals import totals
from tuner.observability import metrics
from tuner.observability.logs import logger

STUCK_SECONDS = 600.0
"""How long a loop may take to turn: loading data, a step, a batch of a recorder's."""
CLIENT_SECONDS = 10.0
"""How long a client may take, to ask and to read the answer."""
CLIENTS = 32
"""How many clients are answered at a time."""
POLL_SECONDS = 0.1
"""How long the server takes to notice that it should end."""

log = logger(__name__)


@contextmanager
def serving(port: int | None, host: str, engine: Engine, places: Addresses) -> Iterator[str | None]:
    """Answer while the body runs, unless there is no port; give the address, and log it.

    Raises `UnavailableError` when the port cannot be had.
    """
    if port is None:
        yield None
        return
    try:
        server = _Server((host, port), _Answer)
    except OSError as error:
        raise UnavailableError(
            f"metrics cannot be served on {host}:{port}: {error.strerror or error}; give each "
            "service of a machine another port (--metrics-port, TUNER_METRICS_PORT)"
        ) from error
    keep_from_children(server.socket)  # one that outlives this process would keep the port taken
    server.ready = partial(check_schema, places, engine)
    thread = threading.Thread(
        target=server.serve_forever, args=(POLL_SECONDS,), name="metrics", daemon=True
    )
    counts = InLedger(engine)
    metrics.REGISTRY.register(counts)
    thread.start()
    address = f"http://{host}:{server.server_address[1]}"
    log.info("metrics are served", address=address)
    try:
        yield address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        metrics.REGISTRY.unregister(counts)


class _Server(ThreadingTCPServer):
    allow_reuse_address = True  # a service that is started again has its port at once
    daemon_threads = True
    request_queue_size = CLIENTS
    ready: Callable[[], None]
    """Raises `TunerError` unless the service can work."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._free = threading.BoundedSemaphore(CLIENTS)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether another client may be answered; else its connection is closed."""
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a client in its thread, and cut the connection when its time is up."""
        cut = threading.Timer(CLIENT_SECONDS, _cut, (request,))
        cut.daemon = True
        cut.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            cut.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what was raised; a client that went away is no error."""
        if not isinstance(sys.exception(), OSError):
            log.exception("a request for metrics failed")


def _cut(request: socket.socket) -> None:
    with suppress(OSError):  # it is closed
        request.shutdown(socket.SHUT_RDWR)


class InLedger(Collector):
    """Counts over the whole ledger, asked for at each scrape; any one service's are enough."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterator[Metric]:
        """Describe nothing, so that registering asks no database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Count; where the database is away there is only that to say."""
        yield _gauge("tuner_build_info", "1; which version this is.", "version", {_VERSION: 1})
        try:
            found = totals(self._engine)
        except TunerError:
            yield _gauge("tuner_database_up", "Whether the ledger could be read.", "", {"": 0})
            return
        yield _gauge("tuner_database_up", "Whether the ledger could be read.", "", {"": 1})
        yield _gauge("tuner_studies", "Studies.", "state", found.studies)
        yield _gauge("tuner_trials", "Trials.", "state", found.trials)
        yield _gauge("tuner_leases", "Trials that a worker holds.", "", {"": found.leases})
        yield _gauge(
            "tuner_leases_expired", "Of these, of silent workers.", "", {"": found.expired}
        )
        yield _gauge(
            "tuner_trials_unpublished",
            "Ended trials whose end is not published.",
            "target",
            found.unpublished,
        )


_VERSION = f"{version(DISTRIBUTION)}, schema {HEAD}"


def _gauge(name: str, about: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, about, labels=[label] if label else [])
    for key, value in values.items():
        family.add_metric([key] if label else [], value)
    return family


class _Answer(BaseHTTPRequestHandler):
    """Answers the three paths; logs nothing, since it is asked every few seconds."""

    server_version = "tuner"
    sys_version = ""

    server: _Server

    def do_GET(self) -> None:  # the name that http.server calls
        """Answer."""
        match self.path.partition("?")[0]:
            case "/metrics":
                self._say(200, generate_latest(metrics.REGISTRY), CONTENT_TYPE_LATEST)
            case "/healthz":
                stuck = metrics.stuck(STUCK_SECONDS)
                said = f"stuck for {STUCK_SECONDS:.0f} s: {', '.join(stuck)}" if stuck else "ok"
                self._say(503 if stuck else 200, said.encode())
            case "/readyz":
                try:
                    self.server.ready()
                except TunerError as error:
                    self._say(503, str(error).encode())
                else:
                    self._say(200, b"ok")
            case _:
                self._say(404, b"expected /metrics, /healthz or /readyz")

    def _say(self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Say nothing."""
