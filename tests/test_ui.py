"""Addresses of pages are shown where a server answers that knows the study's run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tuner.ledger import database
from tuner.operations import ui

KNOWN = "/api/2.0/mlflow/runs/get?run_id=known"


class Answering(BaseHTTPRequestHandler):
    """Answers as MLflow's server does: a run that it knows, or not found."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == KNOWN else 404)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_server_that_knows_the_run_shows_its_pages(places, port):
    assert ui.shows(places, "known", port)
    assert not ui.shows(places, "of another database", port)


def test_where_no_server_answers_there_are_no_pages(places):
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        free = server.server_port
    assert not ui.shows(places, "known", free)


def test_the_pages_of_a_tracking_server_are_its_own(tmp_path):
    served = database.addresses({"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}, tmp_path)
    assert ui.shows(served, "known")
