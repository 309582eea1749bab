"""Comparing tables in a database with their definitions, and creating what keeps them in order.

Migrations make a schema once; indexes and constraints can be dropped later by hand; without them
two workers could hold the same lease, with no error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    Index,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
    inspect,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import AddConstraint, CreateIndex, DropIndex, ExecutableDDLElement

from tuner.core.errors import ConnectionLostError, UnavailableError
from tuner.ledger.database import checks
from tuner.ledger.database.addresses import Addresses
from tuner.ledger.database.engines import ledger_engine
from tuner.ledger.database.locks import migration_lock
from tuner.ledger.tables import metadata


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference between a table and its definition."""

    what: str  # "the index X of the table T is missing"
    statements: tuple[str, ...] = ()  # SQL that restores it, if any does
    has_rows: bool = False  # and its rows are missing with it


def differences(tx: Connection, tables: Iterable[Table]) -> list[Difference]:
    """Return how tables, columns, indexes and unique constraints differ from their definitions.

    What a database has beyond its definition is left alone.
    """
    return [one for table in tables for one in _of_table(tx, table)]


def ledger_differences(places: Addresses) -> list[Difference]:
    """Return how the ledger's tables differ from their definitions."""
    engine = ledger_engine(places.ledger)
    try:
        with engine.begin() as tx:
            unchecked = [
                Difference(
                    what=f"the check of {one.what} is missing",
                    statements=(one.statement,),
                )
                for one in checks.missing(tx)
            ]
            return [*differences(tx, metadata.sorted_tables), *unchecked]
    finally:
        engine.dispose()


def recreate(places: Addresses) -> dict[str, str]:
    """Create the ledger's missing indexes and constraints.

    Return why one could not be created, by what is missing: rows that contradict a constraint, or
    a role that does not own the tables.
    """
    failed: dict[str, str] = {}
    engine = ledger_engine(places.ledger)
    try:
        with migration_lock(places):
            for one in ledger_differences(places):
                try:
                    with engine.execution_options(writes=True).begin() as tx:
                        for statement in one.statements:
                            tx.execute(text(statement))
                except (DBAPIError, UnavailableError) as error:
                    cause = error.orig if isinstance(error, DBAPIError) else error
                    failed[one.what] = " ".join(str(cause).split())
    except ConnectionLostError:
        raise
    except UnavailableError as error:  # only the owner may lock
        failed = dict.fromkeys((one.what for one in ledger_differences(places)), str(error))
    finally:
        engine.dispose()
    return failed


def _of_table(tx: Connection, table: Table) -> Iterator[Difference]:
    found = inspect(tx)
    if not found.has_table(table.name):
        yield Difference(what=f"the table {table.name} is missing", has_rows=True)
        return
    columns = {column["name"] for column in found.get_columns(table.name)}
    for column in table.columns:
        if column.name not in columns:
            yield Difference(
                what=f"the column {column.name} of {table.name} is missing", has_rows=True
            )
    if not columns >= set(table.columns.keys()):
        return
    key = set(found.get_pk_constraint(table.name)["constrained_columns"])
    if key != {column.name for column in table.primary_key}:
        yield _without(tx, table.primary_key, "primary key")
    unique = {frozenset(one["column_names"]) for one in found.get_unique_constraints(table.name)}
    for constraint in sorted(table.constraints, key=str):
        if not isinstance(constraint, UniqueConstraint):
            continue
        if frozenset(constraint.columns.keys()) not in unique:
            yield _without(tx, constraint, "unique constraint")
    indexes = {one["name"]: one for one in found.get_indexes(table.name)}
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        yield from _of_index(tx, index, indexes.get(str(index.name)))


def _without(
    tx: Connection, constraint: UniqueConstraint | PrimaryKeyConstraint, kind: str
) -> Difference:
    columns = ", ".join(constraint.columns.keys())
    what = f"the {kind} ({columns}) of {constraint.table.name} is missing"
    if tx.dialect.name == "sqlite":  # it has constraints within its tables
        return Difference(what=what)
    # the definition stays in its table, which may be created elsewhere
    added = AddConstraint(constraint, isolate_from_table=False)
    return Difference(what=what, statements=_sql(tx, added))


def _of_index(tx: Connection, index: Index, found: Any) -> Iterator[Difference]:
    assert index.table is not None
    kind = "unique index" if index.unique else "index"
    name = f"the {kind} {index.name} of {index.table.name}"
    if found is None:
        yield Difference(what=f"{name} is missing", statements=_sql(tx, CreateIndex(index)))
    elif _shape(found) != _defined(tx, index):
        again = _sql(tx, DropIndex(index), CreateIndex(index))
        yield Difference(what=f"{name} differs from its definition", statements=again)


def _sql(tx: Connection, *elements: ExecutableDDLElement) -> tuple[str, ...]:
    return tuple(" ".join(str(one.compile(dialect=tx.dialect)).split()) for one in elements)


def _shape(found: Any) -> tuple[bool, Collection[str], bool]:
    """Return whether an index is unique, its columns, and whether it is of some rows only."""
    partial = any(key.endswith("_where") for key in found.get("dialect_options", {}))
    return bool(found["unique"]), list(found["column_names"]), partial


def _defined(tx: Connection, index: Index) -> tuple[bool, Collection[str], bool]:
    partial = index.dialect_options[tx.dialect.name]["where"] is not None
    return bool(index.unique), index.columns.keys(), partial
