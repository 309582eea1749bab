"""Projects, studies that workers leave alone, workers that were started, and limits on metrics."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

# PostgreSQL's own type knows no Infinity
AS_JSON = sa.JSON().with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "tuner_projects",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("workers", sa.Integer(), nullable=True),
        sa.Column("steps_week", sa.Double(), nullable=True),
        sa.Column("shared", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    if op.get_bind().dialect.name == "postgresql":
        locks = sa.table("tuner_locks", sa.column("name"), sa.column("taken"))
        op.bulk_insert(locks, [{"name": "quota", "taken": 0}])
    op.create_table(
        "tuner_exclusions",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=250), nullable=False),
        sa.Column("ends_at", sa.Double(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["tuner_studies.id"]),
        sa.PrimaryKeyConstraint("study_id", "worker"),
    )
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
    op.add_column("tuner_trials", sa.Column("objectives", AS_JSON, nullable=True))
    op.add_column("tuner_trials", sa.Column("violation", sa.Double(), nullable=True))
