"""Locks that serialise what no row is locked for: creating studies, claiming retrainings, quotas.

On PostgreSQL a lock is a row, which only logins that may change it can hold; anybody may take an
advisory lock. On SQLite a transaction that writes is a lock by itself.
"""

from __future__ import annotations

from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, select, text

from tuner.core.errors import ConnectionLostError, UnavailableError

SUBMIT, RETRAIN, QUOTA = "submit", "retrain", "quota"
LOCK_SECONDS = 30
"""How long to wait for a lock; its holder needs milliseconds."""
TIMED_OUT = "55P03"

locks = Table(
    "tuner_locks",
    MetaData(),  # not the ledger's: SQLite has no such table
    Column("name", String(16), primary_key=True),
    Column("taken", Integer, nullable=False),
)
_HOLDERS = text("""
    SELECT DISTINCT a.usename, a.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.relation = 'tuner_locks'::regclass AND l.mode <> 'AccessShareLock' AND l.granted
    AND NOT EXISTS (SELECT FROM pg_locks w WHERE w.pid = l.pid AND NOT w.granted)
    ORDER BY 2
""")
"""Sessions that have locked rows and wait for nothing; others wait for these."""


def take(tx: Connection, name: str) -> None:
    """Hold a lock until the transaction ends. Raise `UnavailableError` if others hold it too long.

    No later wait of the transaction takes longer either.
    """
    if tx.dialect.name != "postgresql":
        return
    tx.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
    try:
        tx.execute(select(locks.c.name).where(locks.c.name == name).with_for_update())
    except ConnectionLostError as error:
        if getattr(error.__cause__, "sqlstate", None) != TIMED_OUT:
            raise
        with tx.engine.begin() as other:
            found = [f"{user!r} (process {pid})" for user, pid in other.execute(_HOLDERS)]
        raise UnavailableError(
            f"`{name}` has waited {LOCK_SECONDS} seconds for a lock that is held by the database "
            f"login {', '.join(found) or 'that has just gone'}; try again, or let the owner of the "
            "tables end that process with pg_terminate_backend"
        ) from error
