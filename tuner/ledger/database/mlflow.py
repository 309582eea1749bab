"""MLflow: opening it, making its tables where they are ours to make, and its errors as ours."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tuner.core.errors import ConnectionLostError, SchemaError, UnavailableError
from tuner.core.outputs import private_file
from tuner.ledger.database.addresses import Addresses, without_password
from tuner.ledger.database.engines import is_lost, ledger_engine
from tuner.ledger.database.locks import migration_lock
from tuner.ledger.database.pooling import pooled

if TYPE_CHECKING:
    from mlflow import MlflowClient

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
REFUSED = re.compile(r"(?:^|error code )40[13]\b")
"""What MLflow's client and requests say when a server refuses a login."""
SERVED = "mlflow-artifacts"
"""The scheme of files that an MLflow server keeps."""
_alone = threading.Lock()


def tracking_client(places: Addresses) -> MlflowClient:
    """Open MLflow, which makes its tables if they are in a file that is new.

    Raises `UnavailableError` when it cannot; a server is not asked anything yet.
    """
    # a recorder tries again by itself, and a person waits for the others; MLflow's own default
    # is to try for four minutes, and two more at each
    os.environ.setdefault(RETRIES, "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    # with a server MLflow prints addresses of runs and bars beside what our commands print
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient  # noqa: PLC0415

    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each retry
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if places.tracking.startswith("postgresql"):
        _refuse_without_tables(places)
    makes_tables = places.tracking.startswith("sqlite:")
    with (
        migration_lock(places) if makes_tables and places.file else nullcontext(),
        tracking_reached(places.tracking),
    ):
        return MlflowClient(tracking_uri=pooled(places.tracking))


@contextmanager
def sent_once() -> Iterator[None]:
    """Let MLflow's client send the requests of the body once each.

    It repeats what got no answer or a 500, unseen, and also what makes a run: the first one may
    be there all the same. Who makes something looks for it before the next try.
    """
    with _alone:
        before = os.environ[RETRIES]  # MLflow has no other way to say it
        os.environ[RETRIES] = "0"
        try:
            yield
        finally:
            os.environ[RETRIES] = before


def upgrade_tracking(places: Addresses) -> None:
    """Make MLflow's tables, or bring them to the installed version's schema, and hold the lock.

    A server looks after its own.
    """
    if not places.owns_tracking:
        return
    with migration_lock(places):
        make_tracking(places)


def make_tracking(places: Addresses) -> None:
    """Do what `upgrade_tracking` does, for whoever holds the lock."""
    from mlflow import MlflowClient  # noqa: PLC0415
    from mlflow.store.db import utils  # noqa: PLC0415

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    file = make_url(places.tracking).database if places.tracking.startswith("sqlite") else None
    if file and not file.startswith("file:"):
        with suppress(OSError):  # which SQLite words better
            private_file(Path(file))
    with tracking_reached(places.tracking):
        engine = utils.create_sqlalchemy_engine_with_retry(pooled(places.tracking))
        if utils._all_tables_exist(engine):
            utils._upgrade_db(engine)
        else:
            utils._initialize_tables(engine)
        engine.dispose()
        MlflowClient(
            tracking_uri=pooled(places.tracking)
        )  # makes the experiment that is always there


def _refuse_without_tables(places: Addresses) -> None:
    """Find out quickly whether the database is there: MLflow would try for minutes."""
    engine = ledger_engine(places.tracking)
    try:
        with engine.connect() as connection:
            there = engine.dialect.has_table(connection, "experiments")
    finally:
        engine.dispose()
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
        said = (str(error).splitlines() or [""])[0]
        if REFUSED.search(said):
            raise UnavailableError(
                f"MLflow at {without_password(uri)} does not let this login do that; use one that "
                f"may write. It said: {without_password(said)}"
            ) from error
        if is_database(uri) and SERVED in said:
            raise UnavailableError(
                "the study's files are kept by an MLflow server; set MLFLOW_TRACKING_URI to its "
                f"address, which is now that of a database, {without_password(uri)}"
            ) from error
        lost = uri.startswith("postgresql") and _says_lost(error)
        kind = ConnectionLostError if lost else UnavailableError
        raise kind(
            f"MLflow at {without_password(uri)} cannot be used; start or mend it, or let "
            f"MLFLOW_TRACKING_URI say where another one is. It said: {without_password(said)}"
        ) from error


def is_served(artifacts: str) -> bool:
    """Tell whether a run's files are kept by an MLflow server."""
    return artifacts.startswith(SERVED)


def is_database(tracking: str) -> bool:
    """Tell whether a tracking URI is a database's, and not a server's."""
    return not tracking.startswith(("http:", "https:"))


def _says_lost(error: Exception) -> bool:
    """Tell whether the connection to MLflow's database was lost; MLflow has a code for that."""
    if isinstance(error, DBAPIError):
        return is_lost(error)
    return getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE"
