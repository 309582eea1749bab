"""Privileges in a PostgreSQL database: two roles to which people and workers are added.

A *worker* reads and writes rows and cannot create, change or drop a table, nor change a schema's
version; a *reader* only reads. The role that runs the migrations owns the tables. An administrator
adds logins: `CREATE ROLE anna LOGIN PASSWORD '...' IN ROLE tuner_worker`, or `tuner db upgrade
--worker` does.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, text

from tuner.core.errors import UsageError
from tuner.ledger.database.addresses import LEDGER_SCHEMA, OPTUNA_SCHEMA, TRACKING_SCHEMA
from tuner.ledger.tables import VERSION_TABLE

WORKER, READER = "tuner_worker", "tuner_reader"
ROWS = "SELECT, INSERT, UPDATE, DELETE"
VERSION_TABLES = (VERSION_TABLE, "alembic_version", "version_info")


def refuse_diverted(tx: Connection) -> None:
    """Refuse a role with a schema's name: PostgreSQL searches a schema of the role's name first."""
    _refuse_name(str(tx.scalar(text("SELECT current_user"))))


def _refuse_name(role: str) -> None:
    if role in (LEDGER_SCHEMA, TRACKING_SCHEMA):
        raise UsageError(
            f"the database role is called {role!r}, as a schema of ours is, and PostgreSQL would "
            "look for Optuna's tables there; use a role with another name"
        )


def grant(tx: Connection, optuna_tables: Collection[str]) -> str | None:
    """Make the roles where they are missing, and grant them what they need.

    Return what an administrator must do where this role may not make roles; else None.
    """
    missing = [role for role in (WORKER, READER) if not _exists(tx, role)]
    if missing and not _may_make_roles(tx):
        commands = "; ".join(f"CREATE ROLE {role} NOLOGIN" for role in missing)
        return (
            f"this role may not make roles; let an administrator run `{commands}`, then "
            "`tuner db upgrade` again to grant them what workers and readers need"
        )
    for role in missing:
        _run(tx, f"CREATE ROLE {role} NOLOGIN")
    for role, privileges in ((WORKER, ROWS), (READER, "SELECT")):
        _grant(tx, role, privileges, optuna_tables)
    return None


def let_work(tx: Connection, login: str, password: str) -> None:
    """Create a login in the role of workers, or set the password of an existing one.

    The server gets a hash of it, so that the password is in neither its log nor its statistics.
    """
    from psycopg import sql  # noqa: PLC0415 - late, as everywhere

    _refuse_name(login)
    if login == tx.scalar(text("SELECT current_user")):
        raise UsageError(
            f"{login!r} owns the tables and runs the migrations; workers need another login"
        )
    driver = tx.connection.driver_connection
    assert driver is not None
    hashed = driver.pgconn.encrypt_password(password.encode(), login.encode(), b"scram-sha-256")
    name = sql.Identifier(login)
    if not _exists(tx, login):
        _run(tx, sql.SQL("CREATE ROLE {} LOGIN").format(name).as_string(driver))
    literal = sql.Literal(hashed.decode())
    _run(tx, sql.SQL("ALTER ROLE {} PASSWORD {}").format(name, literal).as_string(driver))
    _run(tx, sql.SQL("GRANT {} TO {}").format(sql.Identifier(WORKER), name).as_string(driver))


def _grant(tx: Connection, role: str, privileges: str, optuna_tables: Collection[str]) -> None:
    existing = set(tx.scalars(text("SELECT nspname FROM pg_namespace")))
    schemas = [name for name in (LEDGER_SCHEMA, TRACKING_SCHEMA) if name in existing]
    everywhere = ", ".join([*schemas, OPTUNA_SCHEMA])
    _run(tx, f"GRANT USAGE ON SCHEMA {everywhere} TO {role}")
    tables = [f"{OPTUNA_SCHEMA}.{name}" for name in sorted(optuna_tables)]
    sequences = [
        f"{OPTUNA_SCHEMA}.{name}" for name in _sequences_of(tx, OPTUNA_SCHEMA, optuna_tables)
    ]
    for schema in schemas:
        _run(tx, f"GRANT {privileges} ON ALL TABLES IN SCHEMA {schema} TO {role}")
        _run(tx, f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}")
    _run(tx, f"GRANT {privileges} ON {', '.join(tables)} TO {role}")
    if sequences:
        _run(tx, f"GRANT USAGE, SELECT ON {', '.join(sequences)} TO {role}")
    for schema, name in _version_tables(tx, [*schemas, OPTUNA_SCHEMA]):
        _run(tx, f"REVOKE INSERT, UPDATE, DELETE ON {schema}.{name} FROM {role}")


def _version_tables(tx: Connection, schemas: list[str]) -> list[tuple[str, str]]:
    query = "SELECT schemaname, tablename FROM pg_tables WHERE tablename = ANY(:names)"
    found = tx.execute(text(query), {"names": list(VERSION_TABLES)})
    return [(row.schemaname, row.tablename) for row in found if row.schemaname in schemas]


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
