"""Where things are kept: addresses, what is opened, made, and refused."""

import http.server
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from helpers import claim, submit
from mlflow.exceptions import MlflowException
from sqlalchemy import String, event, text
from team import free_port

from tuner.core.errors import MigratedError, SchemaError, UnavailableError, UsageError
from tuner.ledger import Ledger, Reader
from tuner.ledger import database as storage
from tuner.ledger.database import engines, migrate
from tuner.ledger.tables import HEAD, VERSION_TABLE, metadata
from tuner.operations import ui

HERE = Path("/home/me/place")


def at(url, folder):
    return storage.addresses({"TUNER_DATABASE_URL": url}, folder)


# --- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "ledger", "tracking", "checkpoints"),
    [
        (
            {},
            "sqlite:////home/me/place/tuner.db",
            "sqlite:////home/me/place/mlflow.db",
            "/home/me/place/.tuner/checkpoints",
        ),
        (
            {"TUNER_DATABASE_URL": "", "MLFLOW_TRACKING_URI": "", "TUNER_CHECKPOINTS": ""},
            "sqlite:////home/me/place/tuner.db",
            "sqlite:////home/me/place/mlflow.db",
            "/home/me/place/.tuner/checkpoints",
        ),
        (
            {"TUNER_DATABASE_URL": "sqlite:////data/team.db"},
            "sqlite:////data/team.db",
            "sqlite:////data/mlflow.db",
            "/data/.tuner/checkpoints",
        ),
        (  # a relative path is made whole: the recorder may be started elsewhere
            {"TUNER_DATABASE_URL": "sqlite:///sub/../one.db"},
            "sqlite:////home/me/place/one.db",
            "sqlite:////home/me/place/mlflow.db",
            "/home/me/place/.tuner/checkpoints",
        ),
        (
            {"TUNER_DATABASE_URL": "sqlite:///file:/data/team.db?mode=ro&uri=true"},
            "sqlite:///file:/data/team.db?mode=ro&uri=true",
            "sqlite:////data/mlflow.db",
            "/data/.tuner/checkpoints",
        ),
        (
            {
                "MLFLOW_TRACKING_URI": "http://me:secret@mlflow:5000",
                "TUNER_CHECKPOINTS": "/scratch/checkpoints",
            },
            "sqlite:////home/me/place/tuner.db",
            "http://me:secret@mlflow:5000",
            "/scratch/checkpoints",
        ),
        (
            {"TUNER_DATABASE_URL": "postgresql://me:secret@db:5433/team"},
            "postgresql+psycopg://me:secret@db:5433/team?options=-csearch_path%3Dtuner",
            "postgresql+psycopg://me:secret@db:5433/team?options=-csearch_path%3Dmlflow",
            "/home/me/place/.tuner/checkpoints",
        ),
        (  # options of one's own stay
            {
                "TUNER_DATABASE_URL": "postgresql+psycopg://db/team?options=-cjit%3Doff",
                "MLFLOW_TRACKING_URI": "http://mlflow:5000",
            },
            "postgresql+psycopg://db/team?options=-cjit%3Doff+-csearch_path%3Dtuner",
            "http://mlflow:5000",
            "/home/me/place/.tuner/checkpoints",
        ),
    ],
)
def test_the_environment_says_where_things_are(environment, ledger, tracking, checkpoints):
    places = storage.addresses(environment, HERE)
    assert (places.ledger, places.tracking) == (ledger, tracking)
    assert str(places.checkpoints) == checkpoints


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "is not a database URL"),
        ("/home/me/tuner.db", "is not a database URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///file::memory:?uri=true", "names no file"),
        ("sqlite:///file:shared?mode=memory&cache=shared&uri=true", "names no file"),
        ("sqlite+aiosqlite:////home/me/tuner.db", "names sqlite+aiosqlite"),
        ("postgresql+psycopg2://me:secret@db/tuner", "names postgresql+psycopg2"),
        ("postgresql://me:secret@db", "names no database"),
        ("mysql://me:secret@db/tuner", "names mysql"),
        ("nosuchthing://me:secret@db/tuner", "names nosuchthing"),
        ("postgresql://me:secret@[db", "names no database"),
        ("postgresql://me:secret@db:port/tuner", "is not a database URL"),
    ],
)
def test_an_address_that_cannot_be_the_ledgers_is_refused(url, said):
    with pytest.raises(UsageError, match="TUNER_DATABASE_URL") as error:
        at(url, HERE)
    assert said in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file::memory:?uri=true",
        "sqlite:///a?mode=memory",
    ],
)
@pytest.mark.parametrize("database", ["sqlite:////home/me/tuner.db", "postgresql://me@db/tuner"])
def test_a_database_in_memory_cannot_be_mlflows(uri, database):
    with pytest.raises(UsageError, match="MLFLOW_TRACKING_URI names no file"):
        storage.addresses({"TUNER_DATABASE_URL": database, "MLFLOW_TRACKING_URI": uri}, HERE)


