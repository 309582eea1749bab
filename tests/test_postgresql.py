"""PostgreSQL: what one upgrade makes, who may do what there, and what is said when it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from helpers import PARAMS, claim, completed, draw, submit, went_on
from helpers import rows as rows_of
from postgres import Server, rows

from tuner.core.errors import ConnectionLostError, SchemaError, UnavailableError, UsageError
from tuner.ledger import Ledger, database
from tuner.ledger.database import Addresses, engines
from tuner.ledger.rows import locked_study
from tuner.ledger.tables import metadata

pytestmark = pytest.mark.slow


def at(url: str, folder: Path, **more: str) -> Addresses:
    return database.addresses({"TUNER_DATABASE_URL": url, **more}, folder)


def name_of(url: str) -> str:
    return url.rpartition("/")[2]


def login(postgres: Server, url: str, name: str, group: str) -> str:
    """Make a login with a password in one of the roles, as an administrator would."""
    postgres.execute(f"DROP ROLE IF EXISTS {name}")
    postgres.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'hidden' IN ROLE {group}")
    return postgres.url(name_of(url), name, "hidden")


def test_each_of_the_three_has_a_schema_of_its_own(shared):
    found = rows(shared, "SELECT schemaname, tablename FROM pg_tables")
    of_tuner = {table for schema, table in found if schema == "tuner"}
    assert of_tuner == {
        *metadata.tables,
        "tuner_alembic_version",
        "tuner_locks",
        "tuner_migration_lock",
    }
    assert {("public", "trials"), ("public", "studies"), ("public", "alembic_version")} <= {*found}
    assert {("mlflow", "runs"), ("mlflow", "metrics"), ("mlflow", "alembic_version")} <= {*found}
    assert not of_tuner & {table for schema, table in found if schema == "public"}


def test_an_upgrade_of_what_is_up_to_date_changes_nothing(shared, tmp_path):
    places = at(shared, tmp_path)
    study = submit(Ledger(database.ledger_engine(places.ledger)))
    assert database.upgrade(places) is None
    assert Ledger(database.open_ledger(places, create=False)).study(study.name) == study


def test_tables_are_not_made_by_whoever_comes_first(postgres, tmp_path):
    places = at(postgres.database(), tmp_path)
    for opened in (
        lambda: database.open_ledger(places, create=True),
        lambda: database.tracking_client(places),
    ):
        with pytest.raises(SchemaError, match="`tuner db upgrade` makes them"):
            opened()
    assert rows(postgres.url(name_of(places.optuna)), TABLES) == []


TABLES = "SELECT tablename FROM pg_tables WHERE schemaname IN ('public', 'tuner', 'mlflow')"


def test_a_worker_works_and_can_neither_make_nor_drop_a_table(postgres, shared, tmp_path):
    url = login(postgres, shared, "anna", "tuner_worker")
    places = at(url, tmp_path)
    ledger = Ledger(database.open_ledger(places, create=False))
    held = claim(ledger, submit(ledger))
    ledger.release(held.lease, "interrupted", "Ctrl-C")
    database.optuna_storage(places).create_new_study([1], "theirs")
    for statement in (
        "CREATE TABLE tuner.mine (id int)",
        "CREATE TABLE public.mine (id int)",
        "CREATE TABLE mlflow.mine (id int)",
        "CREATE SCHEMA mine",
        "DROP TABLE tuner.tuner_trials",
        "DROP TABLE public.trials",
        "DROP TABLE mlflow.metrics",
        "ALTER TABLE tuner.tuner_trials ADD COLUMN mine int",
        "TRUNCATE tuner.tuner_chunks",
        "UPDATE tuner.tuner_alembic_version SET version_num = '9999'",
        "UPDATE public.alembic_version SET version_num = '9999'",
        "DELETE FROM mlflow.alembic_version",
    ):
        with (
            psycopg.connect(url) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement)


def test_a_reader_looks_and_changes_nothing(postgres, shared, tmp_path):
    study = submit(Ledger(database.ledger_engine(at(shared, tmp_path).ledger)))
    url = login(postgres, shared, "vera", "tuner_reader")
    ledger = Ledger(database.open_ledger(at(url, tmp_path), create=False))
    assert ledger.study(study.name) == study
    with pytest.raises(UnavailableError, match="permission denied for table tuner_") as error:
        claim(ledger, study)
    assert "hidden" not in str(error.value)
    assert rows(url, "SELECT count(*) FROM mlflow.runs") == [(0,)]
    assert rows(url, "SELECT count(*) FROM public.trials") == [(0,)]


def test_an_owner_who_may_not_make_roles_is_told_what_is_left(postgres, tmp_path):
    """Roles belong to the whole server; where they are there already, nothing is left."""
    url = postgres.database()
    postgres.execute("DROP ROLE IF EXISTS olga")
    postgres.execute("CREATE ROLE olga LOGIN")
    postgres.execute(f"ALTER DATABASE {name_of(url)} OWNER TO olga")
    postgres.execute("ALTER ROLE tuner_reader RENAME TO elsewhere") if roles(url) else None
    try:
        places = at(postgres.url(name_of(url), "olga"), tmp_path)
        left = database.upgrade(places)
        assert left is not None
        assert "CREATE ROLE tuner_reader NOLOGIN" in left
        assert Ledger(database.open_ledger(places, create=False)).studies() == []
    finally:
        postgres.execute("ALTER ROLE elsewhere RENAME TO tuner_reader")
    assert database.upgrade(places) is None


def roles(url: str) -> list[tuple[str]]:
    return rows(url, "SELECT rolname FROM pg_roles WHERE rolname = 'tuner_reader'")


@pytest.mark.parametrize("role", ["tuner", "mlflow"])
def test_a_role_with_the_name_of_a_schema_is_refused(postgres, tmp_path, role):
    url = postgres.database()
    postgres.execute(f"DROP ROLE IF EXISTS {role}")
    postgres.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
    try:
        with pytest.raises(UsageError, match=f"role is called '{role}'"):
            database.upgrade(at(postgres.url(name_of(url), role), tmp_path))
    finally:
        postgres.cut(name_of(url))
        postgres.execute(f"DROP ROLE {role}")


def test_a_server_that_is_not_there(tmp_path):
    places = at("postgresql://me:hidden@127.0.0.1:1/team", tmp_path)
    for opened in (
        lambda: database.open_ledger(places, create=True),
        lambda: database.tracking_client(places),
        lambda: database.upgrade(places),
    ):
        with pytest.raises(UnavailableError, match="Connection refused") as error:
            opened()
        assert error.value.exit_code == 4
        assert "hidden" not in str(error.value)


def test_connections_that_were_cut_are_made_again(postgres, shared, tmp_path):
    ledger = Ledger(database.ledger_engine(at(shared, tmp_path).ledger))
    study = submit(ledger)
    postgres.cut(name_of(shared))
    assert ledger.study(study.name) == study


def test_a_suspended_process_does_not_keep_its_locks(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "IDLE_SECONDS", 1)
    suspended = Ledger(database.ledger_engine(at(shared, tmp_path).ledger))
    study = submit(suspended)
    with suspended.engine.execution_options(writes=True).connect() as tx:
        tx.execute(locked_study(study.id))  # and it is suspended here
        other = Ledger(database.ledger_engine(at(shared, tmp_path).ledger))
        assert claim(other, study).trial.number == 0
        with pytest.raises(ConnectionLostError):
            tx.execute(locked_study(study.id))


@pytest.mark.parametrize("when", ["before the commit", "after the commit"])
@pytest.mark.parametrize("call", ["claim", "draw", "report", "finish", "release"])
def test_a_call_whose_connection_is_cut_is_made_once(postgres, shared, tmp_path, call, when):
    """Whether it came through or not: it is repeated, and counts once."""
    calm = Ledger(database.ledger_engine(at(shared, tmp_path).ledger))
    ledger = Cutting(calm, lambda: postgres.cut(name_of(shared)), after=when.startswith("after"))
    study = submit(calm)
    held = None if call == "claim" else claim(calm, study)
    lease = held.lease if held else None
    if call == "finish":
        draw(calm, held)
    ledger.armed = True
    match call:
        case "claim":
            assert claim(ledger, study).trial.number == 0
        case "draw":
            ledger.draw(lease, PARAMS, attrs={}, study_attrs={}, asked_revision=1)
        case "report":
            ledger.report(lease, rows_of(0, 10), went_on(10, 0.5), attrs={"rung": 0.5})
        case "finish":
            ledger.finish(lease, completed(0.5), chunk=rows_of(0, 10))
        case "release":
            ledger.release(lease, "interrupted", "Ctrl-C")
    assert not ledger.armed, "the connection was cut"
    (trial,) = calm.trials(study.id)
    (attempt,) = calm.attempts(study.id)
    assert calm.study(study.name).reserved == 1
    assert attempt.live == (call in {"claim", "draw", "report"})
    assert calm.curve(trial.id).next_step == trial.steps
    assert len(trial.reports) == (call == "report")


def test_an_impatient_one_says_so(postgres, shared, tmp_path):
    calm = Ledger(database.ledger_engine(at(shared, tmp_path).ledger), retry_timeout=0.0)
    ledger = Cutting(calm, lambda: postgres.cut(name_of(shared)), after=False)
    lease = claim(calm, submit(calm)).lease
    ledger.armed = True
    with pytest.raises(ConnectionLostError, match="cannot be used"):
        ledger.append(lease, rows_of(0, 10))


class Cutting(Ledger):
    """A ledger whose connection is cut within its next transaction that writes, or after it."""

    def __init__(self, ledger: Ledger, cut: Callable[[], None], *, after: bool) -> None:
        super().__init__(ledger.engine, retry_timeout=ledger.retry_timeout)
        self._cut = cut
        self._after = after
        self.armed = False

    @contextmanager
    def _writing(self):
        cut, self.armed = self.armed, False
        with super()._writing() as tx:
            yield tx
            if cut and not self._after:
                self._cut()  # the commit will not get through
        if cut and self._after:
            raise ConnectionLostError("the answer was lost")
