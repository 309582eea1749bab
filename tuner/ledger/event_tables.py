"""The ledger's tables of what people did, and of notifications to be sent."""

from __future__ import annotations

from sqlalchemy import Column, Double, Index, Integer, String, Table, Text, UniqueConstraint, text

from tuner.core.text import NAME_LIMIT
from tuner.ledger.tables import AS_JSON, metadata

ACTIONS = (
    "submitted", "changed", "paused", "resumed", "stopped", "deleted", "enqueued", "retried",
    "extended", "confirmed", "retrained", "rolled back", "approved", "rejected", "timetable",
    "noted", "tagged", "project",
)  # fmt: skip
"""What a person, or a program in their name, did to a study."""
CHANNELS = ("webhook", "apprise")
STATES = ("waiting", "sending", "sent", "abandoned")
"""The states of a notification; the last two are final."""

events = Table(
    "tuner_events",
    metadata,
    Column("id", Integer, primary_key=True),
    # on PostgreSQL set by the server, and by nobody else: see `tuner.ledger.database.roles`
    Column("happened_at", Double, nullable=False),
    Column("db_role", String(NAME_LIMIT)),  # the login; none on SQLite
    Column("study", String(NAME_LIMIT), nullable=False),  # its name; it may be deleted since
    Column("action", String(16), nullable=False),
    Column("reason", Text),
    Column("details", AS_JSON, nullable=False),
    Column("os_user", String(NAME_LIMIT), nullable=False),
    Column("host", String(NAME_LIMIT), nullable=False),
    Index("tuner_events_by_study", "study", "id"),
    sqlite_autoincrement=True,  # the order of ids is that of events
)

notifications = Table(
    "tuner_notifications",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", String(64), nullable=False),  # idempotency key; the receiver gets it too
    Column("study", String(NAME_LIMIT), nullable=False),
    Column("channel", String(16), nullable=False),
    Column("target", String(NAME_LIMIT), nullable=False),  # the variable with the address
    Column("title", String(1000), nullable=False),
    Column("content", AS_JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("due_at", Double, nullable=False),  # when it is to be tried
    Column("worker", String(250)),  # that tried it last
    Column("token", Integer, nullable=False),  # counts tries: the fencing token
    Column("expires_at", Double, nullable=False),
    Column("error", Text),  # of the last try
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
    UniqueConstraint("key"),
    Index(
        "tuner_notifications_open",
        "due_at",
        sqlite_where=text("state IN ('waiting', 'sending')"),
        postgresql_where=text("state IN ('waiting', 'sending')"),
    ),
    sqlite_autoincrement=True,  # a lease on a deleted row must not fit another row
)

IS_OPEN = text("tuner_notifications.state IN ('waiting', 'sending')")
"""In the same words as in the index."""
