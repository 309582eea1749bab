"""Privileges in a PostgreSQL database: roles to which people and services are added.

The role that runs the migrations owns the tables. An administrator adds logins: `CREATE ROLE anna
LOGIN PASSWORD '...' IN ROLE tuner_worker`, or `tuner db upgrade --worker` does.

| role | ledger | Optuna's tables | MLflow's tables |
|---|---|---|---|
| tuner_worker | read, insert, change; delete checkpoints | read, insert, change | none |
| tuner_recorder | read; record what is published | read, insert, change | read, insert, change |
| tuner_mlflow | none | none | read and write rows, as MLflow's server does |
| tuner_reader | read | read | read |

"Change" leaves out keys, references and the addresses of files. It is granted by column, and
PostgreSQL lets a role lock a table only with a right on the whole of it. Events are only added, and
their time and login are set by the server alone. A recorder also sends notifications. Nobody but
the owner sets limits of projects, deletes studies, creates or changes tables, or changes a schema's
version; and nobody but the owner and MLflow reads the secrets that MLflow stores.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine, text

from tuner.core.errors import UnavailableError, UsageError
from tuner.ledger.database.addresses import LEDGER_SCHEMA, OPTUNA_SCHEMA, TRACKING_SCHEMA
from tuner.ledger.database.locks import LOCK_TABLE
from tuner.ledger.event_tables import events, notifications
from tuner.ledger.tables import (
    VERSION_TABLE,
    checkpoints,
    projects,
    published_studies,
    published_trials,
    studies,
)

WORKER, RECORDER, MLFLOW, READER = "tuner_worker", "tuner_recorder", "tuner_mlflow", "tuner_reader"
ROLES = (WORKER, RECORDER, MLFLOW, READER)
VERSION_TABLES = frozenset({VERSION_TABLE, "alembic_version", "version_info"})
FILES = frozenset({"artifact_location", "artifact_uri"})
"""Columns with addresses of files, which MLflow's server reads for its users."""
SECRETS = frozenset({"secrets", "webhooks", "webhook_events"})
"""Tables of MLflow with addresses and keys."""
SERVERS_OWN = frozenset({"happened_at", "db_role"})
"""Columns of events that have defaults of the server."""
PUBLISHED = frozenset(
    {
        "datasets",
        "experiment_tags",
        "experiments",
        "input_tags",
        "inputs",
        "latest_metrics",
        "metrics",
        "params",
        "runs",
        "tags",
    }
)
"""Tables of MLflow in which a recorder writes."""


@dataclass(frozen=True, kw_only=True)
class Login:
    """A login that `tuner db upgrade` makes."""

    name: str
    role: str  # one of ROLES
    password: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class _Table:
    schema: str
    name: str
    changeable: tuple[str, ...]  # columns that are no key, no reference and no address of files

    @property
    def quoted(self) -> str:
        return f'{self.schema}."{self.name}"'


def refuse_diverted(tx: Connection) -> None:
    """Refuse a role with a schema's name: PostgreSQL searches a schema of the role's name first."""
    _refuse_name(str(tx.scalar(text("SELECT current_user"))))


def _refuse_name(role: str) -> None:
    if role in (LEDGER_SCHEMA, TRACKING_SCHEMA):
        raise UsageError(
            f"the database role is called {role!r}, as a schema of ours is, and PostgreSQL would "
            "look for Optuna's tables there; use a role with another name"
        )


def require_deletion(engine: Engine) -> None:
    """Raise `UnavailableError` unless this login may delete studies."""
    if engine.dialect.name != "postgresql":
        return
    with engine.begin() as tx:
        query = text("SELECT current_user, has_table_privilege(:table, 'DELETE')")
        user, may = tx.execute(query, {"table": studies.name}).one()
    if not may:
        raise UnavailableError(
            f"the database login {user!r} may not delete studies; use the login that owns the "
            "tables"
        )


