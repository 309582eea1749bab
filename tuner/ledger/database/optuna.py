"""Optuna's own tables: making, upgrading and opening them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from tuner.core.errors import SchemaError
from tuner.ledger.database.addresses import OPTUNA_SCHEMA, Addresses, in_schema, without_password
from tuner.ledger.database.engines import connect_args
from tuner.ledger.database.pooling import PLUGIN

if TYPE_CHECKING:
    from optuna.storages import RDBStorage


def optuna_storage(places: Addresses) -> RDBStorage:
    """Open Optuna's tables. Raise `SchemaError` when they are another version's."""
    try:
        return _storage(places)
    except RuntimeError as error:
        raise SchemaError(
            f"Optuna's tables in {without_password(places.optuna)}: {error}"
        ) from error


def upgrade_optuna(places: Addresses) -> None:
    """Make Optuna's tables, or bring them to the installed version's schema; hold the lock."""
    with _logging_kept():
        storage = _storage(places, makes_tables=True)
        storage.upgrade()
        storage.engine.dispose()


def _storage(places: Addresses, *, makes_tables: bool = False) -> RDBStorage:
    import optuna  # noqa: PLC0415

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = places.optuna
    if places.file is None:  # whatever search_path the role or a connection pooler has
        url = in_schema(make_url(url), OPTUNA_SCHEMA)
    return optuna.storages.RDBStorage(
        url,
        engine_kwargs={
            "connect_args": connect_args(url),
            "pool_pre_ping": places.file is None,
            "plugins": [PLUGIN] if places.file is None else [],
        },
        skip_compatibility_check=makes_tables,
        skip_table_creation=not makes_tables,
    )


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Keep Optuna's migrations from setting up logging, which would silence all other loggers."""
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
