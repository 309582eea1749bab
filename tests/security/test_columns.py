"""Columns of the ledger with content that tuner never writes, fed to everything that reads them.

On SQLite whoever writes it has the file, and drops the checks before; on PostgreSQL it is a person
with a worker's login.

Each column has a study of its own, named by it, beside a healthy one of which it is a copy. They
are made from the tables' definitions, so a new column is tried too. A round gives each column
another content. No code may run, no file outside may change, the healthy study must go on, and
nothing may raise but errors of ours.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
from click.testing import CliRunner
from helpers import unchecked
from postgres import Cluster
from processes import copy, prepare
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Engine,
    Table,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError
from training_here import PREFIXES, line_spec, publish, train_all

from tuner.analysis import drift
from tuner.cli.app import cli
from tuner.core.environment import is_gone, person
from tuner.core.errors import NotFoundError, TunerError, UnavailableError
from tuner.ledger import Ledger, StudyRecord, database, managing
from tuner.ledger import launches as launches_of
from tuner.ledger.database import Addresses
from tuner.ledger.event_tables import events, notifications
from tuner.ledger.notifications import Notifications
from tuner.ledger.retraining_tables import retrainings, timetable_runs, timetables
from tuner.ledger.retrainings import Retrainings
from tuner.ledger.tables import (
    attempts,
    checkpoints,
    chunks,
    exclusions,
    launches,
    metadata,
    probes,
    projects,
    published_studies,
    published_trials,
    reports,
    studies,
    trials,
)
from tuner.ledger.timetables import Timetables
from tuner.observability import notify, watching
from tuner.operations import doctor, export, manage
from tuner.operations import studies as listing
from tuner.operations import submit as submission
from tuner.operations.retrain import retrain

GOOD = "good"
ENDED, BEGUN = "1", "2"
"""Keys of retrainings."""
CONTENTS: list[Any] = [
    "../../outside",
    -1,
    b"\xff\x00",
    "{",
    "[]",
    '{"a": [1]}',
    1.5,
    2**40,
    "9" * 5000,
    float("inf"),
    "\x1b]0;title\x07$(touch outside)",
    "[" * 5000,
    None,
]
OF_STUDY = [exclusions, launches, probes, published_studies]
OF_TRIAL = [attempts, chunks, reports, checkpoints, published_trials]
NAMED_BY_STUDY = [retrainings, timetables, events, notifications]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Databases with the healthy study, trained and published."""
    folder = prepare(tmp_path_factory.mktemp("columns") / "here")
    places = database.addresses({}, folder)
    ledger = Ledger(database.open_ledger(places, create=False))
    _fill(ledger, places)
    ledger.engine.dispose()
    return folder


def _fill(ledger: Ledger, places: Addresses) -> None:
    spec = line_spec(
        study={"name": GOOD},
        training={"steps": 4, "evaluate_every": 2, "trainer": "reference", "threads": 1},
        space={"lr": {"low": 0.01, "high": 0.1}},
        search={"sampler": {"name": "tpe", "startup_trials": 1}, "pruner": {"name": "asha"}},
        budget={"trials": 2},
        probe={"enabled": True},
    )
    described = submission.prepare(spec, PREFIXES).description
    good, _ = ledger.submit(spec, limit=2, workload=described)
    train_all(ledger, places)
    publish(ledger, places)
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(studies).values(limit=4))
    environment = ledger.attempts(good.id)[0].environment
    claim = ledger.claim(
        good.id, "elsewhere:1:1", environment
    )  # one that waits, and has parameters
    assert claim is not None
    params = dict(ledger.trials(good.id)[0].params or {})
    ledger.draw(claim.lease, params, attrs={}, study_attrs={}, asked_revision=1)
    ledger.release(claim.lease, "interrupted", "for this test")
    with ledger.engine.execution_options(writes=True).begin() as tx:
        held = tx.scalars(select(attempts.c.id).order_by(attempts.c.id.desc())).first()
        where = {"trial_id": claim.trial.id, "attempt_id": held}
        tx.execute(insert(checkpoints).values(**where, step=0, path="x", digest="d"))
    launched = launches_of.add(ledger, good, "local", 1, person())
    launches_of.answered(ledger, launched.key, ["elsewhere:1:1"])
    retrain(ledger, places, GOOD, ENDED, prefixes=PREFIXES)
    with ledger.engine.execution_options(writes=True).begin() as tx:
        _add_timetable(tx, GOOD)
        _add_event(tx, GOOD)


