"""CHECK constraints of PostgreSQL: the rules by which rows are read, beside the columns' types."""

from __future__ import annotations

import math
from typing import Any

import psycopg
import pytest
from helpers import submit as submitted
from postgres import rows
from sqlalchemy import Column, Double, Integer, text

from tuner.ledger import Ledger, database
from tuner.ledger.database.checks import missing
from tuner.ledger.decoding import ALL_RULES, condition
from tuner.ledger.tables import metadata, trials
from tuner.operations import doctor

pytestmark = pytest.mark.slow

CHECKED = [one for table in metadata.sorted_tables for one in table.columns if condition(one)]


@pytest.fixture
def places(shared, tmp_path):
    return database.addresses({"TUNER_DATABASE_URL": shared}, tmp_path)


def _contents(column: Column[Any]) -> list[Any]:
    """Return what the type of a column allows."""
    if isinstance(column.type, Integer):
        return [-(2**31), -1, 0, 1, 2**31 - 1]
    if isinstance(column.type, Double):
        numbers = [-math.inf, -1.7e308, -1.0, -5e-324, 0.0, 1.5, 1.7e9, 2.6e11, 1.7e308, math.inf]
        return [*numbers, math.nan]
    rule = condition(column)
    assert rule is not None
    return ["", "nonsense", *rule.split("'")[1::2]]


def test_a_constraint_and_the_check_of_its_column_agree(places):
    engine = database.ledger_engine(places.ledger)
    with engine.begin() as tx:
        assert missing(tx) == []
        for column in CHECKED:
            kind = column.type.compile(engine.dialect)
            (check,) = (one[2] for one in ALL_RULES[column.table.name] if one[0] == column.name)
            for content in _contents(column):
                value = f'CAST(:content AS {kind}) AS "{column.name}"'
                query = f"SELECT {condition(column)} FROM (SELECT {value}) AS given"
                found = tx.scalar(text(query), {"content": str(content)})
                assert found is check(content), (str(column), content)
    engine.dispose()


def test_a_row_that_contradicts_a_constraint_stops_no_upgrade(places, shared):
    """The constraint is left out; `tuner doctor` says so and adds it once the row is corrected."""
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
        assert [(one.table, one.column) for one in missing(tx)] == [(trials.name, "number")]
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
