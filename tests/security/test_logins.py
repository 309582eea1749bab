"""What each database login can do, and what it cannot: tried as itself, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers import submit as submitted
from postgres import Cluster, rows
from processes import write_study
from team import Team, mlflow_server, team

from tuner.core.errors import UnavailableError
from tuner.ledger import Ledger, Retrainings, locks
from tuner.ledger import database as storage
from tuner.operations import manage

pytestmark = pytest.mark.slow

LOGINS = {
    "ann": "tuner_worker",
    "rob": "tuner_recorder",
    "mel": "tuner_mlflow",
    "rita": "tuner_reader",
}


@pytest.fixture
def here(cluster: Cluster, migrated: str, tmp_path: Path) -> Iterator[Team]:
    """A team whose database has a login in each role; `as_` returns addresses of one."""
    for name, role in LOGINS.items():
        cluster.execute(f"DROP ROLE IF EXISTS {name}")
        cluster.execute(f"CREATE ROLE {name} LOGIN IN ROLE {role}")
    with team(tmp_path, cluster, cluster.database(migrated)) as made:
        yield made


def as_(here: Team, name: str) -> str:
    return here.cluster.url(here.database, name)


def addresses(here: Team, name: str) -> storage.Addresses:
    return storage.addresses({"TUNER_DATABASE_URL": as_(here, name)}, here.folder)


def upgrade(here: Team, *logins: storage.Login) -> None:
    assert storage.upgrade(here.places, logins) is None


# --- each can do its job


@pytest.mark.thorough
def test_a_worker_trains_and_records_through_mlflows_server(here):
    """And without a server it is refused in one sentence, before anything is created."""
    write_study(here.folder, trials="2", steps="20")
    ann = {"TUNER_DATABASE_URL": as_(here, "ann")}
    for command in (("run", "study.toml"), ("worker", "--until-idle")):
        refused = here.tuner(*command, **ann)
        assert refused.code == 4
        assert "the database login 'ann' has no rights on MLflow's tables" in refused.err
        assert "set MLFLOW_TRACKING_URI to the address of an MLflow server" in refused.err
        assert len(refused.err.splitlines()) == 1
    assert here.rows("SELECT count(*) FROM tuner.tuner_studies") == [(0,)]
    tables = addresses(here, "mel").tracking
    with mlflow_server(here.folder, tables) as address:
        done = here.tuner("run", "study.toml", **ann, MLFLOW_TRACKING_URI=address)
        assert done.code == 0, done.err
        here.mlflow = address
        here.assert_whole("small", 2)


@pytest.mark.thorough
def test_a_recorder_publishes_in_bulk_and_a_reader_sees_it(here):
    write_study(here.folder, trials="2", steps="20")
    ann, rob, rita = ({"TUNER_DATABASE_URL": as_(here, name)} for name in ("ann", "rob", "rita"))
    for command, login in (
        (("submit", "study.toml"), ann),
        (("worker", "--no-recorder", "--until-idle"), ann),
        (("recorder", "--once"), rob),
    ):
        done = here.tuner(*command, **login)
        assert done.code == 0, done.err
    assert "slower" not in done.err, "it writes in bulk"
    here.assert_whole("small", 2)
    for command in (
        "studies", "studies --spend", "status small", "status small --trial 0", "best small",
        "history small", "similar small", "project", "project default", "report small",
        "compare small:all --to out", "export small --to out", "doctor", "timetable list", "config",
        "db urls",
    ):  # fmt: skip
        done = here.tuner(*command.split(), **rita)
        assert done.code == 0, (command, done.err)
    for command in (
        "pause small --yes", "note small text", "tag small x", "project default --shared",
        "enqueue small lr=0.01 --yes --raise-budget", "delete small --yes",
    ):  # fmt: skip
        done = here.tuner(*command.split(), **rita)
        assert done.code == 4, (command, done.err)
        assert "login" in done.err
        assert "may not" in done.err or "has no rights" in done.err, (command, done.err)
        assert "Traceback" not in done.err


# --- and nothing else

REFUSED = {
    "a worker reads MLflow's runs": ("ann", "SELECT artifact_uri FROM mlflow.runs"),
    "a worker has MLflow read a file": ("ann", "UPDATE mlflow.runs SET artifact_uri = '/etc'"),
    "a worker reads webhooks": ("ann", "SELECT url FROM mlflow.webhooks"),
    "a worker deletes studies": ("ann", "DELETE FROM tuner.tuner_studies"),
    "a worker deletes trials": ("ann", "DELETE FROM tuner.tuner_trials"),
    "a worker deletes curves": ("ann", "DELETE FROM tuner.tuner_chunks"),
    "a worker deletes Optuna's studies": ("ann", "DELETE FROM public.studies"),
    "a worker moves a trial": ("ann", "UPDATE tuner.tuner_trials SET study_id = 1"),
    "a worker changes a login": ("ann", "ALTER ROLE rob SET statement_timeout = 1"),
    "a worker changes its role": ("ann", "ALTER ROLE tuner_worker SET statement_timeout = 1"),
    "a worker joins a role": ("ann", "GRANT tuner_mlflow TO ann"),
    "a worker becomes MLflow": ("ann", "SET ROLE tuner_mlflow"),
    "a worker truncates": ("ann", "TRUNCATE tuner.tuner_chunks"),
    "a worker reads files": ("ann", "SELECT pg_read_file('/etc/passwd')"),
    "a worker runs a program": ("ann", "COPY tuner.tuner_studies TO PROGRAM 'cat'"),
    "a recorder has MLflow read a file": ("rob", "UPDATE mlflow.runs SET artifact_uri = '/etc'"),
    "a recorder moves an experiment": (
        "rob", "UPDATE mlflow.experiments SET artifact_location = '/etc'"),
    "a recorder adds a webhook": ("rob", "INSERT INTO mlflow.webhooks (name) VALUES ('x')"),
    "a recorder reads webhooks": ("rob", "SELECT url FROM mlflow.webhooks"),
    "a recorder deletes runs": ("rob", "DELETE FROM mlflow.runs"),
    "a recorder promotes a model": ("rob", "UPDATE mlflow.registered_model_aliases SET version=1"),
    "a recorder changes trials": ("rob", "UPDATE tuner.tuner_trials SET value = 0"),
    "a recorder submits": ("rob", "INSERT INTO tuner.tuner_studies (name) VALUES ('x')"),
    "MLflow reads the ledger": ("mel", "SELECT * FROM tuner.tuner_studies"),
    "MLflow changes the ledger": ("mel", "UPDATE tuner.tuner_trials SET value = 0"),
    "MLflow reads Optuna's tables": ("mel", "SELECT * FROM public.studies"),
    "MLflow drops a table": ("mel", "DROP TABLE mlflow.runs"),
    "MLflow makes a table": ("mel", "CREATE TABLE mlflow.mine ()"),
    "a reader changes trials": ("rita", "UPDATE tuner.tuner_trials SET value = 0"),
    "a reader changes runs": ("rita", "UPDATE mlflow.runs SET name = 'x'"),
    "a reader reads webhooks": ("rita", "SELECT url FROM mlflow.webhooks"),
    "a reader reads MLflow's keys": ("rita", "SELECT * FROM mlflow.secrets"),
    "a recorder takes a lock": ("rob", "SELECT * FROM tuner.tuner_locks FOR SHARE"),
    "a reader takes a lock": ("rita", "SELECT * FROM tuner.tuner_locks FOR KEY SHARE"),
    "a reader locks a row": ("rita", "SELECT * FROM tuner.tuner_studies FOR SHARE"),
}  # fmt: skip


def test_a_login_can_do_nothing_beyond_its_job(here):
    for what, (name, statement) in REFUSED.items():
        with psycopg.connect(as_(here, name)) as connection:
            try:
                connection.execute(statement)
            except psycopg.errors.InsufficientPrivilege:
                continue
        pytest.fail(f"{what}: {statement} succeeded")


def test_no_login_locks_a_table_but_that_of_checkpoints(here):
    """MLflow's own login can lock MLflow's tables, since its server deletes rows there."""
    query = (
        "SELECT schemaname || '.' || tablename FROM pg_tables "
        "WHERE schemaname IN ('tuner', 'mlflow', 'public')"
    )
    tables = [one for (one,) in here.rows(query)]
    allowed = []
    for name in ("ann", "rob", "rita"):
        with psycopg.connect(as_(here, name), autocommit=True) as connection:
            for table in tables:
                try:
                    with connection.transaction():
                        connection.execute(f"LOCK TABLE {table} IN ROW SHARE MODE")
                        allowed.append((name, table))
                except psycopg.errors.InsufficientPrivilege:
                    continue
    assert allowed == [("ann", "tuner.tuner_checkpoints")]


def test_only_the_owner_deletes_a_study_and_a_refusal_changes_nothing(here):
    owner = Ledger(storage.ledger_engine(here.places.ledger))
    study = submitted(owner)
    for name in ("ann", "rob", "rita"):
        places = addresses(here, name)
        with pytest.raises(UnavailableError, match=f"'{name}' may not delete studies"):
            manage.delete(Ledger(storage.ledger_engine(places.ledger)), places, study.name)
    assert owner.study(study.name) == study
    manage.delete(owner, here.places, study.name)
    assert owner.studies() == []


LOCKS = "SELECT * FROM tuner.tuner_locks FOR UPDATE"


def test_who_holds_up_submit_or_a_retraining_is_named(here, monkeypatch):
    """A worker's login can hold their locks; others can hold advisory locks, which do nothing."""
    monkeypatch.setattr(locks, "LOCK_SECONDS", 1)
    owner = Ledger(storage.ledger_engine(here.places.ledger))
    with psycopg.connect(as_(here, "ann")) as holder:
        holder.execute(LOCKS)
        named = rf"login 'ann' \(process {holder.info.backend_pid}\)"
        with pytest.raises(UnavailableError, match=f"`submit` has waited.*{named}"):
            submitted(owner)
        with pytest.raises(UnavailableError, match=f"`retrain` has waited.*{named}"):
            Retrainings(owner).claim("line", "1", "line", "w")
    with psycopg.connect(as_(here, "rita")) as holder:
        for key in (0x7375626D6974, 0x72657472):  # of earlier versions
            holder.execute("SELECT pg_advisory_lock(%s)", [key])
        submitted(owner)
        Retrainings(owner).claim("line", "1", "line", "w")
    owner.engine.dispose()


