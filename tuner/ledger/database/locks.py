"""The lock under which tables are made and changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from tuner.core.errors import UnavailableError
from tuner.ledger.database.addresses import LEDGER_SCHEMA, Addresses
from tuner.ledger.database.engines import ledger_engine

LOCK_TABLE = "tuner_migration_lock"
"""An empty table that only its owner may lock; anybody may take an advisory lock."""
TABLE = f"{LEDGER_SCHEMA}.{LOCK_TABLE}"
TAKEN = frozenset({"23505", "42P06", "42P07"})
"""Codes of PostgreSQL for what another transaction has just made."""


@contextmanager
def migration_lock(places: Addresses) -> Iterator[None]:
    """Hold the lock: on a table of the database, or of a file beside SQLite's.

    A transaction holds the lock, not a session: behind a connection pooler a session's lock would
    be granted twice, and stay behind. Reading or dumping the table does not wait for it.
    """
    if places.file is None:
        engine = ledger_engine(places.ledger)
        try:
            _make_table(engine)
            with engine.execution_options(writes=True).connect() as tx:
                tx.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                tx.execute(text(f"LOCK TABLE {TABLE} IN EXCLUSIVE MODE"))
                yield  # it goes with the connection, whatever happens to this process
        finally:
            engine.dispose()
        return
    if not places.lock.parent.is_dir():  # the lock would make it
        raise UnavailableError(f"there is no folder {places.lock.parent}; make it first")
    try:
        with FileLock(places.lock):
            yield
    except OSError as error:
        raise UnavailableError(f"cannot write beside the database: {error}") from error


def _make_table(engine: Engine) -> None:
    """Make the lock's table, and the ledger's schema for it, where they are missing."""
    for what, statement in (
        ("to_regnamespace", f"CREATE SCHEMA IF NOT EXISTS {LEDGER_SCHEMA}"),
        ("to_regclass", f"CREATE TABLE IF NOT EXISTS {TABLE} ()"),
    ):
        name = LEDGER_SCHEMA if what == "to_regnamespace" else TABLE
        try:
            with engine.execution_options(writes=True).begin() as tx:
                if tx.scalar(text(f"SELECT {what}(:name)"), {"name": name}) is None:
                    tx.execute(text(statement))
        except (IntegrityError, ProgrammingError) as error:  # `IF NOT EXISTS` is not atomic
            if getattr(error.orig, "sqlstate", None) not in TAKEN:
                raise
