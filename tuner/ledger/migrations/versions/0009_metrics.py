"""The values of several objectives, and what a trial violates its study's constraints by."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

AS_JSON = sa.JSON().with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    op.add_column("tuner_trials", sa.Column("objectives", AS_JSON, nullable=True))
    op.add_column("tuner_trials", sa.Column("violation", sa.Double(), nullable=True))
