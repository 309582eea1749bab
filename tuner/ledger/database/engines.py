"""Engines for the ledger: their options, and the translation of their errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
)
from sqlalchemy.pool import ConnectionPoolEntry

from tuner.core.errors import ConnectionLostError, UnavailableError
from tuner.core.forking import keep_from_children
from tuner.ledger.database.addresses import without_password
from tuner.ledger.database.pooling import POOLED, follow_search_path
from tuner.ledger.tables import read_json

BUSY_SECONDS = 60
"""How long a SQLite connection waits for another's transaction."""

CONNECTION = {
    "connect_timeout": 10,  # seconds; libpq would wait for minutes
    "keepalives_idle": 10,  # a server that vanished is noticed
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
}
"""Options of libpq for every connection, unless the URL sets them."""

IDLE_SECONDS = 30
"""How long PostgreSQL lets a transaction wait for a process that was suspended with locks held."""

NO_PRIVILEGE = "42501"
UNUSABLE_CODES = frozenset({NO_PRIVILEGE, "42P01", "3F000", "25006"})
"""Codes of PostgreSQL: no privilege, no table, no schema, read-only."""
REFUSES_OPTIONS = "unsupported startup parameter: options"
"""The error of a pgbouncer that is not configured to ignore them."""
TRANSIENT_CODES = frozenset({"25P03", "40001", "40P01", "55P03", "53300"})
"""Codes of PostgreSQL for transient errors: idle, conflicts, deadlocks, too many connections."""


def ledger_engine(url: str) -> Engine:
    """Return an engine for the ledger; it never makes tables.

    With the execution option `writes=True`, a transaction on SQLite begins with BEGIN IMMEDIATE, so
    that a writer's snapshot is never stale; without it, a transaction on PostgreSQL reads one
    snapshot. A database that cannot be used (unreachable, locked, read-only, full, broken) raises
    `UnavailableError`, and `ConnectionLostError` where a retry may succeed.
    """
    engine = _sqlite(url) if url.startswith("sqlite") else _postgresql(url)

    @event.listens_for(engine, "handle_error")
    def translate(context: ExceptionContext) -> BaseException | None:
        return _translated(url, context.sqlalchemy_exception, context.is_disconnect)

    return engine


def _sqlite(url: str) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, json_deserializer=read_json)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late
        connection.text_factory = _text
        for pragma in ("foreign_keys=ON", "journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _text(content: bytes) -> str:
    """Decode a text; the driver would refuse all rows of a query for one that is not UTF-8."""
    return content.decode("utf-8", "replace")


def _postgresql(url: str) -> Engine:
    engine = create_engine(url, pool_pre_ping=True, connect_args=connect_args(url))
    follow_search_path(engine)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: ConnectionPoolEntry) -> None:
        keep_from_children(connection)  # or the server would keep the connection of a dead process
        if POOLED not in record.info:
            connection.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
            connection.commit()

    @event.listens_for(engine, "engine_connect")
    def read_one_snapshot(connection: Connection) -> None:
        if not connection.get_execution_options().get("writes", False):
            connection.execution_options(isolation_level="REPEATABLE READ")

    return engine


def connect_args(url: str) -> dict[str, Any]:
    """Return the arguments of a database's driver beside its URL."""
    if url.startswith("sqlite"):
        return {"timeout": BUSY_SECONDS}
    return {key: value for key, value in CONNECTION.items() if f"{key}=" not in url}


def _translated(
    url: str, error: BaseException | None, disconnected: bool
) -> UnavailableError | None:
    if not isinstance(error, DBAPIError):
        return None
    if url.startswith("sqlite"):
        broken = isinstance(error, OperationalError) or type(error) is DatabaseError
        return _unavailable(url, error.orig) if broken else None
    if disconnected or is_lost(error):
        return _unavailable(url, error.orig, ConnectionLostError)
    code = getattr(error.orig, "sqlstate", None)
    broken = isinstance(error, OperationalError | InternalError | InterfaceError)
    if broken or code in UNUSABLE_CODES:
        return _unavailable(url, error.orig)
    return None


def _unavailable(
    url: str, error: BaseException | None, kind: type[UnavailableError] = UnavailableError
) -> UnavailableError:
    message = " ".join(str(error).split())
    if REFUSES_OPTIONS in message:
        message += "; let the connection pooler ignore it: ignore_startup_parameters = options"
    if getattr(error, "sqlstate", None) == NO_PRIVILEGE:
        return kind(
            f"this login of the database {without_password(url)} may not do that "
            f"({without_password(message)}); use one that may: a worker's to change studies, and "
            "the owner's of the tables to delete or to set quotas"
        )
    return kind(f"the database {without_password(url)} cannot be used: {without_password(message)}")


@contextmanager
def reached(url: str) -> Iterator[None]:
    """Turn the driver's errors about a database that cannot be used into `UnavailableError`."""
    try:
        yield
    except DBAPIError as error:
        lost = is_lost(error) and not url.startswith("sqlite")
        kind = ConnectionLostError if lost else UnavailableError
        raise _unavailable(url, error.orig, kind) from error


def is_lost(error: DBAPIError) -> bool:
    """Return whether an error of PostgreSQL means a lost connection or another transient fault."""
    code = getattr(error.orig, "sqlstate", None) or ""
    transient = code in TRANSIENT_CODES or code.startswith(("08", "57P"))
    never = isinstance(error, OperationalError) and not code  # or none was made
    if REFUSES_OPTIONS in str(error.orig):
        return False
    return error.connection_invalidated or transient or never
