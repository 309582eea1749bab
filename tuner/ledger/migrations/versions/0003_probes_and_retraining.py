"""Tables of probes, retrainings (unique per study and key), timetables and their runs."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# PostgreSQL's own type knows no Infinity
AS_JSON = sa.JSON().with_variant(sa.Text(), "postgresql")


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":  # SQLite ignores lengths
        op.alter_column("tuner_studies", "name", type_=sa.String(length=250))
    op.create_table(
        "tuner_probes",
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=250), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("result", AS_JSON, nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["tuner_studies.id"]),
        sa.PrimaryKeyConstraint("study_id"),
    )
    op.create_table(
        "tuner_retrainings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study", sa.String(length=250), nullable=False),
        sa.Column("run_key", sa.String(length=200), nullable=False),
        sa.Column("model", sa.String(length=250), nullable=False),
        sa.Column("stage", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("result", AS_JSON, nullable=False),
        sa.Column("worker", sa.String(length=250), nullable=True),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("live", sa.Boolean(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("study", "run_key"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "tuner_retrainings_one_live",
        "tuner_retrainings",
        ["model"],
        unique=True,
        sqlite_where=sa.text("live"),
        postgresql_where=sa.text("live"),
    )
    op.create_table(
        "tuner_timetables",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("study", sa.String(length=250), nullable=False),
        sa.Column("expression", sa.String(length=200), nullable=False),
        sa.Column("zone", sa.String(length=100), nullable=False),
        sa.Column("grace", sa.Double(), nullable=False),
        sa.Column("catch_up", sa.String(length=16), nullable=False),
        sa.Column("overlap", sa.String(length=16), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("next_at", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "tuner_timetable_runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("timetable_id", sa.Integer(), nullable=False),
        sa.Column("fire_at", sa.Double(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("worker", sa.String(length=250), nullable=True),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("claimed_at", sa.Double(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["timetable_id"], ["tuner_timetables.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("timetable_id", "fire_at"),
    )
    op.create_index(
        "tuner_timetable_runs_one_running",
        "tuner_timetable_runs",
        ["timetable_id"],
        unique=True,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(
        "tuner_timetable_runs_open",
        "tuner_timetable_runs",
        ["fire_at"],
        unique=False,
        sqlite_where=sa.text("state IN ('waiting', 'running')"),
        postgresql_where=sa.text("state IN ('waiting', 'running')"),
    )