def _copy_good(ledger: Ledger, table: Table) -> None:
    """Copy the healthy study for each column of a table, under the column's name."""
    good = ledger.study(GOOD)
    with ledger.engine.execution_options(writes=True).begin() as tx:
        for column in table.columns:
            _copy_study(tx, good.id, str(column))
            _copy_retraining(tx, str(column))
            _add_timetable(tx, str(column))
            _add_event(tx, str(column))
            _add_limits(tx, str(column))


def _copy_study(tx: Connection, study_id: int, name: str) -> None:
    """Copy a study with all that belongs to it, under another name and unpublished."""
    row = dict(tx.execute(select(studies).where(studies.c.id == study_id)).one()._mapping)
    del row["id"]
    row |= {"name": name, "spec": row["spec"].replace(f'"{GOOD}"', json.dumps(name))}
    new = tx.execute(insert(studies).values(row).returning(studies.c.id)).scalar_one()
    for table in OF_STUDY:
        for one in tx.execute(select(table).where(table.c.study_id == study_id)).all():
            values = {**one._mapping, "study_id": new}
            if table is published_studies:
                values |= {"external_id": None, "revision": 0, "expires_at": 0.0}
            if table is launches:
                values |= {"key": secrets.token_hex(6)}
            tx.execute(insert(table).values(values))
    for trial in tx.execute(select(trials).where(trials.c.study_id == study_id)).all():
        values = {**trial._mapping, "study_id": new}
        del values["id"]
        copied = tx.execute(insert(trials).values(values).returning(trials.c.id)).scalar_one()
        ids: dict[int, int] = {}  # of attempts
        for table in OF_TRIAL:
            for one in tx.execute(select(table).where(table.c.trial_id == trial.id)).all():
                values = {**one._mapping, "trial_id": copied}
                values.pop("id", None)
                if "attempt_id" in values:
                    values["attempt_id"] = ids[values["attempt_id"]]
                if table is published_trials:
                    values |= {"external_id": None, "next_step": 0, "final": False}
                made = tx.execute(insert(table).values(values))
                if table is attempts:
                    ids[one.id] = made.inserted_primary_key[0]


def _copy_retraining(tx: Connection, name: str) -> None:
    """Copy the ended retraining, and add one that is to evaluate what it has trained."""
    row = dict(tx.execute(select(retrainings).where(retrainings.c.study == GOOD)).one()._mapping)
    del row["id"]
    row |= {"study": name, "model": name}
    tx.execute(insert(retrainings).values(row))
    begun = {"stage": "log", "outcome": None, "reason": None, "ended_at": None}
    tx.execute(insert(retrainings).values({**row, **begun, "run_key": BEGUN}))


def _add_timetable(tx: Connection, name: str) -> None:
    timetable = tx.execute(
        insert(timetables).values(
            name=name, study=name, expression="0 6 * * *", zone="UTC", grace=60.0,
            catch_up="latest", overlap="skip", enabled=True, seen_at=1.7e9, next_at=1.7e9,
            created_at=1.0,
        ).returning(timetables.c.id)
    ).scalar_one()  # fmt: skip
    tx.execute(
        insert(timetable_runs).values(
            timetable_id=timetable, fire_at=1.6e9, state="running", worker="elsewhere:1:1",
            token=1, expires_at=0.0,
        )
    )  # fmt: skip


def _add_event(tx: Connection, name: str) -> None:
    """Add an event, and a notification that is to be sent to an address that nobody has."""
    tx.execute(
        insert(events).values(
            happened_at=1.0, db_role="ann", study=name, action="paused", reason="lunch",
            details={"a": 1}, os_user="ann", host="here",
        )
    )  # fmt: skip
    tx.execute(
        insert(notifications).values(
            key=name, study=name, channel="webhook", target="TUNER_NOTIFY_NOBODY", title="t",
            content={"a": 1}, state="waiting", due_at=1.0, worker="elsewhere:1:1", token=1,
            expires_at=0.0, error="away", created_at=1.0,
        )
    )  # fmt: skip


