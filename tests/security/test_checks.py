"""Checks of types and ranges in the database, of the rules by which rows are read.

PostgreSQL has CHECK constraints, SQLite triggers that refuse the same.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from helpers import submit as submitted
from postgres import rows
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Double,
    Integer,
    LargeBinary,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError

from tuner.ledger import Ledger, database
from tuner.ledger.database.checks import missing
from tuner.ledger.decoding import ALL_RULES, RULES, condition
from tuner.ledger.tables import metadata, trials
from tuner.operations import doctor

RELEASED = Path(__file__).parents[1] / "data" / "schema_0007.sql"
NUMBERS = [-math.inf, -1.7e308, -1.0, -5e-324, 0.0, 1.5, 1.7e9, 2.6e11, 1.7e308, math.inf]
CONTENTS = [
    *NUMBERS, math.nan, -(2**40), 1 - 2**31, -1, 0, 1, 2, 2**31 - 1, 2**31, 2**40,
    None, "", "nonsense", "12", "x" * 5000, "[]", "{}", b"\xff",
]  # fmt: skip


def _options(column: Column[Any]) -> list[str]:
    """Return the texts that a column may hold, if there are only some."""
    return (condition(column) or "").split("'")[1::2]


def _good(column: Column[Any]) -> Any:
    """Return a content that a column may hold."""
    kinds = {Boolean: True, Integer: 1, Double: 1.0, LargeBinary: b"", JSON: {}}
    found = (one for kind, one in kinds.items() if isinstance(column.type, kind))
    return next(found, (_options(column) or ["x"])[0])


def _add_rows(tx: Connection) -> None:
    """Add a row to each table, and let references lead nowhere in this transaction."""
    on_sqlite = tx.dialect.name == "sqlite"
    without = "SET LOCAL session_replication_role = replica"
    tx.execute(text("PRAGMA defer_foreign_keys = ON" if on_sqlite else without))
    for table in metadata.sorted_tables:
        tx.execute(insert(table).values({one.name: _good(one) for one in table.columns}))


def _stored(tx: Connection, column: Column[Any], content: Any) -> Iterator[Any]:
    """Yield what a column holds once a content was written; nothing if it was refused."""
    value = ":content"
    if tx.dialect.name == "postgresql":
        value = f"CAST(:content AS {column.type.compile(tx.dialect)})"
        content = content if isinstance(content, bytes | None) else str(content)
    statement = text(f'UPDATE {column.table.name} SET "{column.name}" = {value}')
    place = tx.begin_nested()
    try:
        tx.execute(statement, {"content": content})
        yield tx.scalar(select(column))
    except (DBAPIError, OverflowError):
        pass
    finally:
        place.rollback()


@pytest.mark.longer
def test_a_check_and_the_rule_of_its_column_agree(either):
    """What is stored is of the column's type and range, and nothing else is refused."""
    with either.engine.execution_options(writes=True).connect() as tx:
        assert missing(tx) == []
        _add_rows(tx)
        for table in metadata.sorted_tables:
            for name, _, check in ALL_RULES[table.name]:
                column = table.columns[name]
                for content in [*CONTENTS, *_options(column)]:
                    stored = list(_stored(tx, column, content))
                    if not stored:
                        # an id may be of 64 bits, which PostgreSQL's integers are not
                        wide = tx.dialect.name == "postgresql" and content in (2**31, 2**40)
                        assert wide or not check(content), (str(column), content)
                    elif _is_whole(column):
                        assert check(stored[0]), (str(column), content, stored)
        tx.rollback()


def _is_whole(column: Column[Any]) -> bool:
    """Return whether the database checks all of a column's rule."""
    named = column in RULES and condition(column) is None
    return not named and not column.foreign_keys and not isinstance(column.type, JSON)


def test_a_new_row_is_checked_as_a_change_is(ledger):
    """On SQLite these are two triggers; a constraint of PostgreSQL is of both."""
    with ledger.engine.execution_options(writes=True).connect() as tx:
        tx.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        for column in (one for table in metadata.sorted_tables for one in table.columns):
            values = {one.name: _good(one) for one in column.table.columns}
            values |= {name: "{}" for name, one in values.items() if one == {}}
            values[column.name] = "x" if isinstance(column.type, LargeBinary) else b"\xff"
            names = ", ".join(f'"{one}"' for one in values)
            given = ", ".join("?" * len(values))
            statement = f"INSERT INTO {column.table.name} ({names}) VALUES ({given})"
            with pytest.raises(IntegrityError, match=f"{column}: expected|datatype mismatch"):
                tx.exec_driver_sql(statement, tuple(values.values()))
        tx.rollback()


