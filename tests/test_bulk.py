"""What is written into MLflow's and Optuna's tables in bulk is what their libraries write there."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import completed, diverged, pruned, rows, spec, went_on
from sqlalchemy import Engine, MetaData, case, create_engine, select, update

from tuner.core import failpoints
from tuner.core.curves import Chunk
from tuner.core.failpoints import FailpointError
from tuner.core.outcome import CANCELLED, FAILED, RUNNING, Outcome
from tuner.ledger import Claim, Ledger, StudyRecord, database
from tuner.ledger.database import Addresses
from tuner.ledger.tables import trials
from tuner.observability import metrics
from tuner.operations import doctor
from tuner.tracking import bulk
from tuner.tracking.mlflow import bulk_writer as mlflow_rows
from tuner.tracking.mlflow.bulk_writer import BulkRunWriter
from tuner.tracking.mlflow.client_writer import ClientWriter
from tuner.tracking.optuna import bulk_writer as optuna_rows
from tuner.tracking.optuna.bulk_writer import BulkTrialWriter
from tuner.tracking.optuna.storage_writer import StorageWriter
from tuner.tracking.recorder import Recorder

pytestmark = pytest.mark.slow

WORKLOAD = {"code": "c0de", "data": "da7a", "data_name": "a line", "training_rows": 12}
ENVIRONMENT = {
    "device": "cpu",
    "host": "here",
    "python": "3.11.2",
    "packages": {"torch": "2.13.0", "numpy": "2.4.0"},
    "git_commit": "0123abc",
    "git_dirty": True,
    "settled": {"trainer": "reference", "threads": 1},
}
SPACE = {
    "lr": {"low": 1e-4, "high": 1.0},
    "schedule": ["constant", {"name": "cosine", "final": {"low": 0.0, "high": 0.1}}],
    "optimizer": [{"name": "sgd", "momentum": {"low": 0.1, "high": 0.9}}, "adamw"],
}
SGD = {"schedule": "cosine", "cosine.final": 0.05, "optimizer": "sgd", "sgd.momentum": 0.5}
ADAMW = {"schedule": "constant", "optimizer": "adamw"}


# --- a study with every kind of trial, in two halves


def take(ledger: Ledger, study: StudyRecord, **params: Any) -> Claim:
    claimed = ledger.claim(study.id, "worker", ENVIRONMENT)
    assert claimed is not None
    if params:
        attrs = {"asha:rung_0": 0.5, "note": [1, None, "é"]}
        drawn = {"lr": 0.1, **params}
        ledger.draw(claimed.lease, drawn, attrs=attrs, study_attrs={}, asked_revision=1)
    return claimed


def odd(chunk: Chunk) -> Chunk:
    """Let a curve have what no database likes: not finite, tiny, huge, equal at equal times."""
    loss = chunk.columns["train_loss"].copy()
    loss[1:6] = [np.nan, np.inf, -np.inf, 5e-324, 1.7e308]
    metrics = {**chunk.metrics, "accuracy": np.full(len(chunk.eval_steps), np.nan)}
    columns = {**chunk.columns, "train_loss": loss}
    return replace(chunk, columns=columns, metrics=metrics, times=np.full(len(loss), 1000.0005))


def first_half(ledger: Ledger) -> dict[str, Any]:
    made = spec(space=SPACE, budget={"trials": 60})
    study, _ = ledger.submit(made, limit=60, workload=WORKLOAD)
    one = take(ledger, study, **SGD)
    ledger.report(one.lease, rows(0, 10), went_on(10, 0.7), attrs={"asha:rung_0": 0.7})
    ledger.append(one.lease, rows(10, 25))
    ledger.finish(one.lease, completed(0.25), chunk=rows(25, 100))
    one = take(ledger, study, **ADAMW, lr=1e-4)
    last = replace(went_on(10, 3.0), pruned=True)
    ledger.finish(one.lease, pruned(3.0), chunk=rows(0, 10), report=last)
    one = take(ledger, study, **ADAMW, lr=1.0)
    ledger.finish(one.lease, diverged(3), chunk=odd(rows(0, 8)))
    one = take(ledger, study, **SGD)
    ledger.finish(one.lease, Outcome(kind=FAILED, reason="It raised é " * 900), chunk=rows(0, 1))
    one = take(ledger, study)
    ledger.finish(one.lease, Outcome(kind=FAILED, reason="Its worker was lost."))
    one = take(ledger, study, **ADAMW)
    ledger.finish(one.lease, completed(0.5), chunk=odd(rows(0, 20)))
    one = take(ledger, study, **SGD)
    before_any = replace(rows(0, 1), columns={}, times=np.empty(0))
    ledger.finish(one.lease, Outcome(kind=CANCELLED, reason="Stopped."), chunk=before_any)
    resumed = take(ledger, study, **ADAMW)
    ledger.append(resumed.lease, rows(0, 12))
    running = take(ledger, study, **SGD)
    ledger.append(running.lease, rows(0, 30))
    return {"study": study, "resumed": resumed, "running": running}


def second_half(ledger: Ledger, begun: Mapping[str, Any]) -> None:
    ledger.release(begun["resumed"].lease, "interrupted", "told to")
    again = take(ledger, begun["study"])
    assert again.trial.number == begun["resumed"].trial.number
    ledger.append(again.lease, rows(5, 14, time=2000.0))  # measured again up to 12
    ledger.finish(again.lease, completed(0.1), chunk=rows(14, 20, time=2000.0))
    running = begun["running"]
    ledger.report(running.lease, rows(30, 40), went_on(40, 0.4), attrs={"asha:rung_0": 0.4})
    ledger.finish(running.lease, diverged(44), chunk=odd(rows(40, 50)))
    for index in range(8):
        one = take(ledger, begun["study"], **ADAMW, lr=0.001 * (index + 1))
        ledger.finish(one.lease, completed(1.0 - 0.01 * index), chunk=rows(0, 3))
    take(ledger, begun["study"], **ADAMW)  # and one that goes on


def pin_times(ledger: Ledger) -> None:
    """Let what the database's clock said be the same in two ledgers."""
    ended = case((trials.c.state == RUNNING, None), else_=5000.0625 + trials.c.number)
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(trials).values(created_at=900.5 + trials.c.number, ended_at=ended))
        tx.execute(update(trials.metadata.tables["tuner_studies"]).values(created_at=900.25))