def _add_limits(tx: Connection, name: str) -> None:
    """Set limits of a project, and let a worker leave the study of the same name alone."""
    tx.execute(
        insert(projects).values(name=name, workers=1, steps_week=1e9, shared=False, weight=2.0)
    )
    study_id = tx.scalar(select(studies.c.id).where(studies.c.name == name))
    left = {"study_id": study_id, "worker": "elsewhere:1:1", "ends_at": 4e9}
    tx.execute(insert(exclusions).values(**left, failures=3, reason="It broke."))


def _rows_of(column: Column[Any], tx: Connection) -> str:
    """Return the condition for the rows of a table that belong to the column's study."""
    name = ":name" if tx.dialect.name == "sqlite" else "%(name)s"
    study = f"(SELECT id FROM tuner_studies WHERE name = {name})"
    table = column.table
    if table in (studies, projects):
        return f"name = {name}"
    if table is trials or table in OF_STUDY:
        return f"study_id IN {study}"
    if table in OF_TRIAL:
        return f"trial_id IN (SELECT id FROM tuner_trials WHERE study_id IN {study})"
    if table is timetable_runs:
        return f"timetable_id IN (SELECT id FROM tuner_timetables WHERE name = {name})"
    assert table in NAMED_BY_STUDY, f"say here which rows of {table.name} belong to a study"
    return f"study = {name}"


def _contents(tx: Connection, table: Table, turn: int) -> Iterator[tuple[Column[Any], Any]]:
    """Yield each column of a table with its content of a turn."""
    for index, column in enumerate(table.columns):
        content = CONTENTS[(index + turn) % len(CONTENTS)]
        if (isinstance(column.type, JSON) or column is studies.c.spec) and turn % 2:
            # the content within what was there
            found = tx.exec_driver_sql(
                f'SELECT "{column.name}" FROM {table.name} WHERE {_rows_of(column, tx)} '
                f'AND "{column.name}" IS NOT NULL',
                {"name": str(column)},
            ).scalar()
            content = content if found is None else _within(json.loads(found), content, turn)
        yield column, content


def _write(engine: Engine, column: Column[Any], content: Any) -> bool:
    """Write a content into a column, or into a copy of one of its rows where it is not changed.

    Return whether the database took it.
    """
    table, on_sqlite = column.table, engine.dialect.name == "sqlite"
    value = ":content" if on_sqlite else "%(content)s"
    if not on_sqlite and not isinstance(content, bytes | None):
        content = str(content)  # which the server converts to the column's type
    if not on_sqlite and isinstance(column.type, Boolean):
        value, content = f'NOT "{column.name}"', None
    names = ", ".join(
        f'"{one.name}"' for one in table.columns if one.name not in ("id", column.name)
    )
    kind = column.type.compile(engine.dialect)
    changing = f'UPDATE {table.name} SET "{column.name}" = {value} WHERE {{rows}}'
    adding = (
        f'INSERT INTO {table.name} ("{column.name}", {names}) '
        f"SELECT CAST({value} AS {kind}), {names} FROM {table.name} WHERE {{rows}} LIMIT 1"
    )
    for statement in (changing, adding):
        try:
            with engine.execution_options(writes=True).begin() as tx:
                parameters = {"content": content, "name": str(column)}
                with unchecked(tx.exec_driver_sql) if on_sqlite else nullcontext():
                    where = _rows_of(column, tx)
                    return tx.exec_driver_sql(statement.format(rows=where), parameters).rowcount > 0
        except (DBAPIError, OverflowError):  # the schema refuses it
            return False
        except UnavailableError:  # the login has no right to change it, but it may insert
            continue
    return False


def _remove(tx: Connection, name: str) -> None:
    """Remove the copy of the healthy study of a name."""
    for table in reversed(metadata.sorted_tables):
        where = _rows_of(table.columns.values()[0], tx)
        tx.exec_driver_sql(f"DELETE FROM {table.name} WHERE {where}", {"name": name})


def _within(value: Any, content: Any, turn: int) -> str:
    """Replace one of the leaves of a JSON value by a content, another one each turn."""
    content = content.decode("latin-1") if isinstance(content, bytes) else content
    paths = list(_leaves(value))
    path = paths[turn * 7 % len(paths)] if paths else []
    if not path:
        return json.dumps(content)
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = content
    return json.dumps(value)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items: Any = []
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    if path:
        yield path
    for key, one in items:
        yield from _leaves(one, (*path, key))


