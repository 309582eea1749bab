"""Inserts that say what happens to a row that is there already, for the databases that we use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert(tx: Connection, into: Table) -> Any:
    """Begin an INSERT that has ON CONFLICT, in the dialect of the connection."""
    return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[tx.dialect.name](into)


def insert_new(tx: Connection, into: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert rows unless there are such: another may insert the same at the same moment."""
    given = list(rows)
    if given:
        tx.execute(insert(tx, into).on_conflict_do_nothing(), given)
