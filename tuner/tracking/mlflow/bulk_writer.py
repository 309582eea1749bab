"""Write many runs at once into MLflow's tables: the same rows that its client writes.

Only the schema revisions of the supported MLflow versions are known. The table definitions are
MLflow's. A test compares the rows with the client's, table by table.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.store.tracking.dbmodels.models import (
    SqlDataset,
    SqlExperiment,
    SqlInput,
    SqlInputTag,
    SqlLatestMetric,
    SqlMetric,
    SqlParam,
    SqlRun,
    SqlTag,
)
from mlflow.utils import validation
from mlflow.utils.uri import append_to_uri_path
from sqlalchemy import (
    Connection,
    Engine,
    and_,
    bindparam,
    column,
    create_engine,
    event,
    make_url,
    select,
    table,
    tuple_,
    update,
)
from sqlalchemy.exc import ArgumentError

from tuner.core.failpoints import reach
from tuner.ledger import StudyRecord
from tuner.ledger.database import Difference, differences
from tuner.ledger.database.upserts import insert, insert_columns, insert_new
from tuner.tracking.mlflow.client_writer import RunEnd
from tuner.tracking.mlflow.run_content import NewRun, Points

REVISIONS = ("dc11669786a5", "e7d1f4b2a9c6", "8b6ad64cb8f5", "f4a9b2c7d1e6")
"""The known schema revisions of MLflow: the last one of 3.17, and those of 3.18, which change only
tables of skills and issues, and collations on other databases."""
DRIVERS = ("sqlite", "postgresql+psycopg")
BUSY_SECONDS = 20
"""How long SQLite waits for another transaction, the same as in MLflow."""

RUNS, TAGS, PARAMS = SqlRun.__table__, SqlTag.__table__, SqlParam.__table__
METRICS, LATEST = SqlMetric.__table__, SqlLatestMetric.__table__
DATASETS, INPUTS, INPUT_TAGS = SqlDataset.__table__, SqlInput.__table__, SqlInputTag.__table__
EXPERIMENTS = SqlExperiment.__table__
RELIED_ON = (EXPERIMENTS, RUNS, TAGS, PARAMS, METRICS, LATEST, DATASETS, INPUTS, INPUT_TAGS)
"""Tables whose keys and indexes publishing relies on."""


def tables_engine(uri: str) -> Engine | None:
    """Return an engine for a tracking URI that is a supported database, else None."""
    try:
        url = make_url(uri)
    except ArgumentError:
        return None
    if url.drivername not in DRIVERS:
        return None
    if url.drivername != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver would begin the transaction too late
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def unsupported_schema(engine: Engine) -> str | None:
    """Return why the schema of MLflow's tables is not supported, or None if it is."""
    with engine.begin() as tx:
        query: Any = select(column("version_num")).select_from(table("alembic_version"))
        found = [row.version_num for row in tx.execute(query)]
    if len(found) == 1 and found[0] in REVISIONS:
        return None
    return (
        f"MLflow's tables have revision {', '.join(found) or 'none'}, expected "
        f"{REVISIONS[0]} to {REVISIONS[-1]}; runs are written through MLflow's client, 17 times "
        "slower; install the MLflow that this version of tuner requires, or upgrade tuner"
    )


def schema_differences(engine: Engine) -> list[Difference]:
    """Return how tables of a known revision differ from MLflow's definitions."""
    with engine.begin() as tx:
        return differences(tx, RELIED_ON)


