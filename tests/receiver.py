"""A receiver of notifications: a real server that keeps what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


@dataclass
class Receiver:
    """What a server was sent; it answers `answers` in turn, then 204."""

    address: str = ""
    heard: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)  # of the header, one a message
    answers: list[int] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a process that may send to it."""
        return {"TUNER_NOTIFY_WEBHOOK": self.address, "TUNER_NOTIFY_ALLOW": "127.0.0.1"}

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What a receiver that heeds idempotency keys has: each message once, without its id."""
        once = {one["id"]: one for one in self.heard}
        return [{k: v for k, v in one.items() if k != "id"} for one in once.values()]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver on a free port."""
    made = Receiver()

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.heard.append(json.loads(body))
            made.keys.append(self.headers["Idempotency-Key"])
            self.send_response(made.answers.pop(0) if made.answers else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        made.address = f"http://127.0.0.1:{server.server_port}/ended"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        server.shutdown()
        thread.join()