def test_a_server_that_does_not_answer_has_no_ui(tmp_path):
    shown = []
    places = storage.addresses({"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}, tmp_path)
    with pytest.raises(UnavailableError, match=r"no MLflow server answers at http://127\.0\.0\.1"):
        ui.serve(places, None, shown.append)
    assert shown == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////home/me/tuner.db", "sqlite:////home/me/tuner.db"),
        ("postgresql://me@db/tuner", "postgresql://me@db/tuner"),
        ("postgresql://me:secret@db/tuner", "postgresql://me:***@db/tuner"),
        ("http://me:secret@mlflow:5000/path", "http://me:***@mlflow:5000/path"),
        ("http://:secret@mlflow:5000", "http://:***@mlflow:5000"),
        ("http://mlflow:5000/me@here", "http://mlflow:5000/me@here"),
        ("postgresql://me:se/cr@et@db/tuner", "postgresql://me:***@db/tuner"),
        ("postgresql://me:secret@[db/tuner", "postgresql://me:***@[db/tuner"),
        ("postgresql://db/tuner?user=me&password=secret", "postgresql://db/tuner?user=me&password=***"),
        ("postgresql://db/tuner?sslpassword=secret&a=b", "postgresql://db/tuner?sslpassword=***&a=b"),
    ],
)  # fmt: skip
def test_passwords_are_not_shown(url, shown):
    assert storage.without_password(url) == shown


def test_all_addresses_are_shown_without_passwords():
    places = storage.addresses({"MLFLOW_TRACKING_URI": "http://me:secret@mlflow"}, HERE)
    assert places.shown() == {
        "ledger": "sqlite:////home/me/place/tuner.db",
        "optuna": "sqlite:////home/me/place/tuner.db",
        "mlflow": "http://me:***@mlflow",
        "checkpoints": "/home/me/place/.tuner/checkpoints",
    }


# --- opening ----------------------------------------------------------------------------------


@pytest.mark.longer
def test_a_new_ledger_is_made_where_that_is_wanted(places):
    engine = storage.open_ledger(places, create=True)
    assert Reader(engine).studies() == []
    again = storage.open_ledger(places, create=False)
    assert Reader(again).studies() == []


@pytest.mark.longer
@pytest.mark.parametrize("name", ["a b", "50%20", "what?", "#1", "ü", "a&b=c", "file:x"])
def test_a_ledger_is_made_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    places = storage.addresses({}, folder)
    storage.open_ledger(places, create=True)
    assert {"tuner.db"} <= {file.name for file in folder.iterdir()}
    assert [file.name for file in tmp_path.iterdir()] == [name]
    study = submit(Ledger(storage.open_ledger(places, create=False)))
    storage.optuna_storage(places).create_new_study([1], study.name)


