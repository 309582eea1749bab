"""Addresses: where the ledger, Optuna's tables, MLflow's runs and checkpoints are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from tuner.core.errors import UsageError
from tuner.core.file_stores import FileStore, file_store
from tuner.core.redaction import redacted_url

POSTGRESQL = "postgresql+psycopg"
LEDGER_SCHEMA, OPTUNA_SCHEMA, TRACKING_SCHEMA = "tuner", "public", "mlflow"
"""The schemas of a PostgreSQL database; on SQLite MLflow has a file of its own."""


UI = "http://127.0.0.1:5000"
"""Where `tuner ui` serves MLflow's UI, unless a tracking server does."""


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where the ledger, Optuna's tables, MLflow's runs and checkpoints are."""

    ledger: str  # an SQLAlchemy URL, of ours
    optuna: str  # an SQLAlchemy URL, in the same database
    tracking: str  # what MLflow calls a tracking URI
    checkpoints: FileStore
    artifacts: Path | None  # of runs; None: a server has its own
    spill: Path  # a local folder for curves while the database is unreachable
    file: Path | None  # the ledger's, on SQLite

    @property
    def lock(self) -> Path:
        """The file whose lock is held while tables are made and changed in a SQLite file."""
        assert self.file is not None
        return self.file.with_name(self.file.name + ".lock")

    @property
    def owns_tracking(self) -> bool:
        """Return whether MLflow's tables are in a database that we open, not behind a server."""
        return not self.tracking.startswith(("http:", "https:"))

    def shown(self) -> dict[str, str]:
        """Return the addresses with `***` for passwords."""
        return {
            "ledger": without_password(self.ledger),
            "optuna": without_password(self.optuna),
            "mlflow": without_password(self.tracking),
            "checkpoints": str(self.checkpoints),
        }


def ui_address(tracking: str) -> str:
    """Return the address of the tracking server without a password, else that of `tuner ui`."""
    if not tracking.startswith(("http:", "https:")):
        return UI
    parts = urlsplit(tracking)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def without_password(url: str) -> str:
    """Return a URL with `***` for its password; hide more where it cannot be parsed."""
    return redacted_url(url)


def addresses(environment: Mapping[str, str], folder: Path) -> Addresses:
    """Find the addresses for a process in `folder`. Raise `UsageError` for a malformed URL."""
    given = environment.get("TUNER_DATABASE_URL") or "sqlite:///tuner.db"
    try:
        url = make_url(given)
    except (ArgumentError, ValueError) as error:
        raise UsageError(
            f"TUNER_DATABASE_URL is not a database URL: {without_password(given)!r}; expected "
            "one like sqlite:////home/me/tuner.db or postgresql://me:password@host/database"
        ) from error
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        return _on_sqlite(url, given, environment, folder)
    if url.drivername in ("postgres", "postgresql", POSTGRESQL):
        return _on_postgresql(url, environment, folder)
    raise UsageError(
        f"TUNER_DATABASE_URL names {url.drivername}; expected SQLite, such as "
        "sqlite:////home/me/tuner.db, or PostgreSQL, such as postgresql://me:password@host/database"
    )


def _on_sqlite(url: URL, given: str, environment: Mapping[str, str], folder: Path) -> Addresses:
    file = _sqlite_file(url, folder)
    whole = url.set(database=str(file))  # a relative path is another one in another process
    address = given if _is_uri(url) else whole.render_as_string(hide_password=False)
    tracking = _tracking(environment) or _sqlite_url(file.with_name("mlflow.db"))
    return Addresses(
        ledger=address,
        optuna=address,
        tracking=tracking,
        artifacts=_artifacts(tracking, environment, folder),
        file=file,
        checkpoints=_checkpoints(environment, file.parent),
        spill=_spill(environment, file.parent),
    )


def _on_postgresql(url: URL, environment: Mapping[str, str], folder: Path) -> Addresses:
    if not url.database:
        raise UsageError(
            "TUNER_DATABASE_URL names no database; expected one at its end, as in "
            "postgresql://me:password@host/database"
        )
    url = url.set(drivername=POSTGRESQL)
    tracking = _tracking(environment) or in_schema(url, TRACKING_SCHEMA)
    return Addresses(
        ledger=in_schema(url, LEDGER_SCHEMA),
        optuna=url.render_as_string(hide_password=False),
        tracking=tracking,
        artifacts=_artifacts(tracking, environment, folder),
        file=None,
        checkpoints=_checkpoints(environment, folder),
        spill=_spill(environment, folder),
    )


def _tracking(environment: Mapping[str, str]) -> str | None:
    """Return the address of MLflow. Raise `UsageError` for a database in memory."""
    given = environment.get("MLFLOW_TRACKING_URI")
    if given and given.startswith("sqlite"):
        try:
            url = make_url(given)
        except (ArgumentError, ValueError) as error:
            raise UsageError(
                f"MLFLOW_TRACKING_URI is not a database URL: {given!r}; expected one like "
                "sqlite:////home/me/mlflow.db"
            ) from error
        if _in_memory(url):
            raise UsageError(
                "MLFLOW_TRACKING_URI names no file; several processes share MLflow's runs; "
                "expected one like sqlite:////home/me/mlflow.db"
            )
    return given


def in_schema(url: URL, schema: str) -> str:
    """Return the URL of a PostgreSQL database in which unqualified names mean a schema's tables.

    It is an option of the connection, so it holds for all users of the URL, such as MLflow's
    migrations.
    """
    options = " ".join([*_as_list(url.query.get("options")), f"-csearch_path={schema}"])
    return url.update_query_dict({"options": options}).render_as_string(hide_password=False)


def _as_list(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _checkpoints(environment: Mapping[str, str], beside: Path) -> FileStore:
    return file_store(environment.get("TUNER_CHECKPOINTS") or beside / ".tuner" / "checkpoints")


def _spill(environment: Mapping[str, str], beside: Path) -> Path:
    return Path(environment.get("TUNER_SPILL") or beside / ".tuner" / "spill")


def _artifacts(tracking: str, environment: Mapping[str, str], folder: Path) -> Path | None:
    """Find the folder of artifacts: beside MLflow's file, and for its schema in this folder."""
    if tracking.startswith("sqlite:"):
        return Path(tracking.removeprefix("sqlite:///")).resolve().parent / "mlartifacts"
    if tracking.startswith("postgresql"):
        return Path(environment.get("TUNER_ARTIFACTS") or folder / "mlartifacts").resolve()
    return None


def _sqlite_url(file: Path) -> str:
    return URL.create("sqlite", database=str(file)).render_as_string()


def _is_uri(url: URL) -> bool:
    """Return whether SQLite reads the path as a URI, as in sqlite:///file:PATH?mode=ro&uri=true."""
    return (url.database or "").startswith("file:")


def _path(url: URL) -> str:
    path = url.database or ""
    return unquote(path.removeprefix("file:")) if _is_uri(url) else path


def _in_memory(url: URL) -> bool:
    return _path(url) in {"", ":memory:"} or url.query.get("mode") == "memory"


def _sqlite_file(url: URL, folder: Path) -> Path:
    if _in_memory(url):
        raise UsageError("TUNER_DATABASE_URL names no file; several processes share the ledger")
    return (folder / _path(url)).resolve()
