"""The weights of projects among which workers are shared."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("tuner_projects", sa.Column("weight", sa.Double(), nullable=True))