class BulkRunWriter:
    """Writes many runs in one transaction each for their creation, points and end.

    Raise MLflow's exceptions for what MLflow refuses (deleted runs, invalid metric names).
    Existing params are not changed.
    """

    runs_at_once = 50
    rows_at_once = 20_000

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def find(self, study: StudyRecord, experiment: str, keys: Collection[str]) -> Mapping[str, str]:
        """Search by tag, for these runs only."""
        if not keys:
            return {}
        trial, name = TAGS.alias(), TAGS.alias()
        query = (
            select(trial.c.value, RUNS.c.run_uuid)
            .join(trial, trial.c.run_uuid == RUNS.c.run_uuid)
            .join(name, name.c.run_uuid == RUNS.c.run_uuid)
            .where(
                RUNS.c.experiment_id == int(experiment),
                RUNS.c.lifecycle_stage == "active",
                trial.c.key == "tuner.trial",
                trial.c.value.in_(keys),
                name.c.key == "tuner.study",
                name.c.value == study.name,
            )
            .order_by(RUNS.c.start_time)
        )
        found: dict[str, str] = {}
        with self._engine.begin() as tx:
            for row in tx.execute(query):
                found.setdefault(row.value, row.run_uuid)
        return found

    def foreign(self, study: StudyRecord, experiment: str, runs: Mapping[str, str]) -> set[str]:
        """Compare the experiment and the tags of all of them in one query."""
        query = select(RUNS.c.run_uuid, RUNS.c.experiment_id, TAGS.c.key, TAGS.c.value).outerjoin(
            TAGS,
            and_(
                TAGS.c.run_uuid == RUNS.c.run_uuid, TAGS.c.key.in_(("tuner.study", "tuner.trial"))
            ),
        )
        found: dict[str, dict[str, Any]] = {}
        with self._engine.begin() as tx:
            for row in tx.execute(query.where(RUNS.c.run_uuid.in_(set(runs.values())))):
                tags = found.setdefault(row.run_uuid, {"experiment": str(row.experiment_id)})
                tags[row.key] = row.value
        wanted = {"experiment": experiment, "tuner.study": study.name}
        return {
            run_id
            for key, run_id in runs.items()
            if run_id in found
            and any(
                found[run_id].get(name) != value
                for name, value in {**wanted, "tuner.trial": key}.items()
            )
        }

    def create(self, experiment: str, runs: Sequence[NewRun]) -> list[str]:
        """Insert missing runs, tags, params and inputs."""
        ids = [run.run_id or uuid.uuid4().hex for run in runs]
        pairs = list(zip(ids, runs, strict=True))
        with self._engine.begin() as tx:
            self._insert_runs(tx, int(experiment), pairs)
            _set_tags(tx, {run_id: run.tags for run_id, run in pairs})
            params = [
                {"run_uuid": run_id, "key": one.key, "value": one.value}
                for run_id, run in pairs
                for one in (validation._validate_param(*pair) for pair in run.params.items())
            ]
            insert_new(tx, PARAMS, params)
            _insert_inputs(tx, int(experiment), pairs)
        for run in runs:
            if run.run_id is None:
                reach("recorder.run_created")
        return ids

    def _insert_runs(
        self, tx: Connection, experiment: int, pairs: Sequence[tuple[str, NewRun]]
    ) -> None:
        place = tx.scalar(
            select(EXPERIMENTS.c.artifact_location).where(EXPERIMENTS.c.experiment_id == experiment)
        )
        rows = [
            {
                "run_uuid": run_id,
                "name": run.name,
                "artifact_uri": append_to_uri_path(place, run_id, "artifacts"),
                "experiment_id": experiment,
                "source_type": "UNKNOWN",
                "source_name": "",
                "entry_point_name": "",
                "user_id": run.tags.get("mlflow.user", "unknown"),
                "status": "RUNNING",
                "start_time": run.start_time,
                "end_time": None,
                "deleted_time": None,
                "source_version": "",
                "lifecycle_stage": "active",
            }
            for run_id, run in pairs
            if run.run_id is None
        ]
        insert_new(tx, RUNS, rows)
        names = {run_id: {"mlflow.runName": run.name} for run_id, run in pairs if not run.run_id}
        _set_tags(tx, names)

    def append(self, points: Sequence[tuple[str, Points]]) -> None:
        """Insert missing points and update the latest ones."""
        runs = {run_id for run_id, _ in points}
        with self._active(runs) as tx:
            _insert_points(tx, points)
        for _ in runs:
            reach("recorder.batch_logged")

    def prepare_end(self, runs: Mapping[str, tuple[Mapping[str, str], Sequence[Points]]]) -> None:
        """Set the final tags and add the final points."""
        with self._active(set(runs)) as tx:
            _insert_points(tx, [(key, some) for key, (_, last) in runs.items() for some in last])
            _set_tags(tx, {run_id: tags for run_id, (tags, _) in runs.items()})
        for _ in runs:
            reach("recorder.before_final")

    def end(self, ends: Sequence[RunEnd]) -> None:
        """Set the final status and end time of runs."""
        statement = (
            update(RUNS)
            .where(RUNS.c.run_uuid == bindparam("of_run"))
            .values(status=bindparam("final"), end_time=bindparam("at"))
        )
        rows = [{"of_run": one.run_id, "final": one.status, "at": one.time} for one in ends]
        with self._active({one.run_id for one in ends}) as tx:
            tx.execute(statement, rows)

    def tag(self, runs: Mapping[str, Mapping[str, str]], renew_claim: Callable[[], None]) -> None:
        """Set the tags of all runs in one transaction."""
        with self._engine.begin() as tx:
            _set_tags(tx, runs)

    @contextmanager
    def _active(self, run_ids: Collection[str]) -> Iterator[Connection]:
        """Begin a transaction; raise `MlflowException` if any of the runs is deleted."""
        with self._engine.begin() as tx:
            active = select(RUNS.c.run_uuid).where(
                RUNS.c.run_uuid.in_(run_ids), RUNS.c.lifecycle_stage == "active"
            )
            deleted = set(run_ids) - set(tx.scalars(active))
            if deleted:
                raise MlflowException(
                    f"The runs {', '.join(sorted(deleted))} are deleted; restore them in MLflow "
                    "or create new ones with `tuner doctor --repair`"
                )
            yield tx


