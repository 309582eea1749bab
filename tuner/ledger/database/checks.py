"""CHECK constraints of PostgreSQL, made from the rules by which rows are read.

They are made by each upgrade, not by migrations: a rule that changes replaces its constraint.
SQLite has none: they would need new tables, and whoever can write the file can remove them.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from tuner.ledger.decoding import condition
from tuner.ledger.tables import metadata

PREFIX = "tuner_check"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ColumnCheck:
    """The constraint of a column."""

    table: str
    column: str
    name: str  # with a digest of the condition
    condition: str

    @property
    def statement(self) -> str:
        """The SQL that adds it."""
        return f"ALTER TABLE {self.table} ADD CONSTRAINT {self.name} CHECK ({self.condition})"


def missing(tx: Connection) -> list[ColumnCheck]:
    """Return the constraints that a database does not have; none on SQLite."""
    if tx.dialect.name != "postgresql":
        return []
    there = _present(tx)
    return [one for one in _defined() if (one.table, one.name) not in there]


def create(tx: Connection) -> None:
    """Add missing constraints, and drop those of other rules.

    One that existing rows contradict is left out: with it, no statement could change such a row. It
    is logged, and reported by `tuner doctor` until the rows are corrected.
    """
    for table, name in _present(tx) - {(one.table, one.name) for one in _defined()}:
        tx.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT {name}"))
    for one in missing(tx):
        try:
            with tx.begin_nested():
                tx.execute(text(one.statement))
        except IntegrityError:
            log.warning(
                "rows of %s contradict %s; `tuner doctor` lists them", one.table, one.condition
            )


def _defined() -> list[ColumnCheck]:
    found = []
    for table in metadata.sorted_tables:
        for column in table.columns:
            rule = condition(column)
            if rule is not None:
                digest = hashlib.sha256(rule.encode()).hexdigest()[:8]
                name = f"{PREFIX}_{column.name}_{digest}"
                made = ColumnCheck(table=table.name, column=column.name, name=name, condition=rule)
                found.append(made)
    return found


def _present(tx: Connection) -> set[tuple[str, str]]:
    """Return the tables and names of our constraints."""
    query = text(
        "SELECT t.relname, c.conname FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid "
        "WHERE c.contype = 'c' AND c.conname LIKE :ours "
        "AND c.connamespace = current_schema()::regnamespace"
    )
    return {(str(table), str(name)) for table, name in tx.execute(query, {"ours": f"{PREFIX}%"})}
