"""CHECK constraints on types and ranges, made from the rules by which rows are read.

They are made by each upgrade, not by migrations: a rule that changes replaces its constraint.
PostgreSQL has one for each column. SQLite, which adds none to a table that exists, has triggers
that refuse the same: one for new rows of each table, and one for changes of each column. What a row
holds already is no concern of a trigger, so that a bad row stops no statement.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Column, Connection, Table, text
from sqlalchemy.exc import IntegrityError

from tuner.ledger.decoding import condition, condition_with_type, expected_in
from tuner.ledger.tables import metadata

PREFIX = "tuner_check"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Check:
    """A constraint, or a trigger that stands for one."""

    table: str
    what: str  # "number of tuner_trials"
    name: str  # with a digest of the condition
    statement: str  # the SQL that adds it


def missing(tx: Connection) -> list[Check]:
    """Return the constraints that a database does not have."""
    there = _present(tx)
    return [one for one in _defined(tx) if (one.table, one.name) not in there]


def create(tx: Connection) -> None:
    """Add missing constraints, and drop those of other rules.

    One of PostgreSQL that existing rows contradict is left out: with it, no statement could change
    such a row. It is logged, and reported by `tuner doctor` until the rows are corrected.
    """
    _drop(tx, _present(tx) - {(one.table, one.name) for one in _defined(tx)})
    for one in missing(tx):
        try:
            with tx.begin_nested():
                tx.execute(text(one.statement))
        except IntegrityError:
            log.warning("rows contradict the check of %s; `tuner doctor` lists them", one.what)


def drop_triggers(tx: Connection) -> None:
    """Drop those of SQLite, which drops no column that a trigger names."""
    if tx.dialect.name == "sqlite":
        _drop(tx, _present(tx))


def _drop(tx: Connection, found: set[tuple[str, str]]) -> None:
    for table, name in found:
        on_sqlite = tx.dialect.name == "sqlite"
        dropping = "DROP TRIGGER" if on_sqlite else f"ALTER TABLE {table} DROP CONSTRAINT"
        tx.execute(text(f"{dropping} {name}"))


def _defined(tx: Connection) -> list[Check]:
    of_table = _triggers if tx.dialect.name == "sqlite" else _constraints
    return [one for table in metadata.sorted_tables for one in of_table(table)]


def _constraints(table: Table) -> Iterator[Check]:
    for column in table.columns:
        rule = condition(column)
        if rule is not None:
            name = f"{PREFIX}_{column.name}_{_digest(rule)}"
            statement = f"ALTER TABLE {table.name} ADD CONSTRAINT {name} CHECK ({rule})"
            what = f"{column.name} of {table.name}"
            yield Check(table=table.name, what=what, name=name, statement=statement)


def _triggers(table: Table) -> Iterator[Check]:
    new = " ".join(
        f"WHEN NOT ({condition_with_type(column, 'NEW.')}) THEN {_refusal(column)}"
        for column in table.columns
    )
    yield _trigger(table, "new rows", "INSERT", f"BEGIN SELECT CASE {new} END; END")
    for column in table.columns:
        is_good, was_good = (condition_with_type(column, row) for row in ("NEW.", "OLD."))
        # what was bad may stay so: a statement about many rows must not fail because of it
        when = f"WHEN NOT ({is_good}) AND coalesce({was_good}, true)"
        body = f"{when} BEGIN SELECT {_refusal(column)}; END"
        yield _trigger(table, column.name, f'UPDATE OF "{column.name}"', body)


def _trigger(table: Table, what: str, event: str, body: str) -> Check:
    """Return a trigger; it runs after the event, when SQLite has converted the values."""
    rule = f"AFTER {event} ON {table.name} {body}"
    name = f"{PREFIX}_{table.name}_{what.replace(' ', '_')}_{_digest(rule)}"
    what = f"{what} of {table.name}"
    return Check(table=table.name, what=what, name=name, statement=f"CREATE TRIGGER {name} {rule}")


def _refusal(column: Column[object]) -> str:
    return f"RAISE(ABORT, '{column}: expected {expected_in(column)}')"


def _digest(rule: str) -> str:
    return hashlib.sha256(rule.encode()).hexdigest()[:8]


def _present(tx: Connection) -> set[tuple[str, str]]:
    """Return the tables and names of our constraints."""
    query = ON_SQLITE if tx.dialect.name == "sqlite" else ON_POSTGRESQL
    found = tx.execute(text(query), {"ours": f"{PREFIX}%"})
    return {(str(table), str(name)) for table, name in found}


ON_SQLITE = "SELECT tbl_name, name FROM sqlite_master WHERE type = 'trigger' AND name LIKE :ours"
ON_POSTGRESQL = """
    SELECT t.relname, c.conname FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
    WHERE c.contype = 'c' AND c.conname LIKE :ours
    AND c.connamespace = current_schema()::regnamespace
"""
