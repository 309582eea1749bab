"""The HTTP endpoints of a service: /metrics, /healthz and /readyz.

- `/metrics`: the numbers of `tuner.observability.metrics`, and counts over the whole ledger
  (`tuner_trials` ...).
- `/healthz`: the process lives and its loops have heartbeats; 503 names those without. It does not
  depend on the database: a restart during an outage would lose what the service holds.
- `/readyz`: the database can be reached and has this version's schema; 503 gives the reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from socketserver import ThreadingTCPServer

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
"""The longest time between two heartbeats: loading data, a step, a batch of a recorder."""
POLL_SECONDS = 0.1
"""How often the server checks whether it should end."""

log = logger(__name__)


@contextmanager
def serving(port: int | None, host: str, engine: Engine, places: Addresses) -> Iterator[str | None]:
    """Serve while the body runs, unless `port` is None. Yield and log the address.

    Raise `UnavailableError` if the port cannot be opened.
    """
    if port is None:
        yield None
        return
    try:
        server = _Server((host, port), _Answer)
    except OSError as error:
        raise UnavailableError(
            f"metrics cannot be served on {host}:{port}: {error.strerror or error}; use a "
            "different port for each service of a machine (--metrics-port, TUNER_METRICS_PORT)"
        ) from error
    keep_from_children(server.socket)  # a surviving child would keep the port in use
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
    allow_reuse_address = True  # a restarted service gets its port at once
    daemon_threads = True
    ready: Callable[[], None]
    """Raise `TunerError` unless the service can work."""


class InLedger(Collector):
    """Counts over the whole ledger, read at each scrape; those of one service are enough."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterator[Metric]:
        """Return no descriptions, so that registering needs no database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the counts; without a database only that it is down."""
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
    """Serve the three paths; log nothing, since requests come every few seconds."""

    server_version = "tuner"
    sys_version = ""

    server: _Server

    def do_GET(self) -> None:  # the name that http.server calls
        """Serve a request."""
        match self.path.partition("?")[0]:
            case "/metrics":
                self._send(200, generate_latest(metrics.REGISTRY), CONTENT_TYPE_LATEST)
            case "/healthz":
                stuck = metrics.stuck(STUCK_SECONDS)
                text = f"stuck for {STUCK_SECONDS:.0f} s: {', '.join(stuck)}" if stuck else "ok"
                self._send(503 if stuck else 200, text.encode())
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

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Log nothing."""
