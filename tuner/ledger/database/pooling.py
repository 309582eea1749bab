"""Connections through a connection pooler such as pgbouncer, where no session belongs to a client.

In transaction mode each transaction may run on another connection of the pooler's. The pooler drops
the `search_path` that a URL asks for, a `SET` leaks to other clients, and a prepared statement may
not exist where it is executed. So on a pooled connection each transaction sets its own
`search_path`, and statements are not prepared. Direct connections are left as they are.

MLflow and Optuna make their engines themselves. `SearchPath` is an SQLAlchemy plugin, which an
engine loads by its name: from the URL (`plugin=tuner_search_path`) or from `create_engine`.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import URL, Connection, CreateEnginePlugin, Engine, event, make_url
from sqlalchemy.pool import ConnectionPoolEntry

PLUGIN = "tuner_search_path"
"""The name of `SearchPath` among SQLAlchemy's plugins, in pyproject.toml."""
POOLED = "tuner_pooled"
"""The key in a connection's `info` that marks it as going through a pooler."""


def follow_search_path(engine: Engine) -> None:
    """Let transactions on an engine's pooled connections have the `search_path` of its URL."""
    path = search_path(engine.url)

    @event.listens_for(engine, "connect")
    def recognize(connection: Any, record: ConnectionPoolEntry) -> None:
        query = "SELECT pg_backend_pid(), current_setting('search_path')"
        process, effective = connection.execute(query).fetchone()
        connection.rollback()
        # a pooler reports a process id of its own
        if process != connection.info.backend_pid or path not in (None, effective):
            connection.prepare_threshold = None
            record.info[POOLED] = True

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if path is not None and is_pooled(connection):
            connection.exec_driver_sql("SELECT set_config('search_path', %s, true)", (path,))


def is_pooled(connection: Connection) -> bool:
    """Return whether a connection goes through a pooler, on an engine that looks for one."""
    return POOLED in connection.info


def search_path(url: URL) -> str | None:
    """Return the `search_path` that a URL asks for in its options; None if it asks for none."""
    options = url.query.get("options", ())
    text = options if isinstance(options, str) else " ".join(options)
    found = re.findall(r"-c\s*search_path=(\S+)", text)
    return found[-1] if found else None


def pooled(uri: str) -> str:
    """Return MLflow's tracking URI with the plugin in it, where it is a PostgreSQL database's."""
    if not uri.startswith("postgresql"):
        return uri
    url = make_url(uri).update_query_dict({"plugin": PLUGIN})
    return url.render_as_string(hide_password=False)


class SearchPath(CreateEnginePlugin):
    """Calls `follow_search_path` on the engine that loads this plugin."""

    def update_url(self, url: URL) -> URL:
        """Remove the plugin's name, which the driver does not know."""
        return url.difference_update_query(["plugin"])

    def engine_created(self, engine: Engine) -> None:
        """Listen to the engine."""
        if engine.driver == "psycopg":
            follow_search_path(engine)