def _set_tags(tx: Connection, tags: Mapping[str, Mapping[str, str]]) -> None:
    rows = [
        {"run_uuid": run_id, "key": tag.key, "value": tag.value}
        for run_id, of_run in tags.items()
        for tag in (validation._validate_tag(*pair) for pair in of_run.items())
    ]
    if rows:
        statement = insert(tx, TAGS)
        changed = {"value": statement.excluded.value}
        tx.execute(
            statement.on_conflict_do_update(index_elements=["key", "run_uuid"], set_=changed), rows
        )


def _insert_inputs(tx: Connection, experiment: int, pairs: Sequence[tuple[str, NewRun]]) -> None:
    """Insert each data set once, its links to runs, and the tags of the links."""
    used = {(one.dataset.dataset.name, one.dataset.dataset.digest): one.dataset
            for _, one in pairs if one.dataset is not None}  # fmt: skip
    known: dict[tuple[str, str], str] = {}
    for key, one in used.items():
        validation._validate_dataset_inputs([one])
        insert_new(tx, DATASETS, [_dataset_row(experiment, one.dataset)])
        same = (DATASETS.c.experiment_id == experiment, DATASETS.c.name == key[0])
        query = select(DATASETS.c.dataset_uuid).where(*same, DATASETS.c.digest == key[1])
        known[key] = tx.scalars(query).one()
    ids = [run_id for run_id, _ in pairs]
    linked = set(tx.scalars(select(INPUTS.c.destination_id).where(
        INPUTS.c.source_type == "DATASET", INPUTS.c.source_id.in_(known.values()),
        INPUTS.c.destination_type == "RUN", INPUTS.c.destination_id.in_(ids))))  # fmt: skip
    links: list[dict[str, Any]] = []
    tags: list[dict[str, Any]] = []
    for run_id, run in pairs:
        if run.dataset is None or run_id in linked:
            continue
        link = uuid.uuid4().hex
        links.append({
            "input_uuid": link,
            "source_type": "DATASET",
            "source_id": known[run.dataset.dataset.name, run.dataset.dataset.digest],
            "destination_type": "RUN",
            "destination_id": run_id,
        })  # fmt: skip
        tags.extend(
            {"input_uuid": link, "name": tag.key, "value": tag.value} for tag in run.dataset.tags
        )
    insert_new(tx, INPUTS, links)
    insert_new(tx, INPUT_TAGS, tags)


def _dataset_row(experiment: int, dataset: Any) -> dict[str, Any]:
    return {
        "dataset_uuid": uuid.uuid4().hex,
        "experiment_id": experiment,
        "name": dataset.name,
        "digest": dataset.digest,
        "dataset_source_type": dataset.source_type,
        "dataset_source": dataset.source,
        "dataset_schema": dataset.schema,
        "dataset_profile": dataset.profile,
    }


def _insert_points(tx: Connection, points: Sequence[tuple[str, Points]]) -> None:
    names = ("run_uuid", "key", "value", "timestamp", "step", "is_nan")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    latest: dict[tuple[str, str], tuple[int, int, float]] = {}
    for run_id, some in points:
        values, times, steps = some.values.tolist(), some.times.tolist(), some.steps.tolist()
        count = len(values)
        of_points = ([run_id] * count, [some.key] * count, values, times, steps, [False] * count)
        for name, column_of in zip(names, of_points, strict=True):
            columns[name].extend(column_of)
        last = (steps[-1], times[-1], values[-1])
        latest[run_id, some.key] = max(last, latest.get((run_id, some.key), last))
    if not latest:
        return
    for _, key in latest:
        validation._validate_metric_name(key)
    insert_columns(tx, METRICS, columns)
    statement = insert(tx, LATEST)
    new = statement.excluded
    later = tuple_(new.step, new.timestamp, new.value) > tuple_(
        LATEST.c.step, LATEST.c.timestamp, LATEST.c.value
    )
    changed = {name: new[name] for name in names[2:]}
    tx.execute(
        statement.on_conflict_do_update(
            index_elements=["key", "run_uuid"], set_=changed, where=later
        ),
        [
            dict(zip(names, (run_id, key, value, at, step, False), strict=True))
            for (run_id, key), (step, at, value) in latest.items()
        ],
    )
