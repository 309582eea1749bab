"""Tables of projects, and of studies that workers leave alone for a while."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
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
