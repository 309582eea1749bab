"""HTTP endpoints of a service: /metrics, /healthz and /readyz, on a separate port.

- `/metrics`: `tuner.observability.metrics`, and counts over the whole ledger (`tuner_trials` ...).
- `/healthz`: the process is alive and its loops have heartbeats; 503 names the stuck loops. It
  does not check the database: restarting a service during an outage would lose what it holds.
- `/readyz`: the database is reachable and has this version's schema; 503 has the reason.
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
from tuner.ledger import Reader
from tuner.ledger.database import Addresses, check_schema
from tuner.ledger.study_totals import StudyTotals, StudyTotalsReader
from tuner.ledger.tables import HEAD
from tuner.ledger.totals import TotalsReader
from tuner.observability import metrics
from tuner.observability.logs import logger

STUCK_SECONDS = 600.0
"""Longest time between heartbeats: loading data, a training step, a batch of the recorder."""
CLIENT_SECONDS = 10.0
"""Timeout of a client, for its request and for reading the answer."""
CLIENTS = 32
"""Maximum number of clients that are served at a time."""
POLL_SECONDS = 0.1
"""How often the server checks whether to shut down."""

log = logger(__name__)


@contextmanager
def serving(
    port: int | None, host: str, engine: Engine, places: Addresses, named_studies: int = 0
) -> Iterator[str | None]:
    """Serve the endpoints while the body runs; yield their address, or None without a port.

    Metrics name so many studies, with their projects and people; with 0 they have no names. Raise
    `UnavailableError` if the port cannot be bound.
    """
    if port is None:
        yield None
        return
    try:
        server = _Server((host, port), _Handler)
    except OSError as error:
        raise UnavailableError(
            f"metrics cannot be served on {host}:{port}: {error.strerror or error}; use a "
            "different port for each service on a machine (--metrics-port, TUNER_METRICS_PORT)"
        ) from error
    keep_from_children(server.socket)  # a child that outlives this process would keep the port
    server.ready = partial(check_schema, places, engine)
    thread = threading.Thread(
        target=server.serve_forever, args=(POLL_SECONDS,), name="metrics", daemon=True
    )
    counts = LedgerCollector(engine, named_studies)
    metrics.REGISTRY.register(counts)
    thread.start()
    address = f"http://{host}:{server.server_address[1]}"
    log.info("serving metrics", address=address)
    try:
        yield address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        metrics.REGISTRY.unregister(counts)


class _Server(ThreadingTCPServer):
    allow_reuse_address = True  # a restarted service can bind its port at once
    daemon_threads = True
    request_queue_size = CLIENTS
    ready: Callable[[], None]
    """Raises `TunerError` unless the service can work."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._free = threading.BoundedSemaphore(CLIENTS)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether another client can be served; else its connection is closed."""
        return self._free.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a client in its thread, and close the connection after the timeout."""
        cut = threading.Timer(CLIENT_SECONDS, _cut, (request,))
        cut.daemon = True
        cut.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            cut.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an exception, unless the client closed the connection."""
        if not isinstance(sys.exception(), OSError):
            log.exception("a request for metrics failed")


def _cut(request: socket.socket) -> None:
    with suppress(OSError):  # it is closed
        request.shutdown(socket.SHUT_RDWR)