# --- what upgrades do


def test_an_upgrade_revokes_what_earlier_versions_granted(here):
    for schema in ("tuner", "mlflow"):
        here.cluster.execute(f"GRANT USAGE ON SCHEMA {schema} TO tuner_worker", here.database)
        here.cluster.execute(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO "
            "tuner_worker, tuner_reader",
            here.database,
        )
    assert rows(as_(here, "ann"), "SELECT count(*) FROM mlflow.runs") == [(0,)]
    upgrade(here)
    for name, statement in (
        ("ann", "SELECT count(*) FROM mlflow.runs"),
        ("ann", "DELETE FROM tuner.tuner_studies"),
        ("rita", "DELETE FROM tuner.tuner_studies"),
        ("rita", "SELECT url FROM mlflow.webhooks"),
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            rows(as_(here, name), statement)


def test_no_login_holds_up_an_upgrade(here):
    """The lock is on a table of the owner's; a version before locked a number, as anybody may."""
    for name in LOGINS:
        with (
            psycopg.connect(as_(here, name)) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute("LOCK TABLE tuner.tuner_migration_lock IN ACCESS SHARE MODE")
    with psycopg.connect(as_(here, "rita")) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [0x74756E6572])
        connection.execute("SELECT * FROM tuner.tuner_studies")
        upgrade(here)


def test_an_upgrade_resets_what_a_login_has_set_for_itself(here):
    for where in ("", f"IN DATABASE {here.database}"):
        with psycopg.connect(as_(here, "ann")) as connection:
            connection.execute(f"ALTER ROLE ann {where} SET lock_timeout = 7")
    assert rows(as_(here, "ann"), "SHOW lock_timeout") == [("7ms",)]
    upgrade(here, storage.Login(name="ann", role="tuner_worker", password="x"))
    assert rows(as_(here, "ann"), "SHOW lock_timeout") == [("0",)]
