"""A real PostgreSQL: a cluster in a folder of its own, and databases in it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

BINARIES = Path(os.environ.get("POSTGRES_BIN", "/usr/lib/postgresql/15/bin"))
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # survives a killed server, if not a power cut
    "max_connections": "200",
    "log_min_messages": "fatal",
}


@dataclass(frozen=True)
class Cluster:
    """A PostgreSQL server that tests may stop, kill and start again."""

    folder: Path
    port: int
    settings: Mapping[str, str] = field(default_factory=lambda: SETTINGS)
    _names: Iterator[int] = field(default_factory=count)

    def url(self, database: str, user: str = "postgres", password: str = "") -> str:
        """Give the URL of a database."""
        login = f"{user}:{password}" if password else user
        return f"postgresql://{login}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = " ".join(f"-c {key}={value}" for key, value in self.settings.items())
        self._control("start", "-o", f"-p {self.port} -k {self.folder} {options}")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; `immediate` is as if it had been killed."""
        self._control("stop", "-m", mode)

    def database(self, template: str = "template1") -> str:
        """Make a database, empty or a copy; give its URL."""
        name = f"made_{os.getpid()}_{next(self._names)}"
        self.cut(template)  # a template must have no connections
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def cut(self, database: str) -> None:
        """Cut every connection to a database."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{database}' AND pid <> pg_backend_pid()"
        )

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run a statement as the administrator."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)

    def _control(self, *arguments: str) -> None:
        _as_postgres("pg_ctl", "-D", str(self.folder / "data"), "-w", "-s", *arguments)


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    """Ask PostgreSQL, past all of our code."""
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


@contextmanager
def cluster(**settings: str) -> Iterator[Cluster]:
    """Make a cluster, with other settings than the tests' if need be; clear it away at the end."""
    folder = Path(tempfile.mkdtemp(prefix="tuner-postgres-"))
    owner = _owner()
    if owner:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    try:
        data = str(folder / "data")
        _as_postgres("initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync")
        made = Cluster(folder, _free_port(), SETTINGS | settings)
        made.start()
        try:
            yield made
        finally:
            made.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _as_postgres(program: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs; they refuse to be run by root."""
    owner = _owner()
    done = subprocess.run(
        [BINARIES / program, *arguments],
        check=False,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        user=owner.pw_uid if owner else None,
        group=owner.pw_gid if owner else None,
        extra_groups=[] if owner else None,
        preexec_fn=_ignore_interrupts,
    )
    assert done.returncode == 0, f"{program}: {done.stderr}"


def _ignore_interrupts() -> None:
    """Keep Ctrl-C for the tests: the server is stopped by them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _owner() -> pwd.struct_passwd | None:
    return pwd.getpwnam("postgres") if os.geteuid() == 0 else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Maker = Callable[[], str]