ROUNDS = [
    pytest.param(turn, marks=pytest.mark.slow if turn < 1 else pytest.mark.nightly)
    for turn in range(len(CONTENTS))
]


def _mark(table: Table, turn: int) -> pytest.MarkDecorator:
    """Return the mark of a round on PostgreSQL, where types leave less to try."""
    return pytest.mark.slow if turn < 1 and table is trials else pytest.mark.nightly


@pytest.fixture
def ledger(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """The healthy study, in a working folder of its own."""
    here = copy(template, tmp_path)
    monkeypatch.chdir(here)
    found = Ledger(database.open_ledger(database.addresses({}, here), create=False))
    yield found
    found.engine.dispose()
    assert not (tmp_path.parent / "outside").exists()


def _damage(ledger: Ledger, attacker: Engine, table: Table, turn: int) -> None:
    """Write into each column of a table, in a copy of the healthy study, what is never there.

    Copies whose content the database refuses are as healthy as the first, and removed.
    """
    _copy_good(ledger, table)
    with ledger.engine.begin() as tx:
        damages = list(_contents(tx, table, turn))
    healthy = [str(column) for column, content in damages if not _write(attacker, column, content)]
    with ledger.engine.execution_options(writes=True).begin() as tx:
        for name in healthy:
            _remove(tx, name)


def _train_the_good_one(ledger: Ledger, places: Addresses) -> StudyRecord:
    """Let a worker train all studies; the healthy one has all its trials then."""
    train_all(ledger, places)
    good = ledger.study(GOOD)
    assert len(ledger.trials(good.id)) == good.limit
    assert ledger.counts(good.id)["running"] == ledger.counts(good.id)["waiting"] == 0
    return good


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("table", metadata.sorted_tables, ids=str)
def test_no_content_of_any_column_stops_a_worker_or_a_scheduler(ledger, places, table):
    _damage(ledger, ledger.engine, table, 0)
    good = _train_the_good_one(ledger, places)
    assert GOOD in [one["study"] for one in listing.studies(ledger)]
    _schedule(ledger)
    for name in set(_names(ledger)) - {GOOD}:
        managing.cancel(ledger, ledger.identity(name), "for this test")
        managing.delete_study(ledger, ledger.identity(name))
    assert _names(ledger) == [GOOD]
    assert len(ledger.trials(good.id)) == good.limit


@pytest.mark.thorough
@pytest.mark.parametrize("turn", ROUNDS)
@pytest.mark.parametrize("table", metadata.sorted_tables, ids=str)
def test_no_content_of_any_column_stops_anything_else(ledger, places, table, turn):
    _damage(ledger, ledger.engine, table, turn)
    drawn = turn > 0 or table in (studies, trials, published_studies)
    _assert_all_goes_on(ledger, places, worker=ledger, drawn=drawn)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("table", "turn"),
    [
        pytest.param(table, turn, id=f"{table}-{turn}", marks=_mark(table, turn))
        for turn in range(len(CONTENTS))
        for table in metadata.sorted_tables
    ],
)
def test_nothing_that_a_workers_login_writes_stops_anything_else(team, tmp_path, table, turn):
    here, owner, worker = team
    _damage(owner, worker.engine, table, turn)
    _assert_all_goes_on(owner, here, worker=worker, drawn=turn > 0)
    assert not (tmp_path.parent / "outside").exists()


