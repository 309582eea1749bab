"""Tables of projects, and of studies that workers leave alone for a while."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


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
