"""What a trial violates its study's constraints by."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("tuner_trials", sa.Column("violation", sa.Double(), nullable=True))
