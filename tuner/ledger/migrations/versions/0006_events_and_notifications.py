"""Tables of what people did, and of notifications to be sent."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

# PostgreSQL's own type knows no Infinity
AS_JSON = sa.JSON().with_variant(sa.Text(), "postgresql")
OPEN = sa.text("state IN ('waiting', 'sending')")


def upgrade() -> None:
    served = op.get_bind().dialect.name == "postgresql"
    clock = sa.text("extract(epoch from clock_timestamp())::double precision") if served else None
    login = sa.text("session_user") if served else None
    op.create_table(
        "tuner_events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("happened_at", sa.Double(), nullable=False, server_default=clock),
        sa.Column("db_role", sa.String(length=250), nullable=True, server_default=login),
        sa.Column("study", sa.String(length=250), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("details", AS_JSON, nullable=False),
        sa.Column("os_user", sa.String(length=250), nullable=False),
        sa.Column("host", sa.String(length=250), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("tuner_events_by_study", "tuner_events", ["study", "id"])
    op.create_table(
        "tuner_notifications",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("study", sa.String(length=250), nullable=False),
        sa.Column("channel", sa.String(length=16), nullable=False),
        sa.Column("target", sa.String(length=250), nullable=False),
        sa.Column("title", sa.String(length=1000), nullable=False),
        sa.Column("content", AS_JSON, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("worker", sa.String(length=250), nullable=True),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("key"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "tuner_notifications_open",
        "tuner_notifications",
        ["due_at"],
        sqlite_where=OPEN,
        postgresql_where=OPEN,
    )
