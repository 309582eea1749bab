"""Through a connection pooler in transaction mode, where sessions belong to nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from pooler import pooler, through
from postgres import Cluster, rows
from processes import until, write_study
from sqlalchemy import create_engine, text
from team import team

from tuner.core.errors import UnavailableError, UsageError
from tuner.ledger import Reader
from tuner.ledger import database as storage
from tuner.ledger.database import pooled
from tuner.ledger.database.pooling import is_pooled

pytestmark = pytest.mark.slow

LOCKS = (
    "SELECT count(*) FROM pg_locks JOIN pg_class ON oid = relation "
    "WHERE relname = 'tuner_migration_lock'"
)
MADE = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname !~ '^(pg_|information_)'"


@pytest.fixture(scope="module")
def port(cluster: Cluster) -> Iterator[int]:
    with pooler(cluster) as made:
        yield made


@pytest.fixture
def direct(cluster: Cluster, migrated: str) -> str:
    return cluster.database(migrated)


@pytest.fixture
def url(direct: str, port: int) -> str:
    return through(direct, port)


def test_an_upgrade_through_it_is_refused_and_makes_nothing(cluster, port, tmp_path):
    with team(tmp_path, cluster, through(cluster.database(), port)) as here:
        done = here.tuner("db", "upgrade")
    assert done.code == 2
    assert "is a connection pooler" in done.err
    assert "name PostgreSQL's own host and port" in done.err
    assert len(done.err.splitlines()) == 1
    assert rows(here.url, MADE) == []


@pytest.mark.thorough
def test_a_study_is_tuned_and_recorded_through_it(cluster, direct, url, tmp_path):
    """Two workers and their recorders share five connections, with what others left in them."""
    leaked = [psycopg.connect(url) for _ in range(5)]
    for connection in leaked:  # a transaction each, so each has a connection of its own
        connection.execute("SET search_path TO pg_catalog")
    for connection in leaked:
        connection.commit()
    write_study(tmp_path, steps="20", trials="4")
    with team(tmp_path, cluster, url) as here:
        done = here.tuner("run", "study.toml", "--workers", "2", "--json")
        assert done.code == 0, done.err
        healthy = here.tuner("doctor", "--json")
        assert (healthy.code, healthy.json["problems"]) == (0, [])
    with team(tmp_path, cluster, direct) as plain:
        plain.assert_whole("small", 4)
    for connection in leaked:
        connection.close()
    made = {schema for schema, _ in rows(direct, MADE)}
    assert made == {"public", "tuner", "mlflow"}


def test_a_direct_connection_is_left_as_it_is(direct, url, tmp_path):
    for given, expected in ((direct, False), (url, True)):
        places = storage.addresses({"TUNER_DATABASE_URL": given}, tmp_path)
        for engine in (storage.ledger_engine(places.ledger), storage.optuna_storage(places).engine,
                       create_engine(pooled(places.tracking))):  # fmt: skip
            with engine.connect() as connection:
                assert is_pooled(connection) is expected
                driver = connection.connection.driver_connection
                assert (driver.prepare_threshold is None) is expected
            engine.dispose()


def test_one_at_a_time_holds_the_migration_lock_through_it(url, tmp_path):
    places = storage.addresses({"TUNER_DATABASE_URL": url}, tmp_path)
    entered, order = threading.Event(), []

    def second() -> None:
        entered.set()
        with storage.migration_lock(places):
            order.append("second")

    other = threading.Thread(target=second)
    with storage.migration_lock(places):
        other.start()
        entered.wait()
        until(lambda: rows(url, f"{LOCKS} AND NOT granted") == [(1,)], "the second to wait")
        order.append("first")
    other.join()
    assert order == ["first", "second"]
    assert rows(url, LOCKS) == [(0,)]


def test_one_that_does_not_ignore_options_is_named(cluster, direct, tmp_path):
    with pooler(cluster, ignored="extra_float_digits") as port:
        given = {"TUNER_DATABASE_URL": through(direct, port)}
        with pytest.raises(UnavailableError, match="ignore_startup_parameters = options"):
            Reader(storage.open_ledger(storage.addresses(given, tmp_path), create=False))


def test_a_role_with_another_search_path_gets_no_tables(cluster, tmp_path):
    """Optuna's would be made there, where neither a plain `load_study` nor workers look."""
    database = cluster.database()
    cluster.execute("DROP ROLE IF EXISTS elsewhere")
    cluster.execute("CREATE ROLE elsewhere LOGIN SUPERUSER")
    cluster.execute("ALTER ROLE elsewhere SET search_path TO aside")
    url = cluster.url(database.rpartition("/")[2], "elsewhere")
    with pytest.raises(UsageError, match="expected 'public'; let an administrator run ALTER ROLE"):
        storage.upgrade(storage.addresses({"TUNER_DATABASE_URL": url}, tmp_path))
    assert rows(url, MADE) == []
    with psycopg.connect(cluster.url(database.rpartition("/")[2])) as connection:
        connection.execute("DROP ROLE elsewhere")


def test_the_plugin_leaves_other_databases_alone(tmp_path: Path):
    assert pooled(f"sqlite:///{tmp_path}/mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert pooled("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    with create_engine("sqlite://", plugins=["tuner_search_path"]).connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
