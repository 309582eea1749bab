"""Rows of PostgreSQL that are locks; only logins that may change them can hold them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":  # SQLite has one writer at a time
        return
    made = op.create_table(
        "tuner_locks",
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("taken", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.bulk_insert(made, [{"name": name, "taken": 0} for name in ("submit", "retrain")])