class LedgerCollector(Collector):
    """Counts over the whole ledger, read at each scrape; the same from every service."""

    def __init__(self, engine: Engine, named_studies: int = 0) -> None:
        self._totals = TotalsReader(engine)
        self._named = None
        if named_studies:
            self._named = StudyTotalsReader(Reader(engine, retry_timeout=0.0), named_studies)

    def describe(self) -> Iterator[Metric]:
        """Return nothing, so that registration does not query the database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the counts; without a database only `tuner_database_up`."""
        yield _gauge(
            "tuner_build_info", "Always 1; the label is the version.", "version", {_VERSION: 1}
        )
        try:
            found = self._totals.read()
            named = None if self._named is None else self._named.read()
        except TunerError:
            yield _gauge("tuner_database_up", "1 if the ledger could be read.", "", {"": 0})
            return
        yield _gauge("tuner_database_up", "1 if the ledger could be read.", "", {"": 1})
        yield _gauge("tuner_studies", "Studies.", "state", found.studies)
        yield _gauge("tuner_trials", "Trials.", "state", found.trials)
        yield _gauge(
            "tuner_studies_unattended",
            "Open studies with trials left that no worker has trained for a quarter of an hour.",
            "",
            {"": found.unattended},
        )
        yield _gauge("tuner_leases", "Trials leased by a worker.", "", {"": found.leases})
        yield _gauge(
            "tuner_leases_expired", "Trials whose lease has expired.", "", {"": found.expired}
        )
        yield _gauge(
            "tuner_retrainings_overdue",
            "Studies without a successful retraining for longer than they allow.",
            "",
            {"": found.overdue},
        )
        yield _gauge(
            "tuner_notifications_unsent",
            "Notifications that failed or are late, and those abandoned within a day.",
            "state",
            found.unsent,
        )
        yield _gauge(
            "tuner_trials_unpublished",
            "Ended trials that are not completely published.",
            "target",
            found.unpublished,
        )
        yield _gauge(
            "tuner_unpublished_seconds",
            "Time since the end of the first trial that is not completely published.",
            "target",
            found.unpublished_seconds,
        )
        if named is not None:
            yield from _of_studies(named)


_VERSION = f"{version(DISTRIBUTION)}, schema {HEAD}"


def _gauge(name: str, about: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, about, labels=[label] if label else [])
    for key, value in values.items():
        family.add_metric([key] if label else [], value)
    return family


def _of_studies(found: StudyTotals) -> Iterator[Metric]:
    """Yield what studies have spent, and their best values."""
    whose = ["study", "project", "person"]
    families = {
        "seconds": GaugeMetricFamily(
            "tuner_spent_seconds", "Time of workers that was spent.", labels=whose
        ),
        "gpu_seconds": GaugeMetricFamily(
            "tuner_spent_gpu_seconds", "Time of GPUs that was spent.", labels=whose
        ),
        "steps": GaugeMetricFamily(
            "tuner_spent_steps", "Steps for which trials were trained.", labels=whose
        ),
        "branch_steps": GaugeMetricFamily(
            "tuner_spent_branch_steps", "Steps of branches, by which trials are judged.",
            labels=whose,
        ),
        "saved_steps": GaugeMetricFamily(
            "tuner_saved_steps", "Steps that pruning has saved, net of branches.", labels=whose
        ),
    }  # fmt: skip
    for part, spend in found.spent.items():
        for name, family in families.items():
            family.add_metric([part.study, part.project, part.person], getattr(spend, name))
    best = GaugeMetricFamily(
        "tuner_best_value", "Best value of an open study so far.", labels=["study", "metric"]
    )
    for key, value in found.best.items():
        best.add_metric([*key], value)
    yield from (*families.values(), best)


class _Handler(BaseHTTPRequestHandler):
    """Serves the three paths, without a request log."""

    server_version = "tuner"
    sys_version = ""

    server: _Server

    def do_GET(self) -> None:  # the name is http.server's
        """Respond to a request."""
        match self.path.partition("?")[0]:
            case "/metrics":
                self._send(200, generate_latest(metrics.REGISTRY), CONTENT_TYPE_LATEST)
            case "/healthz":
                stuck = metrics.stuck_loops(STUCK_SECONDS)
                body = f"stuck for {STUCK_SECONDS:.0f} s: {', '.join(stuck)}" if stuck else "ok"
                self._send(503 if stuck else 200, body.encode())
            case "/readyz":
                try:
                    self.server.ready()
                except TunerError as error:
                    self._send(503, str(error).encode())
                else:
                    self._send(200, b"ok")
            case _:
                self._send(404, b"expected /metrics, /healthz or /readyz")

    def _send(self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        """Log nothing."""
