"""Where things are kept: addresses, engines with the right options, and migrations.

Everything follows from three variables of the environment, all optional:
- `TUNER_DATABASE_URL`: the ledger's and Optuna's database; `tuner.db` in the working directory.
- `MLFLOW_TRACKING_URI`: where runs go; without it `mlflow.db` beside the ledger's file.
- `TUNER_CHECKPOINTS`: the folder of checkpoints; without it `.tuner/checkpoints` beside it.

Optuna's and MLflow's own tables are made here too, once, under a file lock, because first starts
that race break their files for good.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from filelock import FileLock
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    ExceptionContext,
    column,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    table,
)
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    OperationalError,
    SQLAlchemyError,
)

from tuner.errors import SchemaError, UnavailableError, UsageError
from tuner.ledger.tables import HEAD, VERSION_TABLE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from optuna.storages import RDBStorage

BUSY_SECONDS = 60
"""How long a SQLite connection waits for another's transaction."""


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the ledger, Optuna's tables, MLflow's runs and checkpoints are."""

    ledger: str  # an SQLAlchemy URL; Optuna's tables are in the same database
    tracking: str  # what MLflow calls a tracking URI
    checkpoints: Path
    lock: Path  # of migrations

    def shown(self) -> dict[str, str]:
        """Give the addresses as they may be shown: passwords as `***`."""
        return {
            "ledger": without_password(self.ledger),
            "optuna": without_password(self.ledger),
            "mlflow": without_password(self.tracking),
            "checkpoints": str(self.checkpoints),
        }


def without_password(url: str) -> str:
    """Show a URL with `***` for its password; of one that cannot be parsed rather too little."""
    hidden = re.sub(r"(://[^:/@]*):(?!\d+/).*@", r"\1:***@", url, count=1)
    return re.sub(r"([?&][^=&]*password=)[^&]*", r"\1***", hidden, flags=re.IGNORECASE)


def addresses(environment: Mapping[str, str], folder: Path) -> Addresses:
    """Find the addresses for a process in `folder`. Raises `UsageError` for a malformed URL."""
    given = environment.get("TUNER_DATABASE_URL") or "sqlite:///tuner.db"
    try:
        url = make_url(given)
    except (ArgumentError, ValueError) as error:
        raise UsageError(
            f"TUNER_DATABASE_URL is not a database URL: {without_password(given)!r}; "
            "expected one like sqlite:////home/me/tuner.db"
        ) from error
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise UsageError(
            f"TUNER_DATABASE_URL names {url.drivername}; this version keeps its ledger in SQLite "
            "only, such as sqlite:////home/me/tuner.db"
        )
    file = _sqlite_file(url, folder)
    whole = url.set(database=str(file))  # a relative path is another one in another process
    return Addresses(
        ledger=given if _is_uri(url) else whole.render_as_string(hide_password=False),
        tracking=environment.get("MLFLOW_TRACKING_URI") or _sqlite_url(file.with_name("mlflow.db")),
        checkpoints=Path(
            environment.get("TUNER_CHECKPOINTS") or file.parent / ".tuner" / "checkpoints"
        ),
        lock=file.with_name(file.name + ".lock"),
    )


def _sqlite_url(file: Path) -> str:
    return URL.create("sqlite", database=str(file)).render_as_string()


def _is_uri(url: URL) -> bool:
    """Tell whether SQLite reads the path as a URI, as in sqlite:///file:PATH?mode=ro&uri=true."""
    return (url.database or "").startswith("file:")


def _sqlite_file(url: URL, folder: Path) -> Path:
    path = url.database or ""
    if _is_uri(url):
        path = unquote(path.removeprefix("file:"))
    if path in {"", ":memory:"} or url.query.get("mode") == "memory":
        raise UsageError("TUNER_DATABASE_URL names no file; several processes share the ledger")
    return (folder / path).resolve()


