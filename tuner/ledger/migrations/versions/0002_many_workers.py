"""Idempotency keys of claims, and indexes on live attempts."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("tuner_attempts", sa.Column("claim", sa.String(length=32), nullable=True))
    op.create_index("tuner_attempts_by_claim", "tuner_attempts", ["claim"], unique=False)
    op.create_index(
        "tuner_attempts_live",
        "tuner_attempts",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("live"),
        postgresql_where=sa.text("live"),
    )
    op.create_index(
        "tuner_trials_running",
        "tuner_trials",
        ["study_id", "number"],
        unique=False,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
