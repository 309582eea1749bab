"""Migrations of all tables, once, under one lock; and opening what they made.

Optuna's and MLflow's tables are made here too, since concurrent first starts would corrupt them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Select, column, event, inspect, select, table, text
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from tuner.core.errors import (
    ConnectionLostError,
    MigratedError,
    SchemaError,
    UnavailableError,
    UsageError,
)
from tuner.core.failpoints import reach
from tuner.core.outputs import private_file
from tuner.ledger.database import checks, roles
from tuner.ledger.database.addresses import (
    LEDGER_SCHEMA,
    OPTUNA_SCHEMA,
    TRACKING_SCHEMA,
    Addresses,
    without_password,
)
from tuner.ledger.database.engines import ledger_engine, reached
from tuner.ledger.database.locks import migration_lock
from tuner.ledger.database.mlflow import make_tracking
from tuner.ledger.database.optuna import upgrade_optuna
from tuner.ledger.database.pooling import is_pooled
from tuner.ledger.retrying import FIRST_SECONDS, LONGEST_SECONDS, RETRY_SECONDS
from tuner.ledger.tables import HEAD, VERSION_TABLE

VERSION: Select[Any] = select(column("version_num")).select_from(table(VERSION_TABLE))
CHECK_SECONDS = 5.0
"""How long a process uses the ledger until it checks again that nobody has migrated it."""


def open_ledger(places: Addresses, *, create: bool) -> Engine:
    """Open the ledger's database; where `create` allows it, make a new one in a file first.

    Raise `UnavailableError` when there is none or it cannot be used, and `SchemaError` when its
    schema is another version's. A PostgreSQL database gets its tables from `upgrade` alone. Once
    another version has migrated the database, every transaction of the engine raises
    `MigratedError`.
    """
    engine = ledger_engine(places.ledger)
    with reached(places.ledger):
        absent = places.file is not None and not places.file.exists()
        revision = None if absent else _retried(lambda: _revision(engine))
        if revision is None and create and places.file is not None:
            upgrade_ledger(places)
        else:
            _check(places, revision)
    _refuse_when_migrated(places, engine)
    return engine


def _refuse_when_migrated(places: Addresses, engine: Engine) -> None:
    """Compare the schema again as transactions begin, every `CHECK_SECONDS`."""
    checked_at = time.monotonic()

    @event.listens_for(engine, "begin")
    def compare(connection: Connection) -> None:
        nonlocal checked_at
        if time.monotonic() < checked_at + CHECK_SECONDS:
            return
        revision = connection.scalar(VERSION)
        if revision != HEAD:
            raise MigratedError(
                f"the database {without_password(places.optuna)} was migrated to schema {revision} "
                f"while this process, which needs {HEAD}, was running; start it again with the "
                "version of tuner that migrated it"
            )
        checked_at = time.monotonic()


def check_schema(places: Addresses, engine: Engine) -> None:
    """Check once that the database exists and has this version's schema.

    Raise `UnavailableError` or `SchemaError` like `open_ledger`.
    """
    with reached(places.ledger):
        _check(places, _revision(engine))


def _check(places: Addresses, revision: str | None) -> None:
    if revision is None:
        raise _nothing_there(places)
    if revision != HEAD:
        _refuse(places, revision)


def upgrade(places: Addresses, logins: Sequence[roles.Login] = ()) -> str | None:
    """Upgrade all schemas (the ledger's, Optuna's and MLflow's) from any earlier version.

    On PostgreSQL also the schemas, the roles with their privileges, and the `logins` with their
    passwords; return what an administrator must do for these, or None.
    """
    if logins and places.file is not None:
        raise UsageError("SQLite knows no logins; expected a PostgreSQL database for them")
    upgrade_ledger(places, tracking=places.owns_tracking)
    return _grant_roles(places, logins) if places.file is None else None


def upgrade_ledger(places: Addresses, *, tracking: bool = False) -> None:
    """Upgrade all schemas in the ledger's database; MLflow's only with `tracking`.

    The ledger's are upgraded last, so its revision proves that all are complete.
    """
    from alembic import command  # noqa: PLC0415

    if places.file is None:
        _verify_schemas(places)
    with migration_lock(places), reached(places.ledger):
        if places.file is not None:
            with suppress(OSError):  # SQLite's own message is better
                private_file(places.file)
        engine = ledger_engine(places.ledger)
        revision = _revision(engine)
        if revision is not None and revision not in _revisions():
            _refuse(places, revision)
        if places.file is None:
            _make_schemas(engine)
        upgrade_optuna(places)
        if tracking:
            make_tracking(places)
        configuration = _configuration()
        reach("upgrade.before_ours")
        with engine.execution_options(writes=True).begin() as connection:
            configuration.attributes["connection"] = connection
            if revision != HEAD:
                checks.drop_triggers(connection)
            command.upgrade(configuration, "head")
            checks.create(connection)
        engine.dispose()


def _verify_schemas(places: Addresses) -> None:
    """Raise `UsageError` unless tables will be made in the schemas that they belong to."""
    for url in {places.ledger, places.optuna, places.tracking}:
        if not url.startswith("postgresql"):
            continue
        engine = ledger_engine(url)
        with reached(url), engine.connect() as connection:
            roles.refuse_diverted(connection)
            pooled = is_pooled(connection)
            schema = connection.scalar(text("SELECT current_schema()"))
        engine.dispose()
        if pooled:
            raise UsageError(
                f"{without_password(url)} is a connection pooler, which does not keep the schema "
                "that tables are made in; name PostgreSQL's own host and port for `tuner db "
                "upgrade` (workers and recorders may use the pooler)"
            )
        if url == places.optuna and schema != OPTUNA_SCHEMA:
            raise UsageError(
                f"Optuna's tables would be made in the schema {schema!r} of "
                f"{without_password(url)}, expected {OPTUNA_SCHEMA!r}; let an administrator run "
                "ALTER ROLE ... RESET search_path"
            )


def _make_schemas(engine: Engine) -> None:
    with engine.execution_options(writes=True).begin() as tx:
        for schema in (LEDGER_SCHEMA, TRACKING_SCHEMA):
            tx.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))


def _grant_roles(places: Addresses, logins: Sequence[roles.Login]) -> str | None:
    from optuna.storages._rdb.models import BaseModel  # noqa: PLC0415 - late, as everywhere

    with migration_lock(places), reached(places.ledger):
        engine = ledger_engine(places.ledger)
        with engine.execution_options(writes=True).begin() as tx:
            left = roles.grant(tx, {*BaseModel.metadata.tables, "alembic_version"})
            for login in logins if left is None else ():
                roles.let_in(tx, login)
        engine.dispose()
    return left


def _retried(read: Callable[[], str | None]) -> str | None:
    """Retry a read while the database restarts, as every other call does."""
    retrying = Retrying(
        retry=retry_if_exception_type(ConnectionLostError),
        wait=wait_random_exponential(multiplier=FIRST_SECONDS, max=LONGEST_SECONDS),
        stop=stop_after_delay(RETRY_SECONDS),
        reraise=True,
    )
    return retrying(read)


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not inspect(connection).has_table(VERSION_TABLE):
            return None
        found = connection.scalar(VERSION)
        return None if found is None else str(found)


def _nothing_there(places: Addresses) -> UnavailableError:
    if places.file is None:
        return SchemaError(
            f"there are no tables of tuner in {without_password(places.optuna)}, or this role may "
            "not see them; `tuner db upgrade` makes them"
        )
    return UnavailableError(
        f"there is no ledger at {places.file}; `tuner run FILE` makes one, and TUNER_DATABASE_URL "
        "names another one"
    )


def _refuse(places: Addresses, revision: str) -> None:
    shown = without_password(places.optuna)
    if revision in _revisions():
        raise SchemaError(
            f"the database {shown} has schema {revision}, this version of tuner needs {HEAD}; "
            "back it up, then run `tuner db upgrade`"
        )
    raise SchemaError(
        f"the database {shown} has schema {revision}, which is newer than this version of tuner "
        f"knows ({HEAD}); upgrade tuner"
    )


def _configuration() -> Any:
    from alembic.config import Config  # noqa: PLC0415 - a quarter of a second, seldom needed

    configuration = Config()
    scripts = str(Path(__file__).parents[1] / "migrations")
    configuration.set_main_option("script_location", scripts.replace("%", "%%"))
    return configuration


def _revisions() -> list[str]:
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    scripts = ScriptDirectory.from_config(_configuration())
    return [script.revision for script in scripts.walk_revisions()]
