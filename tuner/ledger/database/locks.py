"""The lock under which tables are made and changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock
from sqlalchemy import text

from tuner.core.errors import UnavailableError
from tuner.ledger.database.addresses import Addresses
from tuner.ledger.database.engines import ledger_engine

KEY = 0x74756E6572  # "tuner"
"""Key of PostgreSQL's advisory lock."""


@contextmanager
def migration_lock(places: Addresses) -> Iterator[None]:
    """Hold the lock: an advisory one of the database's, or that of a file beside SQLite's.

    A transaction holds the advisory lock, not a session: behind a connection pooler a session's
    lock would be granted twice, and stay behind.
    """
    if places.file is None:
        engine = ledger_engine(places.ledger)
        try:
            with engine.execution_options(writes=True).connect() as tx:
                tx.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": KEY})
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