@pytest.mark.longer
def test_a_released_database_gets_its_checks_beside_a_bad_row(places):
    """The row stays as it is and is reported; it stops no statement, and is checked once good."""
    with closing(sqlite3.connect(places.file)) as connection:
        connection.executescript(RELEASED.read_text())
        connection.execute("UPDATE tuner_trials SET steps = 'many' WHERE number = 1")
        connection.commit()
    database.upgrade_ledger(places)
    ledger = Ledger(database.open_ledger(places, create=False))
    study = ledger.study("frozen")
    assert [number for number, _ in ledger.unreadable_trials(study.id)] == [1]
    (found,) = [one for one in doctor.examine(ledger.engine, places) if one.kind == "unreadable"]
    assert "steps: expected a whole number" in found.detail
    bad, good = trials.c.number == 1, trials.c.number == 0

    def change(where: Any, **values: Any) -> None:
        with ledger.engine.execution_options(writes=True).begin() as tx:
            tx.execute(update(trials).where(where).values(values))

    change(bad | good, revision=trials.c.revision + 1, steps=trials.c.steps)
    with pytest.raises(IntegrityError, match=r"tuner_trials\.steps: expected a whole number"):
        change(good, steps=text("'many'"))
    change(bad, steps=50)
    with pytest.raises(IntegrityError, match=r"tuner_trials\.steps: expected a whole number"):
        change(bad, steps=text("'many'"))
    assert ledger.unreadable_trials(study.id) == []
    ledger.engine.dispose()


@pytest.mark.longer
def test_a_check_that_is_dropped_is_named_and_made_again(tracked, places):
    with tracked.engine.execution_options(writes=True).begin() as tx:
        ours = [one.what for one in missing(tx)]
        names = tx.scalars(text(TRIGGERS)).all()
        for name in names:
            tx.execute(text(f"DROP TRIGGER {name}"))
    assert (ours, len(names)) == ([], 2)
    details = [one.detail for one in doctor.examine(tracked.engine, places)]
    assert len(details) == 2
    assert "the check of new rows of tuner_reports is missing" in details[0]
    assert "the check of step of tuner_reports is missing" in details[1]
    assert [one.repaired for one in doctor.repair(tracked.engine, places)] == [True, True]
    assert doctor.examine(tracked.engine, places) == []


TRIGGERS = """SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'tuner_reports'
AND (name LIKE '%new_rows%' OR name LIKE '%reports_step%') ORDER BY name"""


@pytest.mark.slow
def test_a_row_that_contradicts_a_constraint_stops_no_upgrade(shared, tmp_path):
    """On PostgreSQL it is left out; `tuner doctor` says so and adds it to corrected rows."""
    places = database.addresses({"TUNER_DATABASE_URL": shared}, tmp_path)
    owner = Ledger(database.ledger_engine(places.ledger))
    study = submitted(owner)
    owner.claim(study.id, "w", {})
    negative = "UPDATE tuner.tuner_trials SET number = -1"
    with psycopg.connect(shared) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(negative)
    with owner.engine.begin() as tx:
        (check,) = rows(shared, f"SELECT conname FROM pg_constraint WHERE {OF_NUMBER}")[0]
    with psycopg.connect(shared) as connection:
        connection.execute(f"ALTER TABLE tuner.tuner_trials DROP CONSTRAINT {check}")
        connection.execute(negative)
    database.upgrade(places)
    with owner.engine.begin() as tx:
        assert [one.what for one in missing(tx)] == ["number of tuner_trials"]
    left = doctor.repair(owner.engine, places)
    unchecked = [one for one in left if "the check of number of tuner_trials" in one.detail]
    assert [one.repaired for one in unchecked] == [False]
    assert "violated by some row" in unchecked[0].detail
    with psycopg.connect(shared) as connection:
        connection.execute("UPDATE tuner.tuner_trials SET number = 0")
    doctor.repair(owner.engine, places)
    with owner.engine.begin() as tx:
        assert missing(tx) == []
    owner.engine.dispose()


OF_NUMBER = "conrelid = 'tuner.tuner_trials'::regclass AND conname LIKE 'tuner_check_number%'"