def grant(tx: Connection, optuna_tables: Collection[str]) -> str | None:
    """Make the roles where they are missing, and give them exactly the privileges they need.

    Privileges that an earlier version granted are revoked. Return what an administrator must do
    where this role may not make roles; else None.
    """
    missing = [role for role in ROLES if not _exists(tx, role)]
    may_make = _may_make_roles(tx)
    for role in missing if may_make else ():
        _run(tx, f"CREATE ROLE {role} NOLOGIN")
    tables = list(_tables(tx, optuna_tables))
    for role in ROLES:
        if may_make or role not in missing:
            _revoke(tx, role, tables)
            _grant(tx, role, tables)
    if missing and not may_make:
        commands = "; ".join(f"CREATE ROLE {role} NOLOGIN" for role in missing)
        return (
            f"this role may not make roles; let an administrator run `{commands}`, then "
            "`tuner db upgrade` again to grant them what they need"
        )
    return None


def let_in(tx: Connection, login: Login) -> None:
    """Create a login in its role, or set the password of an existing one and reset its settings.

    The server gets a hash of the password, so that it is in neither its log nor its statistics.
    """
    from psycopg import sql  # noqa: PLC0415 - late, as everywhere

    _refuse_name(login.name)
    if login.name == tx.scalar(text("SELECT current_user")):
        raise UsageError(
            f"{login.name!r} owns the tables and runs the migrations; others need another login"
        )
    driver = tx.connection.driver_connection
    assert driver is not None
    hashed = driver.pgconn.encrypt_password(
        login.password.encode(), login.name.encode(), b"scram-sha-256"
    )
    name = sql.Identifier(login.name)
    if not _exists(tx, login.name):
        _run(tx, sql.SQL("CREATE ROLE {} LOGIN").format(name).as_string(driver))
    here = sql.Identifier(str(tx.scalar(text("SELECT current_database()"))))
    literal = sql.Literal(hashed.decode())
    for statement in (
        sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, literal),
        sql.SQL("GRANT {} TO {}").format(sql.Identifier(login.role), name),
        # a login may set defaults of its own sessions, and so of all that share it
        sql.SQL("ALTER ROLE {} RESET ALL").format(name),
        sql.SQL("ALTER ROLE {} IN DATABASE {} RESET ALL").format(name, here),
    ):
        _run(tx, statement.as_string(driver))


# --- what each role may do

Rights = Callable[[_Table], Collection[str]]


def _of_worker(table: _Table) -> Collection[str]:
    if table.schema == TRACKING_SCHEMA:
        return ()
    rights = _growing(table)
    return [*rights, "DELETE"] if table.name == checkpoints.name and rights else rights


def _of_recorder(table: _Table) -> Collection[str]:
    records = table.schema == OPTUNA_SCHEMA or table.name in (
        published_studies.name,
        published_trials.name,
        notifications.name,
        *(PUBLISHED if table.schema == TRACKING_SCHEMA else ()),
    )
    return _growing(table) if records else _of_reader(table)


def _of_mlflow(table: _Table) -> Collection[str]:
    if table.schema != TRACKING_SCHEMA:
        return ()
    return ["SELECT"] if table.name in VERSION_TABLES else ["SELECT, INSERT, UPDATE, DELETE"]


def _of_reader(table: _Table) -> Collection[str]:
    if table.schema != TRACKING_SCHEMA or table.name not in SECRETS:
        return ["SELECT"]
    if table.name == "webhooks" and "workspace" in table.changeable:
        return ["SELECT (webhook_id, workspace)"]  # without which MLflow's server does not start
    return ()


def _growing(table: _Table) -> list[str]:
    """Return the rights to read, insert and change rows."""
    if table.name in VERSION_TABLES or _is_owners(table):
        return ["SELECT"]
    if table.name == events.name and table.schema == LEDGER_SCHEMA:
        given = ", ".join(f'"{one}"' for one in table.changeable if one not in SERVERS_OWN)
        return ["SELECT", f"INSERT ({given})"]
    columns = ", ".join(f'"{column}"' for column in table.changeable)
    return ["SELECT", "INSERT", *([f"UPDATE ({columns})"] if columns else [])]


def _is_owners(table: _Table) -> bool:
    """Return whether only the owner changes a table: quotas bind those who submit."""
    return table.name == projects.name and table.schema == LEDGER_SCHEMA


