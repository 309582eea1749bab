"""The ledger's tables of retrainings and of the timetables that start them."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from tuner.core.text import NAME_LIMIT
from tuner.ledger.tables import AS_JSON, metadata

retrainings = Table(
    "tuner_retrainings",
    metadata,
    Column("id", Integer, primary_key=True),
    # its name: a retraining is of no one version
    Column("study", String(NAME_LIMIT), nullable=False),
    Column("run_key", String(200), nullable=False),
    Column("model", String(NAME_LIMIT), nullable=False),  # in the registry
    Column("stage", String(16), nullable=False),  # what is to be done next
    Column("outcome", String(16)),  # promoted, kept, failed
    Column("reason", Text),
    Column("result", AS_JSON, nullable=False),  # what each stage found, by its name
    Column("worker", String(250)),  # that claimed it last
    Column("token", Integer, nullable=False),  # counts claims: the fencing token
    Column("live", Boolean, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
    UniqueConstraint("study", "run_key"),
    Index(
        "tuner_retrainings_one_live",
        "model",
        unique=True,
        sqlite_where=text("live"),
        postgresql_where=text("live"),
    ),
    sqlite_autoincrement=True,  # files are named by it
)

timetables = Table(
    "tuner_timetables",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("study", String(NAME_LIMIT), nullable=False),
    Column("expression", String(200), nullable=False),
    Column("zone", String(100), nullable=False),
    Column("grace", Double, nullable=False),  # seconds
    Column("catch_up", String(16), nullable=False),  # latest, all, skip
    Column("overlap", String(16), nullable=False),  # skip, queue
    Column("enabled", Boolean, nullable=False),
    Column("seen_at", Double, nullable=False),  # ticks up to then have been dealt with
    Column("next_at", Double, nullable=False),  # the first tick after that
    Column("created_at", Double, nullable=False),
    sqlite_autoincrement=True,
)

timetable_runs = Table(
    "tuner_timetable_runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("timetable_id", ForeignKey(timetables.c.id), nullable=False),
    Column("fire_at", Double, nullable=False),
    Column("state", String(16), nullable=False),  # waiting, running, ended, skipped, missed
    Column("outcome", String(16)),  # of its retraining
    Column("reason", Text),
    Column("worker", String(250)),
    Column("token", Integer, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("claimed_at", Double),
    Column("ended_at", Double),
    UniqueConstraint("timetable_id", "fire_at"),
    Index(
        "tuner_timetable_runs_one_running",
        "timetable_id",
        unique=True,
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    Index(
        "tuner_timetable_runs_open",
        "fire_at",
        sqlite_where=text("state IN ('waiting', 'running')"),
        postgresql_where=text("state IN ('waiting', 'running')"),
    ),
)

IS_OPEN = text("tuner_timetable_runs.state IN ('waiting', 'running')")
"""In the same words as in the index."""