def ledger_engine(url: str) -> Engine:
    """Make an engine for the ledger; it never makes tables.

    A transaction begins with BEGIN, or with BEGIN IMMEDIATE under the execution option
    `writes=True`, so that a writer never finds its snapshot stale when it comes to write. A
    database that cannot be used (locked for good, read-only, full, broken) is `UnavailableError`.
    """
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late
        for pragma in ("foreign_keys=ON", "journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    @event.listens_for(engine, "handle_error")
    def translate(context: ExceptionContext) -> BaseException | None:
        error = context.sqlalchemy_exception
        broken = isinstance(error, OperationalError) or type(error) is DatabaseError
        return _unavailable(url, context.original_exception) if broken else None

    return engine


def _unavailable(url: str, error: BaseException | None) -> UnavailableError:
    return UnavailableError(f"the database {without_password(url)} cannot be used: {error}")


@contextmanager
def reached(where: str) -> Iterator[None]:
    """Turn the driver's errors about a database that cannot be used into `UnavailableError`."""
    try:
        yield
    except DBAPIError as error:
        raise _unavailable(where, error.orig) from error


def open_ledger(places: Addresses, *, create: bool) -> Engine:
    """Open the ledger's database, and make a new one first where `create` allows it.

    Raises `UnavailableError` when there is none or it cannot be used, and `SchemaError` when its
    schema is another version's.
    """
    engine = ledger_engine(places.ledger)
    file = _sqlite_file(make_url(places.ledger), Path())
    with reached(places.ledger):
        revision = _revision(engine) if file.exists() else None
        if revision is None:
            if not create:
                raise UnavailableError(
                    f"there is no ledger at {file}; `tuner run FILE` makes one, and "
                    "TUNER_DATABASE_URL says where another one is"
                )
            upgrade_ledger(places)
        elif revision != HEAD:
            _refuse(places, revision)
    return engine


def _revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        if not inspect(connection).has_table(VERSION_TABLE):
            return None
        found = connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))
        return None if found is None else str(found)


def _refuse(places: Addresses, revision: str) -> None:
    shown = without_password(places.ledger)
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
    scripts = str(Path(__file__).parent / "migrations")
    configuration.set_main_option("script_location", scripts.replace("%", "%%"))
    return configuration


def _revisions() -> list[str]:
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    scripts = ScriptDirectory.from_config(_configuration())
    return [script.revision for script in scripts.walk_revisions()]


@contextmanager
def migration_lock(places: Addresses) -> Iterator[None]:
    """Hold the lock under which tables are made and changed."""
    if not places.lock.parent.is_dir():  # the lock would make it
        raise UnavailableError(f"there is no folder {places.lock.parent}; make it first")
    try:
        with FileLock(places.lock):
            yield
    except OSError as error:
        raise UnavailableError(f"cannot write beside the database: {error}") from error


def upgrade_ledger(places: Addresses) -> None:
    """Bring our tables and Optuna's to this version's schema, from whatever is there.

    Ours come last, so a database with our revision is whole.
    """
    from alembic import command  # noqa: PLC0415

    with migration_lock(places), reached(places.ledger):
        engine = ledger_engine(places.ledger)
        revision = _revision(engine)
        if revision is not None and revision not in _revisions():
            _refuse(places, revision)
        with _logging_kept():
            _upgrade_optuna(places)
        configuration = _configuration()
        with engine.execution_options(writes=True).begin() as connection:
            configuration.attributes["connection"] = connection
            command.upgrade(configuration, "head")
        engine.dispose()


def upgrade_tracking(places: Addresses) -> None:
    """Make MLflow's tables where it keeps them in a file of its own that is new."""
    if places.tracking.startswith("sqlite:"):
        tracking_client(places)


def optuna_storage(places: Addresses) -> RDBStorage:
    """Open Optuna's tables. Raises `SchemaError` when they are another version's."""
    try:
        return _optuna_storage(places)
    except RuntimeError as error:
        raise SchemaError(
            f"Optuna's tables in {without_password(places.ledger)}: {error}"
        ) from error


def _optuna_storage(places: Addresses, *, any_version: bool = False) -> RDBStorage:
    import optuna  # noqa: PLC0415

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.storages.RDBStorage(
        places.ledger,
        engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}},
        skip_compatibility_check=any_version,
    )


def _upgrade_optuna(places: Addresses) -> None:
    storage = _optuna_storage(places, any_version=True)
    storage.upgrade()
    storage.engine.dispose()


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Keep Optuna's migrations from setting up logging, which would silence all other loggers."""
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def tracking_client(places: Addresses) -> MlflowClient:
    """Open MLflow, which makes its tables if they are in a file that is new.

    Raises `UnavailableError` when it cannot; a server is not asked anything yet.
    """
    # a recorder tries again by itself, and a person waits for the others; MLflow's own default
    # is to try for four minutes, and two more at each
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow import MlflowClient  # noqa: PLC0415

    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each retry
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    makes_tables = places.tracking.startswith("sqlite:")
    with (
        migration_lock(places) if makes_tables else nullcontext(),
        tracking_reached(places.tracking),
    ):
        return MlflowClient(tracking_uri=places.tracking)


@contextmanager
def tracking_reached(uri: str) -> Iterator[None]:
    """Turn MLflow's errors into `UnavailableError`."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise UnavailableError(
            f"MLflow at {without_password(uri)} cannot be used; start or mend it, or let "
            f"MLFLOW_TRACKING_URI say where another one is. It said: {without_password(said)}"
        ) from error
