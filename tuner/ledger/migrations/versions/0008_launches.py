"""Table of the workers that executors have started."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

# PostgreSQL's own type knows no Infinity
AS_JSON = sa.JSON().with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "tuner_launches",
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("executor", sa.String(length=16), nullable=False),
        sa.Column("workers", sa.Integer(), nullable=False),
        sa.Column("handles", AS_JSON, nullable=False),
        sa.Column("os_user", sa.String(length=250), nullable=False),
        sa.Column("host", sa.String(length=250), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["tuner_studies.id"]),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("ix_tuner_launches_study_id", "tuner_launches", ["study_id"])