@pytest.fixture(scope="module")
def team_template(cluster: Cluster, migrated: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database on PostgreSQL with the healthy study."""
    cluster.execute("DROP ROLE IF EXISTS ann")
    cluster.execute("CREATE ROLE ann LOGIN IN ROLE tuner_worker")
    url = cluster.database(migrated)
    places = database.addresses({"TUNER_DATABASE_URL": url}, tmp_path_factory.mktemp("columns"))
    ledger = Ledger(database.open_ledger(places, create=False))
    _fill(ledger, places)
    ledger.engine.dispose()
    return url.rpartition("/")[2]


@pytest.fixture
def team(
    cluster: Cluster, team_template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Addresses, Ledger, Ledger]]:
    """The owner's addresses and ledger of a copy, and the ledger with a worker's login."""
    url = cluster.database(team_template)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNER_DATABASE_URL", url)
    named = (url, cluster.url(url.rpartition("/")[2], "ann"))
    found = [database.addresses({"TUNER_DATABASE_URL": one}, tmp_path) for one in named]
    ledgers = [Ledger(database.open_ledger(one, create=False)) for one in found]
    yield found[0], ledgers[0], ledgers[1]
    for one in ledgers:
        one.engine.dispose()
    # with the connections that Optuna and MLflow keep: hundreds of rounds share a server
    cluster.execute(f'DROP DATABASE "{url.rpartition("/")[2]}" WITH (FORCE)')


def _assert_all_goes_on(ledger: Ledger, places: Addresses, *, worker: Ledger, drawn: bool) -> None:
    """Train with the worker's ledger, and do everything else with this one.

    Reports are `drawn` in some rounds only: each takes a second.
    """
    good = _train_the_good_one(worker, places)
    with suppress(UnavailableError):  # raised when all others are published
        publish(ledger, places)
    assert len(optuna.load_study(study_name=GOOD, storage=places.optuna).trials) == good.limit
    _look(ledger, drawn=drawn)
    _schedule(ledger)
    _retrain(ledger, places)
    assert [one for one in doctor.examine(ledger.engine, places) if one.study == GOOD] == []
    doctor.repair(ledger.engine, places)
    for name in set(_names(ledger)) - {GOOD}:
        manage.delete(ledger, places, name, force=True)
    assert _names(ledger) == [GOOD]
    assert len(ledger.trials(good.id)) == good.limit


def _names(ledger: Ledger) -> list[str]:
    """Return the names that a command can be given; SQLite stores bytes as names too."""
    with ledger.engine.begin() as tx:
        return [name for name in tx.scalars(select(studies.c.name)) if isinstance(name, str)]


def _look(ledger: Ledger, *, drawn: bool) -> None:
    """Let every command look at every study."""
    command = CliRunner()
    listed = command.invoke(cli, ["studies"], catch_exceptions=False)
    assert listed.exit_code == 0
    assert f"{GOOD}: ended" in listed.output
    assert "\x1b]" not in listed.output
    command.invoke(cli, ["studies", "--json"], catch_exceptions=False)
    command.invoke(cli, ["project"], catch_exceptions=False)
    command.invoke(cli, ["timetable", "list"], catch_exceptions=False)
    for unknown in (["status", "nothing"], ["timetable", "remove", "nothing"]):
        refused = command.invoke(cli, unknown)
        assert isinstance(refused.exception, NotFoundError | SystemExit)
    looks = ["status NAME", "status NAME --json", "status NAME --trial 0", "best NAME"]
    looks += [
        "history NAME",
        "history NAME --json",
        "workers list NAME --ended",
        "retrain NAME --history",
        *(["report NAME"] if drawn else []),
    ]
    for name in _names(ledger):
        for look in looks:
            found = command.invoke(cli, [name if one == "NAME" else one for one in look.split()])
            if not isinstance(found.exception, TunerError | SystemExit | None):
                raise found.exception
            assert "\x1b]" not in found.output
        with suppress(TunerError):
            export.export(ledger, ledger.study(name), Path("exported"))


def _schedule(ledger: Ledger) -> None:
    """Let the scheduler go round, and send notifications."""
    for target in ("TUNER_NOTIFY_NOBODY", "nothing"):
        Notifications(ledger).claim([target], "w", is_gone)
    watching.watch(ledger)
    notify.deliver(ledger)
    store = Timetables(ledger)
    store.all()
    store.tick()
    store.history()
    for _ in range(3):
        store.claim("w", is_gone)


def _retrain(ledger: Ledger, places: Addresses) -> None:
    """Retrain every study, for a key that has ended and for one that is to be continued."""
    store = Retrainings(ledger)
    before = store.history(GOOD)
    for name in set(_names(ledger)) - {GOOD}:
        for read in (store.history, store.of_model, store.promoted):
            read(name)
        for key in (ENDED, BEGUN):
            with suppress(TunerError):
                retrain(ledger, places, name, key, prefixes=PREFIXES, wait=False)
        with suppress(TunerError):
            drift.steps(store.history(name))
    assert store.history(GOOD) == before
    assert retrain(ledger, places, GOOD, ENDED, prefixes=PREFIXES)["outcome"] == "promoted"
