"""The ledger's tables. Their names differ from Optuna's, whose file they share on SQLite.

A changed table needs a migration in `tuner/ledger/migrations/versions` and, in the tests, a frozen
database of the schema before it. Times are seconds since 1970, in the database's clock.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    ColumnElement,
    Dialect,
    Double,
    Exists,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    case,
    exists,
    func,
    select,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from tuner.core.outcome import RUNNING
from tuner.core.text import DEFAULT_PROJECT, NAME_LIMIT

HEAD = "0008"
"""The revision of the schema below; the last migration's."""
VERSION_TABLE = "tuner_alembic_version"

metadata = MetaData()


def read_json(text: Any) -> Any:
    """Return the content of JSON, or the text itself where it is none.

    One bad row must not make all rows of a query unreadable. Text is no content of these columns,
    so the row is refused where its record is made, see `tuner.ledger.decoding`.
    """
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return str(text)


class JSONText(TypeDecorator[Any]):
    """JSON as text, for PostgreSQL, whose own type knows no Infinity and no NaN."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Write it."""
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Read it."""
        return None if value is None else read_json(value)


AS_JSON = JSON(none_as_null=True).with_variant(JSONText(), "postgresql")

studies = Table(
    "tuner_studies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(NAME_LIMIT), nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", String(16), nullable=False),  # of the specification without its budget
    Column("spec", Text, nullable=False),  # JSON; as submitted, defaults filled in
    Column("state", String(16), nullable=False),  # open, paused, stopped
    Column("rungs", AS_JSON, nullable=False),  # steps at which trials report; fixed at submit
    Column("workload", AS_JSON, nullable=False),  # code digest, data's name, digest and sizes
    Column("settled", AS_JSON),  # what the first start settled on: trainer, threads
    Column("attrs", AS_JSON, nullable=False),  # Optuna's system attributes of the study
    Column("limit", Integer, nullable=False),  # trials that may ever be reserved
    Column("reserved", Integer, nullable=False),  # trials reserved so far
    Column("next_number", Integer, nullable=False),
    Column("revision", Integer, nullable=False),  # counts commits that search can see
    Column("created_at", Double, nullable=False),
    UniqueConstraint("name", "version"),
    sqlite_autoincrement=True,  # ids are never reused: folders are named by them
)

trials = Table(
    "tuner_trials",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_id", ForeignKey(studies.c.id), nullable=False),
    Column("number", Integer, nullable=False),
    Column("imported", Boolean, nullable=False),  # from an earlier version: no attempt, no run
    Column("params", AS_JSON),  # complete; null until they are drawn
    Column("attrs", AS_JSON, nullable=False),  # Optuna's system attributes of the trial
    Column("asked_revision", Integer),  # the study's revision that the draw saw
    Column("state", String(16), nullable=False),  # running, or the outcome's kind
    Column("reason", Text),  # the outcome's sentence
    Column("value", Double),
    Column("stopped_step", Integer),
    Column("steps", Integer, nullable=False),  # rows of the curve committed
    Column("last_time", Double, nullable=False),  # of the curve's last point
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("revision", Integer, nullable=False),  # the study's, when this row last changed
    Column("objectives", AS_JSON),  # their values, if the study has several
    Column("violation", Double),  # of constraints; 0: feasible, null: there are none
    UniqueConstraint("study_id", "number"),
    Index("tuner_trials_by_revision", "study_id", "revision"),
    Index(
        "tuner_trials_running",
        "study_id",
        "number",
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    sqlite_autoincrement=True,  # as above
)

attempts = Table(
    "tuner_attempts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("trial_id", ForeignKey(trials.c.id), nullable=False),
    Column("number", Integer, nullable=False),  # the fencing token
    Column("claim", String(32)),  # idempotency key: random, the same for a retried claim
    Column("worker", String(250), nullable=False),
    Column("live", Boolean, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("first_step", Integer, nullable=False),  # at which it began or resumed
    Column("environment", AS_JSON, nullable=False),  # device, packages, commit
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("ending", String(16)),  # finished, interrupted, stale, out_of_memory
    Column("reason", Text),
    Column("traceback", Text),  # of what the workload raised
    UniqueConstraint("trial_id", "number"),
    Index(
        "tuner_attempts_one_live",
        "trial_id",
        unique=True,
        sqlite_where=text("live"),
        postgresql_where=text("live"),
    ),
    Index(
        "tuner_attempts_live",
        "expires_at",
        sqlite_where=text("live"),
        postgresql_where=text("live"),
    ),
    Index("tuner_attempts_by_claim", "claim"),
    sqlite_autoincrement=True,  # a lease on a deleted row must not fit another row
)

chunks = Table(
    "tuner_chunks",
    metadata,
    Column("trial_id", ForeignKey(trials.c.id), primary_key=True),
    Column("first_step", Integer, primary_key=True),
    Column("next_step", Integer, nullable=False),
    Column("attempt_id", ForeignKey(attempts.c.id), nullable=False),
    Column("data", LargeBinary, nullable=False),  # see tuner.core.curves
)

reports = Table(
    "tuner_reports",
    metadata,
    Column("trial_id", ForeignKey(trials.c.id), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("value", Double, nullable=False),
    Column("pruned", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
)

checkpoints = Table(
    "tuner_checkpoints",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("trial_id", ForeignKey(trials.c.id), nullable=False, index=True),
    Column("attempt_id", ForeignKey(attempts.c.id), nullable=False),
    Column("step", Integer, nullable=False),
    Column("path", Text, nullable=False),  # below the folder of checkpoints
    Column("digest", String(64), nullable=False),  # SHA-256 of the file
)

published_studies = Table(
    "tuner_published_studies",
    metadata,
    Column("study_id", ForeignKey(studies.c.id), primary_key=True),
    Column("target", String(16), primary_key=True),  # optuna, mlflow
    Column("external_id", String(250)),  # MLflow's parent run
    Column("revision", Integer, nullable=False),  # the study's, when it was last published
    Column("publisher", String(250)),  # process that holds the lease; also the fencing token
    Column("expires_at", Double, nullable=False),
)

published_trials = Table(
    "tuner_published_trials",
    metadata,
    Column("trial_id", ForeignKey(trials.c.id), primary_key=True),
    Column("target", String(16), primary_key=True),
    Column("external_id", String(250)),  # MLflow's run, Optuna's trial id; null: being created
    Column("next_step", Integer, nullable=False),  # rows below it are published
    Column("final", Boolean, nullable=False),  # the outcome is published too
)

probes = Table(
    "tuner_probes",
    metadata,
    Column("study_id", ForeignKey(studies.c.id), primary_key=True),
    Column("number", Integer, nullable=False),  # counts claims: the fencing token
    Column("worker", String(250), nullable=False),  # that claimed it last
    Column("expires_at", Double, nullable=False),
    Column("result", AS_JSON),  # what was found, or the error; null until it is done
    Column("ended_at", Double),
)

exclusions = Table(  # studies that a worker leaves alone for a while
    "tuner_exclusions",
    metadata,
    Column("study_id", ForeignKey(studies.c.id), primary_key=True),
    Column("worker", String(250), primary_key=True),
    Column("ends_at", Double, nullable=False),
    Column("failures", Integer, nullable=False),  # in a row
    Column("reason", Text, nullable=False),  # of the last one
)

projects = Table(  # those for which something is set; others have no row
    "tuner_projects",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("workers", Integer),  # that train its studies at a time; null: any number
    Column("steps_week", Double),  # steps of its trials in seven days; null: any number
    Column("shared", Boolean, nullable=False),  # anybody may change its studies
    Column("weight", Double),  # its share of common workers; null: 1
)

launches = Table(
    "tuner_launches",
    metadata,
    # an idempotency key: the engine's job is named by it, so it is found after a lost answer
    Column("key", String(32), primary_key=True),
    Column("study_id", ForeignKey(studies.c.id), nullable=False, index=True),
    Column("executor", String(16), nullable=False),  # local, slurm, kubernetes, ray
    Column("workers", Integer, nullable=False),  # how many were asked for
    Column("handles", AS_JSON, nullable=False),  # of the workers; empty until the engine answered
    Column("os_user", String(NAME_LIMIT), nullable=False),
    Column("host", String(NAME_LIMIT), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("ended_at", Double),  # when all workers were seen to have ended
)


IS_VALUED = trials.c.value.between(-sys.float_info.max, sys.float_info.max)
"""The condition that a trial's value is a finite number. SQLite stores any type, and there a text
is larger than any number, so that a comparison leaves it out."""
VIOLATION = func.coalesce(trials.c.violation, 0.0)
"""What a trial violates constraints by; the first criterion of every ranking."""
IS_RUNNING = text("tuner_trials.state = 'running'")
IS_LIVE = text("tuner_attempts.live")
"""Conditions in the same words as in partial indexes. SQLite matches an index by its exact text,
and neither database matches parameters, so another wording would scan the whole table."""


def has_live_attempt(trial_id: ColumnElement[int]) -> Exists:
    """Return the SQL condition that a trial has a live attempt."""
    return exists(attempts.c.id).where(attempts.c.trial_id == trial_id, IS_LIVE)


class database_time(GenericFunction[float]):  # noqa: N801 - reads as an SQL function
    """The database's clock, in seconds since 1970."""

    type = Double()
    inherit_cache = True