def test_no_ledger_is_made_where_that_is_not_wanted(places, tmp_path):
    with pytest.raises(UnavailableError, match="there is no ledger at") as error:
        storage.open_ledger(places, create=False)
    assert error.value.exit_code == 4
    assert "`tuner run FILE` makes one" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [False, True])
def test_a_folder_that_does_not_exist_is_not_made(tmp_path, create):
    places = at(f"sqlite:///{tmp_path}/typo/tuner.db", tmp_path)
    with pytest.raises(UnavailableError, match="there is no") as error:
        storage.open_ledger(places, create=create)
    assert error.value.exit_code == 4
    assert str(tmp_path / "typo") in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_file_that_is_no_database_is_refused_and_left_alone(places, tmp_path, create, size):
    file = tmp_path / "tuner.db"
    garbage = (b"not a database " * size)[:size]
    file.write_bytes(garbage)
    with pytest.raises(UnavailableError, match="file is not a database") as error:
        storage.open_ledger(places, create=create)
    assert error.value.exit_code == 4
    assert str(file) in str(error.value)
    assert file.read_bytes() == garbage


def test_a_folder_in_the_files_place_is_refused(tmp_path):
    with pytest.raises(UnavailableError, match="unable to open database file") as error:
        storage.open_ledger(at(f"sqlite:///{tmp_path}", tmp_path), create=True)
    assert error.value.exit_code == 4


@pytest.mark.longer
def test_another_programs_database_is_left_alone_unless_a_ledger_is_wanted_in_it(places, tmp_path):
    with sqlite3.connect(tmp_path / "tuner.db") as connection:
        connection.execute("CREATE TABLE theirs (id)")
    connection.close()
    with pytest.raises(UnavailableError, match="there is no ledger at"):
        storage.open_ledger(places, create=False)
    with sqlite3.connect(tmp_path / "tuner.db") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    connection.close()
    assert Reader(storage.open_ledger(places, create=True)).studies() == []


def test_a_read_only_database_is_read_and_not_written(ledger, places, tmp_path):
    study = submit(ledger)
    read_only = at(f"sqlite:///file:{tmp_path}/tuner.db?mode=ro&uri=true", tmp_path)
    opened = Ledger(storage.open_ledger(read_only, create=True))
    assert opened.study(study.name) == study
    with pytest.raises(UnavailableError, match="readonly database") as error:
        opened.claim(study.id, "worker", {})
    assert error.value.exit_code == 4
    assert ledger.study(study.name).reserved == 0


def test_no_ledger_is_made_in_a_read_only_database(tmp_path):
    sqlite3.connect(tmp_path / "tuner.db").close()
    (tmp_path / "tuner.db").touch()
    read_only = at(f"sqlite:///file:{tmp_path}/tuner.db?mode=ro&uri=true", tmp_path)
    with pytest.raises(UnavailableError, match="cannot be used") as error:
        storage.open_ledger(read_only, create=True)
    assert error.value.exit_code == 4
    assert (tmp_path / "tuner.db").stat().st_size == 0


def test_a_database_that_stays_locked_is_unavailable(ledger, monkeypatch):
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0.01)
    impatient = Ledger(storage.ledger_engine(str(ledger.engine.url)))
    study = submit(ledger)
    with (
        ledger.engine.execution_options(writes=True).begin(),
        pytest.raises(UnavailableError, match="database is locked"),
    ):
        impatient.claim(study.id, "worker", {})
    assert impatient.claim(study.id, "worker", {}) is not None


# --- schemas ----------------------------------------------------------------------------------


def set_revision(ledger, revision):
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = :to"), {"to": revision})


@pytest.mark.parametrize("open_it", [storage.open_ledger, None], ids=["open", "upgrade"])
def test_a_newer_schema_is_refused(ledger, places, open_it):
    set_revision(ledger, "9999")
    with pytest.raises(SchemaError, match="9999, which is newer than this version") as error:
        open_it(places, create=True) if open_it else storage.upgrade_ledger(places)
    assert error.value.exit_code == 4
    assert "upgrade tuner" in str(error.value)


