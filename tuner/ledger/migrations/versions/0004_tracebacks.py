"""The traceback of what ended an attempt."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("tuner_attempts", sa.Column("traceback", sa.Text(), nullable=True))
