"""A TCP proxy whose faults are told to it: errors, silence, lost answers, cut connections."""

from __future__ import annotations

import random
import selectors
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress

ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close is a reset
PASS, ERRORS, SILENT, DEAF = "pass", "errors", "silent", "deaf"
"""What it does: passes all on; answers 500 itself; takes requests and does nothing; lets the
server do what it is asked and keeps its answers."""


class Proxy:
    """Listens on a port of this machine, and passes on to another one there."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.mode = PASS
        self.counts: Counter[str] = Counter()  # what it did, by mode; connections cut and refused
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def set(self, mode: str) -> None:
        """Change what is done from now on; whoever is connected has to come again."""
        with self._lock:
            self.mode = mode
        self.cut(1.0, "changed")

    def cut(self, share: float, count: str = "cut", chance: random.Random | None = None) -> int:
        """Reset a share of the connections, at random; give how many."""
        with self._lock:
            chosen = [one for one in self._open if (chance or random).random() < share]
            for one in chosen:
                with suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    one.shutdown(socket.SHUT_RDWR)
        self.counts[count] += len(chosen)
        return len(chosen)

    def close(self) -> None:
        """Take no more connections, and end those that there are."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # a close alone wakes nobody who accepts
        self._listener.close()
        self.cut(1.0)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:  # so that a change of the mode cuts whoever came before it
                self._open.add(client)
                mode = self.mode
            threading.Thread(target=self._serve, args=(client, mode), daemon=True).start()

    def _serve(self, client: socket.socket, mode: str) -> None:
        with client:
            try:
                if mode == ERRORS:
                    self._refuse(client)
                elif mode == SILENT:
                    while client.recv(65536):
                        self.counts[SILENT] += 1
                else:
                    self._pass_on(client, mode)
            except ConnectionRefusedError:
                self.counts["refused"] += 1
            except OSError:
                self.counts["broken"] += 1
            finally:
                with self._lock:
                    self._open.discard(client)

    def _refuse(self, client: socket.socket) -> None:
        """Answer 500, and take the rest of the request: a close before that would be a reset."""
        client.recv(65536)
        self.counts[ERRORS] += 1  # before the answer: who has that may look at once
        client.sendall(ERROR)
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass

    def _pass_on(self, client: socket.socket, mode: str) -> None:
        with (
            socket.create_connection(("127.0.0.1", self.target)) as server,
            selectors.DefaultSelector() as ready,
        ):
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in ready.select():
                    source, sink = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    content = source.recv(65536)
                    if not content:
                        return
                    if mode == DEAF and source is server:
                        self.counts[DEAF] += 1
                        continue
                    sink.sendall(content)