def test_an_older_schema_is_refused_until_it_is_upgraded(ledger, places, monkeypatch):
    monkeypatch.setattr(migrate, "HEAD", "next")
    for create in (False, True):
        with pytest.raises(
            SchemaError, match=f"schema {HEAD}, this version of tuner needs next"
        ) as e:
            storage.open_ledger(places, create=create)
        assert e.value.exit_code == 4
        assert "`tuner db upgrade`" in str(e.value)


@pytest.mark.longer
@pytest.mark.parametrize("where", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def test_nothing_is_written_once_another_version_has_migrated_the_database(
    where, request, tmp_path, monkeypatch
):
    """A process that goes on beside a migration is refused what it does next."""
    url = request.getfixturevalue("shared") if where == "postgresql" else "sqlite:///tuner.db"
    places = at(url, tmp_path)
    older = Ledger(storage.open_ledger(places, create=True))
    study = submit(older)
    held = claim(older, study)
    newer = Ledger(storage.ledger_engine(places.ledger))
    set_revision(newer, "9999")
    monkeypatch.setattr(migrate, "CHECK_SECONDS", 0.0)
    for call in (
        lambda: older.study(study.name),
        lambda: claim(older, study),
        lambda: older.renew([held.lease]),
        lambda: older.release(held.lease, "interrupted", "Ctrl-C"),
    ):
        with pytest.raises(MigratedError, match="was migrated to schema 9999 while this") as error:
            call()
        assert error.value.exit_code == 4
    assert newer.renew([held.lease]) == frozenset(), "the lease is as it was"
    set_revision(newer, HEAD)
    assert older.study(study.name).name == study.name, "no transaction is left open"
    older.engine.dispose()


def test_an_upgrade_of_what_is_up_to_date_changes_nothing(ledger, places):
    study = submit(ledger)
    storage.upgrade_ledger(places)
    assert ledger.study(study.name) == study


def test_optunas_newer_schema_is_refused(ledger, places):
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = 'v9.9.9'"))
    with pytest.raises(SchemaError, match="Optuna's tables in") as error:
        storage.optuna_storage(places)
    assert error.value.exit_code == 4


@pytest.mark.longer
def test_optunas_older_schema_is_upgraded_with_ours(ledger, places):
    with ledger.engine.execution_options(writes=True).begin() as tx:
        head = tx.scalar(text("SELECT version_num FROM alembic_version"))
        tx.execute(text("UPDATE alembic_version SET version_num = 'v3.0.0.d'"))
    with pytest.raises(SchemaError):
        storage.optuna_storage(places)
    storage.upgrade_ledger(places)
    storage.optuna_storage(places)
    with ledger.engine.begin() as tx:
        assert tx.scalar(text("SELECT version_num FROM alembic_version")) == head


def test_the_head_is_the_last_migration():
    assert migrate._revisions()[0] == HEAD


def test_the_migrations_make_the_tables_that_the_code_names(ledger):
    ours = set(metadata.tables) | {VERSION_TABLE}

    def is_ours(thing, name, kind, _reflected, _other):
        return kind != "table" or name in ours

    def differ(_context, _column, _named, found, wanted):
        """Say that lengths of texts do not, as SQLite heeds none; of other types alembic knows."""
        return False if isinstance(found, String) and isinstance(wanted, String) else None

    with ledger.engine.begin() as tx:
        context = MigrationContext.configure(
            tx,
            opts={
                "version_table": VERSION_TABLE,
                "include_object": is_ours,
                "compare_type": differ,
                "compare_server_default": True,
            },
        )
        assert compare_metadata(context, metadata) == []
        counted = "SELECT name FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%' ORDER BY name"
        assert tx.scalars(text(counted)).all() == [
            table.name
            for table in sorted(metadata.tables.values(), key=lambda table: table.name)
            if table.dialect_options["sqlite"]["autoincrement"]
        ]


@pytest.mark.longer
def test_optunas_tables_stand_beside_ours(places):
    import optuna

    storage.open_ledger(places, create=True)
    plain = optuna.create_study(storage=storage.optuna_storage(places), study_name="plain")
    plain.tell(plain.ask(), 1.0)
    loaded = optuna.load_study(study_name="plain", storage=places.ledger)
    assert [trial.value for trial in loaded.trials] == [1.0]


@pytest.mark.longer
def test_making_a_ledger_leaves_logging_alone(places):
    root, mine = logging.getLogger(), logging.getLogger("somebody.elses")
    before = root.level, list(root.handlers)
    root.handlers.clear()  # as in a process that has set up nothing
    try:
        storage.open_ledger(places, create=True)
        assert (root.level, root.handlers) == (before[0], [])
        assert not mine.disabled
    finally:
        root.handlers.extend(before[1])


# --- transactions -----------------------------------------------------------------------------


def test_a_writer_begins_by_taking_the_lock(ledger):
    begun = []
    event.listen(
        ledger.engine,
        "before_cursor_execute",
        lambda _conn, _cursor, statement, *_: begun.append(statement),
    )
    study = submit(ledger)
    begins = [statement for statement in begun if statement.startswith("BEGIN")]
    assert begins == ["BEGIN IMMEDIATE", "BEGIN"]  # the write, then the record is read again
    begun.clear()
    ledger.claim(study.id, "worker", {})
    assert begun[0] == "BEGIN IMMEDIATE"


def test_readers_and_a_writer_do_not_wait_for_each_other(ledger, monkeypatch):
    monkeypatch.setattr(engines, "BUSY_SECONDS", 0.01)
    study = submit(ledger)
    impatient = Ledger(storage.ledger_engine(str(ledger.engine.url)))
    with ledger.engine.execution_options(writes=True).begin():
        assert impatient.study(study.name) == study
    with ledger.engine.begin() as reading:
        reading.scalar(text("SELECT count(*) FROM tuner_trials"))
        assert impatient.claim(study.id, "worker", {}) is not None
        assert reading.scalar(text("SELECT count(*) FROM tuner_trials")) == 0


OPEN = """
import sys
from pathlib import Path
from tuner.ledger import Reader
from tuner.ledger import database as storage

sys.stdin.read()  # all begin when the pipe is closed
places = storage.addresses({}, Path(sys.argv[1]))
assert Reader(storage.open_ledger(places, create=True)).studies() == []
storage.optuna_storage(places).get_all_studies()
"""


@pytest.mark.slow
@pytest.mark.thorough
def test_ten_processes_may_open_an_empty_folder_at_once(tmp_path):
    started, hold = os.pipe()
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", OPEN, str(tmp_path)],
            stdin=started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(10)
    ]  # fmt: skip
    os.close(started)
    os.close(hold)
    for process in processes:
        _, error = process.communicate()
        assert process.returncode == 0, error


@pytest.mark.longer
def test_what_makes_something_is_sent_once(tmp_path, monkeypatch):
    """What gets no answer was perhaps done; other requests are repeated all the same."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    asked = []

    class Silent(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)  # and the connection ends

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever).start()
        address = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{server.server_port}"}
        client = storage.tracking_client(storage.addresses(address, tmp_path))
        with pytest.raises(MlflowException):
            client.set_tag("a", "b", "c")
        assert len(asked) == 3
        with storage.sent_once(), pytest.raises(MlflowException):
            client.create_run("0")
        assert asked[3:] == ["/api/2.0/mlflow/runs/create"]
        with pytest.raises(MlflowException):
            client.set_tag("a", "b", "c")
        assert len(asked) == 7
        server.shutdown()