@compiles(database_time, "sqlite")
def _on_sqlite(_element: database_time, _compiler: SQLCompiler, **_: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(database_time, "postgresql")
def _on_postgresql(_element: database_time, _compiler: SQLCompiler, **_: object) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


class project_of(GenericFunction[str]):  # noqa: N801 - reads as an SQL function
    """The project of a study's name, as `tuner.core.text.project_of`."""

    type = String()
    inherit_cache = True


@compiles(project_of, "sqlite")
def _project_on_sqlite(element: project_of, compiler: SQLCompiler, **options: Any) -> str:
    return _project(compiler.process(element.clauses, **options), "instr({name}, '/')")


@compiles(project_of, "postgresql")
def _project_on_postgresql(element: project_of, compiler: SQLCompiler, **options: Any) -> str:
    return _project(compiler.process(element.clauses, **options), "strpos({name}, '/')")


def _project(name: str, position: str) -> str:
    at = position.format(name=name)
    return f"CASE WHEN {at} > 1 THEN substr({name}, 1, {at} - 1) ELSE '{DEFAULT_PROJECT}' END"


class database_start(GenericFunction[float]):  # noqa: N801 - reads as an SQL function
    """Start of the database's server, in its own clock; 0 on SQLite, which has no server."""

    type = Double()
    inherit_cache = True


@compiles(database_start, "sqlite")
def _always_there(_element: database_start, _compiler: SQLCompiler, **_: object) -> str:
    return "0.0"


@compiles(database_start, "postgresql")
def _started(_element: database_start, _compiler: SQLCompiler, **_: object) -> str:
    return "extract(epoch from pg_postmaster_start_time())::double precision"


SILENT_SECONDS = 60.0
"""A live attempt without a new row for so long is reported as silent."""
SILENT_FOR = database_time() - case(
    (trials.c.last_time > attempts.c.started_at, trials.c.last_time), else_=attempts.c.started_at
)
"""Seconds since the last row of a live attempt's trial was measured."""


def last_end_of_trials() -> ColumnElement[float]:
    """Return when the last trial of a study ended; trials end in the order of their revisions."""
    return (
        select(trials.c.ended_at)
        .where(trials.c.study_id == studies.c.id, trials.c.state != RUNNING)
        .order_by(trials.c.revision.desc())
        .limit(1)
        .scalar_subquery()
    )
