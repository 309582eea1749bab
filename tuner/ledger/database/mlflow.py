"""MLflow: opening it, making its tables where it has no server, and translating its errors."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tuner.core.errors import ConnectionLostError, SchemaError, UnavailableError
from tuner.core.outputs import private_file
from tuner.ledger.database.addresses import Addresses, without_password
from tuner.ledger.database.engines import is_lost, ledger_engine, reached
from tuner.ledger.database.locks import migration_lock
from tuner.ledger.database.pooling import pooled

if TYPE_CHECKING:
    from mlflow import MlflowClient

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
REFUSED = re.compile(r"(?:^|error code )40[13]\b")
"""Errors of MLflow's client and of requests when a server refuses a login."""
SERVED = "mlflow-artifacts"
"""The scheme of files that an MLflow server keeps."""
_alone = threading.Lock()


def tracking_client(places: Addresses) -> MlflowClient:
    """Open MLflow, which makes its tables if they are in a file that is new.

    Raise `UnavailableError` when it cannot; a server is not asked anything yet.
    """
    from mlflow import MlflowClient  # noqa: PLC0415

    require_tracking(places)
    makes_tables = places.tracking.startswith("sqlite:")
    with (
        migration_lock(places) if makes_tables and places.file else nullcontext(),
        tracking_reached(places.tracking),
    ):
        return MlflowClient(tracking_uri=pooled(places.tracking))


@contextmanager
def sent_once() -> Iterator[None]:
    """Let MLflow's client send each request of the body once.

    It would retry requests without an answer or with a 500, and so might create a run twice. The
    caller looks for what it creates before it retries.
    """
    with _alone:
        before = os.environ.get(RETRIES)  # MLflow has no other setting
        os.environ[RETRIES] = "0"
        try:
            yield
        finally:
            if before is None:
                del os.environ[RETRIES]
            else:
                os.environ[RETRIES] = before


def upgrade_tracking(places: Addresses) -> None:
    """Make MLflow's tables, or bring them to the installed version's schema, and hold the lock.

    A server upgrades its own tables.
    """
    if not places.owns_tracking:
        return
    with migration_lock(places):
        make_tracking(places)


def make_tracking(places: Addresses) -> None:
    """Do what `upgrade_tracking` does; the caller holds the lock."""
    from mlflow import MlflowClient  # noqa: PLC0415
    from mlflow.store.db import utils  # noqa: PLC0415

    file = make_url(places.tracking).database if places.tracking.startswith("sqlite") else None
    if file and not file.startswith("file:"):
        with suppress(OSError):  # SQLite's own message is better
            private_file(Path(file))
    with tracking_reached(places.tracking):
        engine = utils.create_sqlalchemy_engine_with_retry(pooled(places.tracking))
        if utils._all_tables_exist(engine):
            utils._upgrade_db(engine)
        else:
            utils._initialize_tables(engine)
        engine.dispose()
        MlflowClient(tracking_uri=pooled(places.tracking))  # makes the default experiment


def require_tracking(places: Addresses) -> None:
    """Raise at once if this login may not use MLflow's tables, or if there are none.

    MLflow would retry for minutes. Raise nothing about a server or a file.
    """
    if not places.tracking.startswith("postgresql"):
        return
    engine = ledger_engine(places.tracking)
    try:
        with reached(places.tracking), engine.connect() as connection:
            query = text("SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace "
                         "WHERE nspname = current_setting('search_path')")  # fmt: skip
            may = connection.scalar(query)
            user = connection.scalar(text("SELECT current_user"))
            there = engine.dialect.has_table(connection, "experiments")
    finally:
        engine.dispose()
    if may is False:
        raise UnavailableError(
            f"the database login {user!r} has no rights on MLflow's tables, as workers have none; "
            "set MLFLOW_TRACKING_URI to the address of an MLflow server, or train with `tuner "
            "worker --no-recorder` and publish with `tuner recorder` and a login in the role "
            "tuner_recorder"
        )
    if not there:
        raise SchemaError(
            f"there are no tables of MLflow in {without_password(places.tracking)}; "
            "`tuner db upgrade` makes them"
        )


@contextmanager
def tracking_reached(uri: str) -> Iterator[None]:
    """Turn errors of MLflow, its database and its files into `UnavailableError`."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:  # requests' are OSErrors
        message = (str(error).splitlines() or [""])[0]
        if is_refused(error):
            raise UnavailableError(
                f"MLflow at {without_password(uri)} does not let this login do that; use one that "
                f"may write. Its error: {without_password(message)}"
            ) from error
        if is_database(uri) and SERVED in message:
            raise UnavailableError(
                "the study's files are kept by an MLflow server; set MLFLOW_TRACKING_URI to its "
                f"address, which is now that of a database, {without_password(uri)}"
            ) from error
        lost = uri.startswith("postgresql") and _is_connection_lost(error)
        kind = ConnectionLostError if lost else UnavailableError
        raise kind(
            f"MLflow at {without_password(uri)} cannot be used; start or repair it, or "
            f"set MLFLOW_TRACKING_URI to another one. Its error: {without_password(message)}"
        ) from error


def is_refused(error: Exception) -> bool:
    """Return whether a server refuses the login, as an error of MLflow's client or of requests."""
    return REFUSED.search((str(error).splitlines() or [""])[0]) is not None


def is_served(artifacts: str) -> bool:
    """Return whether a run's files are kept by an MLflow server."""
    return artifacts.startswith(SERVED)


def is_database(tracking: str) -> bool:
    """Return whether a tracking URI is a database's, and not a server's."""
    return not tracking.startswith(("http:", "https:"))


def _is_connection_lost(error: Exception) -> bool:
    """Return whether the connection to MLflow's database was lost."""
    if isinstance(error, DBAPIError):
        return is_lost(error)
    return getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE"