RIGHTS: dict[str, Rights] = {
    WORKER: _of_worker,
    RECORDER: _of_recorder,
    MLFLOW: _of_mlflow,
    READER: _of_reader,
}


def _grant(tx: Connection, role: str, tables: Collection[_Table]) -> None:
    for table in tables:
        rights = RIGHTS[role](table)
        if rights:
            _run(tx, f"GRANT {', '.join(rights)} ON {table.quoted} TO {role}")
    visible = {table.schema for table in tables if RIGHTS[role](table)}
    for schema in sorted(visible):
        _run(tx, f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    if role == READER:
        return
    written = {table.name for table in tables if "INSERT" in " ".join(RIGHTS[role](table))}
    for schema in sorted(visible):
        for name in _sequences_of(tx, schema, written):
            _run(tx, f'GRANT USAGE, SELECT ON SEQUENCE {schema}."{name}" TO {role}')


def _revoke(tx: Connection, role: str, tables: Collection[_Table]) -> None:
    """Revoke what earlier versions granted, by the column too."""
    for schema in sorted({table.schema for table in tables} - {OPTUNA_SCHEMA}):
        for kind in ("TABLES", "SEQUENCES"):
            _run(tx, f"REVOKE ALL ON ALL {kind} IN SCHEMA {schema} FROM {role}")
        _run(tx, f"REVOKE ALL ON SCHEMA {schema} FROM {role}")
    of_optuna = [table for table in tables if table.schema == OPTUNA_SCHEMA]
    _run(tx, f"REVOKE ALL ON {', '.join(one.quoted for one in of_optuna)} FROM {role}")
    for name in _sequences_of(tx, OPTUNA_SCHEMA, {one.name for one in of_optuna}):
        _run(tx, f'REVOKE ALL ON SEQUENCE {OPTUNA_SCHEMA}."{name}" FROM {role}')


def _tables(tx: Connection, optuna_tables: Collection[str]) -> Iterator[_Table]:
    """Find our tables, MLflow's and Optuna's, but for the one that is a lock."""
    query = """
        SELECT n.nspname, c.relname, coalesce(array_agg(a.attname::text ORDER BY a.attnum)
            FILTER (WHERE NOT EXISTS (
                SELECT FROM pg_constraint k WHERE k.conrelid = c.oid
                AND k.contype IN ('p', 'f') AND a.attnum = ANY (k.conkey)
            )), '{}') AS changeable
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relkind IN ('r', 'p') AND n.nspname = ANY (:schemas) AND c.relname <> :lock
        GROUP BY 1, 2 ORDER BY 1, 2
    """
    schemas = [LEDGER_SCHEMA, TRACKING_SCHEMA, OPTUNA_SCHEMA]
    for schema, name, columns in tx.execute(text(query), {"schemas": schemas, "lock": LOCK_TABLE}):
        if schema != OPTUNA_SCHEMA or name in optuna_tables:
            changeable = tuple(column for column in columns if column not in FILES)
            yield _Table(schema=schema, name=name, changeable=changeable)


def _sequences_of(tx: Connection, schema: str, tables: Collection[str]) -> list[str]:
    query = (
        "SELECT s.relname FROM pg_class s JOIN pg_depend d ON d.objid = s.oid "
        "JOIN pg_class t ON t.oid = d.refobjid JOIN pg_namespace n ON n.oid = s.relnamespace "
        "WHERE s.relkind = 'S' AND n.nspname = :schema AND t.relname = ANY(:tables)"
    )
    return list(tx.scalars(text(query), {"schema": schema, "tables": list(tables)}))


def _exists(tx: Connection, role: str) -> bool:
    query = "SELECT count(*) FROM pg_roles WHERE rolname = :role"
    return bool(tx.scalar(text(query), {"role": role}))


def _may_make_roles(tx: Connection) -> bool:
    query = "SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
    return bool(tx.scalar(text(query)))


def _run(tx: Connection, statement: str) -> None:
    tx.exec_driver_sql(statement.replace("%", "%%"))
