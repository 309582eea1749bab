"""INSERT ... ON CONFLICT for SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table, func, select
from sqlalchemy import cast as as_type
from sqlalchemy.dialects import postgresql, sqlite


def insert(tx: Connection, into: Table) -> Any:
    """Return an INSERT that supports ON CONFLICT, in the dialect of the connection."""
    return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[tx.dialect.name](into)


def insert_new(tx: Connection, into: Table, rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert rows, ignoring existing ones, which another process may insert concurrently."""
    given = list(rows)
    if given:
        tx.execute(insert(tx, into).on_conflict_do_nothing(), given)


def insert_columns(tx: Connection, into: Table, columns: Mapping[str, Sequence[Any]]) -> None:
    """Insert tens of thousands of rows, given by column, ignoring existing ones.

    The values are passed to the driver without conversion.
    """
    if tx.dialect.name == "postgresql":  # one statement; a statement per row takes twice the time
        arrays = [
            as_type(values, postgresql.ARRAY(into.c[name].type, dimensions=1))
            for name, values in columns.items()
        ]
        given = func.unnest(*arrays).table_valued(*columns).render_derived()
        rows = insert(tx, into).from_select(list(columns), select(*given.c))
        tx.execute(rows.on_conflict_do_nothing())
    else:  # without SQLAlchemy, which processes every value of every row
        statement = insert(tx, into).on_conflict_do_nothing()
        compiled = statement.compile(dialect=tx.dialect, column_keys=list(columns))
        ordered = [columns[name] for name in compiled.positiontup]
        tx.exec_driver_sql(str(compiled), list(zip(*ordered, strict=True)))