# --- tables, without what is random


def everything(url: str) -> Iterator[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    engine = create_engine(url)
    tables = MetaData()
    tables.reflect(engine)
    with engine.begin() as tx:
        for table in tables.sorted_tables:
            for row in tx.execute(select(table)):
                yield table.name, tuple(row), dict(row._mapping)
    engine.dispose()


RUN_ID = re.compile(r"(?<=%22)[0-9a-f]{32}|\b[0-9a-f]{32}\b")
PACKED = re.compile(r"deflate;([A-Za-z0-9+/=]+)")
"""The state of a view of MLflow's UI."""


def unpacked(found: re.Match[str]) -> str:
    return zlib.decompress(base64.b64decode(found[1])).decode()


def in_mlflow(places: Addresses) -> list[str]:
    """Read every row of every table; ids that are drawn at random by what they are of."""
    found = list(everything(places.tracking))
    names = {
        row["run_uuid"]: f"<run of {row['value']}>"
        for table, _, row in found
        if table == "tags" and row["key"] == "tuner.trial"
    }
    names |= {row["dataset_uuid"]: "<data>" for table, _, row in found if table == "datasets"}
    names |= {
        row["input_uuid"]: f"<input of {names[row['destination_id']]}>"
        for table, _, row in found
        if table == "inputs"
    }
    names[str(places.spill.parents[1])] = "<folder>"
    lines = []
    for table, _, row in found:
        clock = ("creation_time", "last_update_time") if table == "experiments" else ()
        line = f"{table} { {key: value for key, value in row.items() if key not in clock} }"
        line = PACKED.sub(unpacked, line)
        for random, name in names.items():
            line = line.replace(random, name)
        lines.append(line)
    return sorted(lines)


COUNTERS = {
    "param_id",
    "trial_value_id",
    "trial_intermediate_value_id",
    "trial_user_attribute_id",
    "trial_system_attribute_id",
}
"""Ids that nothing refers to; they tell in which order rows were written."""
OURS = ("tuner_", "alembic_version")


def in_optuna(places: Addresses, now: tuple[int, ...] = ()) -> list[str]:
    """Read every row of Optuna's tables; trials `now` have ended by the clock of Optuna's API."""
    lines = []
    for table, _, whole in everything(places.optuna):
        if table.startswith(OURS):
            continue
        row = {key: value for key, value in whole.items() if key not in COUNTERS}
        if table == "trials" and row["number"] in now:
            assert row.pop("datetime_complete") is not None
        lines.append(RUN_ID.sub("<run>", f"{table} {row}"))
    return sorted(lines)


# --- the tests


def publish(engine: Engine, places: Addresses, *, in_bulk: bool) -> None:
    recorder = Recorder(engine, places, in_bulk=in_bulk)
    assert isinstance(recorder._runs._writer(), BulkRunWriter) is in_bulk
    assert isinstance(recorder._trials._writer(), BulkTrialWriter) is in_bulk
    while recorder.publish():
        pass


@pytest.mark.thorough
def test_both_ways_leave_the_same_rows_in_all_tables(beside, monkeypatch):
    monkeypatch.setattr(BulkRunWriter, "runs_at_once", 4)  # fewer than there are
    monkeypatch.setattr(BulkRunWriter, "rows_at_once", 30)
    monkeypatch.setattr(BulkTrialWriter, "trials_at_once", 4)
    left = {}
    for way in (True, False):
        places = beside("bulk" if way else "single")
        ledger = Ledger(database.ledger_engine(places.ledger))
        begun = first_half(ledger)
        pin_times(ledger)
        publish(ledger.engine, places, in_bulk=way)
        half = in_mlflow(places), in_optuna(places)
        second_half(ledger, begun)
        pin_times(ledger)
        publish(ledger.engine, places, in_bulk=way)
        ended = tuple(begun[name].trial.number for name in ("resumed", "running"))
        left[way] = (*half, in_mlflow(places), in_optuna(places, ended))
        whole = doctor.examine(ledger.engine, places)
        assert {one.kind for one in whole} <= {"lease"}
        ledger.engine.dispose()
    for at_once, one_by_one in zip(left[True], left[False], strict=True):
        assert at_once == one_by_one


KILLED = ["recorder.row_created", "recorder.run_created", "recorder.batch_logged"]
KILLED += ["recorder.before_final"]


@pytest.mark.thorough
@pytest.mark.parametrize("place", KILLED)
@pytest.mark.parametrize("first", [True, False], ids=["bulk", "one by one"])
def test_either_way_finishes_what_the_other_was_stopped_at(place, first, beside):
    places = beside("stopped")
    ledger = Ledger(database.ledger_engine(places.ledger))
    begun = first_half(ledger)
    pin_times(ledger)
    if place == "recorder.before_final":  # of a trial that was running, in Optuna too
        publish(ledger.engine, places, in_bulk=first)
        ledger.finish(begun["running"].lease, completed(0.3))
        ledger.finish(begun["resumed"].lease, completed(0.2))
    with failpoints.armed(f"{place}=raise@2"), pytest.raises(FailpointError):
        publish(ledger.engine, places, in_bulk=first)
    publish(ledger.engine, places, in_bulk=not first)
    found = {one.kind for one in doctor.examine(ledger.engine, places)}
    assert found <= {"lease"}
    ledger.engine.dispose()


def test_tables_of_another_revision_are_left_to_their_libraries(beside, caplog, monkeypatch):
    places = beside("unknown")
    monkeypatch.setattr(bulk, "_logged", set())
    ledger = Ledger(database.ledger_engine(places.ledger))
    first_half(ledger)
    recorder = Recorder(ledger.engine, places)
    engines = create_engine(places.tracking), create_engine(places.optuna)
    newer = ("UPDATE alembic_version SET version_num = 'newer'",
             "UPDATE version_info SET schema_version = 13")  # fmt: skip
    for engine, statement in zip(engines, newer, strict=True):
        with engine.begin() as tx:
            tx.exec_driver_sql(statement)
        engine.dispose()
    with caplog.at_level("WARNING"):
        for _ in range(3):
            assert isinstance(recorder._runs._writer(), ClientWriter)
            assert isinstance(recorder._trials._writer(), StorageWriter)
    mlflows, optunas = sorted(record.getMessage() for record in caplog.records)
    assert "MLflow's tables have revision newer, expected dc11669786a5 to" in mlflows
    assert "17 times slower" in mlflows
    assert "Optuna's tables have version 13" in optunas
    for target, way in (("mlflow", recorder._runs), ("optuna", recorder._trials)):
        assert way.target == target
        sample = metrics.REGISTRY.get_sample_value("tuner_bulk_writer", {"target": target})
        assert sample == 0.0
    ledger.engine.dispose()


def test_doctor_notes_tables_that_cannot_be_written_in_bulk(beside, monkeypatch):
    places = beside("noted")
    assert doctor.notes(places) == []
    monkeypatch.setattr(mlflow_rows, "REVISIONS", ("older",))
    monkeypatch.setattr(optuna_rows, "VERSION", 11)
    optunas, mlflows = doctor.notes(places)
    assert "Optuna's tables have version 12" in optunas
    assert "expected older to older; runs are written through MLflow's client" in mlflows


def test_the_revisions_of_mlflow_are_known_up_to_the_installed_one(beside):
    places = beside("installed")
    engine = create_engine(places.tracking)
    with engine.begin() as tx:
        (here,) = tx.exec_driver_sql("SELECT version_num FROM alembic_version").scalars()
    engine.dispose()
    assert here in mlflow_rows.REVISIONS
