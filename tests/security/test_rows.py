"""Rows with content that tuner never writes, each in a study of its own beside a healthy one.

Whoever has a login of the database may write such rows. They must stop nobody but their own study,
and must not lead to a file outside the folder of checkpoints.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from helpers import claim, completed, rows, submit, unchecked
from processes import prepare
from safetensors.numpy import save
from sqlalchemy import insert, text, update
from training_here import PREFIXES, line_spec, publish, train_all

from tuner.cli.app import cli
from tuner.config import StudySpec
from tuner.config.grid import Grid
from tuner.core.errors import NotFoundError, UnreadableError
from tuner.core.file_stores import FolderStore
from tuner.ledger import CheckpointRecord, Ledger, Retrainings, StudyIdentity, adding, database
from tuner.ledger.checkpoint_files import key_of, remove_all, remove_file, remove_others
from tuner.ledger.publications import Publications
from tuner.ledger.records import ADDED, FIXED, HISTORY, PARENT, RETRIED, SEED
from tuner.ledger.retraining_tables import retrainings
from tuner.ledger.retrainings import unreadable
from tuner.ledger.tables import published_studies, studies, trials
from tuner.operations import doctor, manage
from tuner.operations import submit as submission
from tuner.search import Search
from tuner.worker.checkpoints import sweep
from tuner.worker.lease_renewer import LeaseRenewer

STUDIES = "UPDATE tuner_studies SET {} WHERE id = :study"
TRIALS = "UPDATE tuner_trials SET {} WHERE study_id = :study"
OF_STUDY = "(SELECT id FROM tuner_trials WHERE study_id = :study)"
CHUNKS = f"UPDATE tuner_chunks SET data = :data WHERE trial_id IN {OF_STUDY}"
DAMAGES = {
    # the whole study
    "spec empty": STUDIES.format("spec = '{}'"),
    "spec no JSON": STUDIES.format("spec = 'nope'"),
    "spec no text": STUDIES.format("spec = x'ff00'"),
    "workload empty": STUDIES.format("workload = '{}'"),
    "workload no JSON": STUDIES.format("workload = '{'"),
    "attrs a list": STUDIES.format("attrs = '[]'"),
    "attrs too deep": STUDIES.format(f"attrs = '{'[' * 5000}'"),
    "rungs a number": STUDIES.format("rungs = '7'"),
    "settled a list": STUDIES.format("settled = '[]'"),
    "state unknown": STUDIES.format("state = 'nonsense'"),
    "revision infinite": STUDIES.format("revision = 9e999"),
    "limit a text": STUDIES.format("\"limit\" = 'many'"),
    # one of its trials
    "number a path": TRIALS.format("number = '../../outside'"),
    "number an absolute path": TRIALS.format("number = :outside"),
    "params empty": TRIALS.format("params = '{}'"),
    "completed without params": TRIALS.format("params = NULL"),
    "params not in the space": TRIALS.format("params = replace(params, 'constant', 'nothing')"),
    "trial attrs a list": TRIALS.format("attrs = '[]'"),
    "trial state unknown": TRIALS.format("state = 'nonsense'"),
    "value a text": TRIALS.format("value = 'low'"),
    "steps a text": TRIALS.format("steps = 'many'"),
    "created never": TRIALS.format("created_at = 'never'"),
    "environment a list": "UPDATE tuner_attempts SET environment = '[]' "
    f"WHERE trial_id IN {OF_STUDY}",
    # its curve
    "chunk no chunk": CHUNKS.replace(":data", "x'00'"),
    "chunk without columns": CHUNKS,
}
HARMLESS = {
    "reason not UTF-8": TRIALS.format("reason = CAST(x'ff' AS TEXT)"),
    "checkpoint elsewhere": f"""
        INSERT INTO tuner_checkpoints (trial_id, attempt_id, step, path, digest)
        SELECT trial_id, id, 4, :outside || '/file', 'd' FROM tuner_attempts
        WHERE trial_id IN {OF_STUDY}
    """,
}
MISSING = save({"time": np.zeros(4)})


def _spec(name: str) -> StudySpec:
    return line_spec(
        study={"name": name},
        training={"steps": 4, "trainer": "reference", "threads": 1},
        space={"lr": {"low": 0.01, "high": 0.1}},
        search={"sampler": "random"},
        budget={"trials": 1},
    )


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder outside of that of the checkpoints, in which nothing may be changed."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text("precious")
    yield folder
    assert (folder / "file").read_text() == "precious"


@pytest.mark.slow
@pytest.mark.thorough
def test_a_bad_row_stops_nobody_else(tmp_path, outside, monkeypatch):
    """Worker, recorder, `studies`, `status`, `doctor`, `report`, `stop` and `delete`."""
    here = prepare(tmp_path / "here")
    monkeypatch.chdir(here)
    places = database.addresses({}, here)
    ledger = Ledger(database.open_ledger(places, create=False))
    described = submission.prepare(_spec("good"), PREFIXES).description
    for name in (*DAMAGES, *HARMLESS, "good"):  # bad ones first: they come first everywhere
        ledger.submit(_spec(name), limit=1, workload=described)
    train_all(ledger, places)
    for study in ledger.studies():
        (places.checkpoints.folder / str(study.id) / "0").mkdir(parents=True)
    (places.checkpoints.folder / "outside").symlink_to(outside)
    _damage(here, outside)

    train_all(ledger, places)
    good = ledger.study("good")
    assert ledger.counts(good.id)["completed"] == 2
    publish(ledger, places)

    command = CliRunner()
    listed = command.invoke(cli, ["studies"], catch_exceptions=False)
    assert listed.exit_code == 0
    lines = dict(line.split(": ", 1) for line in listed.output.splitlines())
    assert lines["good"].startswith("ended, 2 completed")
    assert "unreadable" in lines["spec empty"]
    assert "workload: expected the digests of code and data" in lines["workload empty"]
    assert lines.keys() == {*DAMAGES, *HARMLESS, "good"}
    for name in ("good", "number a path", "chunk no chunk"):
        shown = command.invoke(cli, ["status", name], catch_exceptions=False)
        assert shown.exit_code == 0
    assert "cannot be read: number" in command.invoke(cli, ["status", "number a path"]).output
    refused = command.invoke(cli, ["status", "spec empty"]).exception
    assert isinstance(refused, UnreadableError)
    assert refused.exit_code == 1
    reported = command.invoke(cli, ["report", "good", "--not-tracked"], catch_exceptions=False)
    assert reported.exit_code == 0

    found = {problem.study: problem.kind for problem in doctor.examine(ledger.engine, places)}
    curves = {name for name in DAMAGES if name.startswith("chunk")}
    assert {name for name, kind in found.items() if kind == "curve"} == curves
    assert {name for name, kind in found.items() if kind == "unreadable"} == {*DAMAGES} - curves
    # the name that the row has for its file leads nowhere: it is derived from numbers
    assert found["checkpoint elsewhere"] == "checkpoint"
    assert not found.keys() & {"good", *HARMLESS} - {"checkpoint elsewhere"}
    assert command.invoke(cli, ["doctor"], standalone_mode=False).return_value == 1

    manage.stop(ledger, places, "checkpoint elsewhere")
    for name in (*DAMAGES, *HARMLESS):
        manage.delete(ledger, places, name, force=True)
        with pytest.raises(NotFoundError):
            ledger.study(name)
    assert doctor.examine(ledger.engine, places) == []
    assert {path.name for path in places.checkpoints.folder.iterdir()} <= {str(good.id), "outside"}
    ledger.engine.dispose()


def _damage(here: Path, outside: Path) -> None:
    """Write every bad row into the study of its name, and let each study have another trial."""
    with closing(sqlite3.connect(here / "tuner.db")) as connection, connection:
        connection.execute('UPDATE tuner_studies SET "limit" = 2')
        ids = dict(connection.execute("SELECT name, id FROM tuner_studies"))
        with unchecked(connection.execute):
            for name, statement in {**DAMAGES, **HARMLESS}.items():
                given = {"study": ids[name], "outside": str(outside), "data": MISSING}
                assert connection.execute(statement, given).rowcount == 1, name


@pytest.mark.parametrize("text_of_id", ["$(touch x)", "", "a b", "a\n", "x" * 257])
def test_a_text_that_mlflow_refuses_as_an_id_is_none(ledger, text_of_id):
    """Else `doctor` would find MLflow unusable, and end."""
    study = submit(ledger)
    row = {"study_id": study.id, "target": "mlflow", "revision": 1, "expires_at": 0.0}
    with ledger.engine.execution_options(writes=True).begin() as tx, unchecked(tx.exec_driver_sql):
        tx.execute(insert(published_studies), {**row, "external_id": text_of_id})
    assert Publications(ledger.engine, "mlflow").study(study.id) == (None, 1)


@pytest.mark.longer
@pytest.mark.parametrize("damage", ["spec = '{}'", "attrs = '[]'", "state = 'nonsense'"])
def test_a_lease_of_an_unreadable_study_is_reaped(ledger, damage, tmp_path):
    bad, good = submit(ledger, study={"name": "bad"}), submit(ledger, study={"name": "good"})
    impatient = Ledger(ledger.engine, lease_seconds=-1.0)
    claim(impatient, bad)
    claim(impatient, good)
    writing = ledger.engine.execution_options(writes=True).begin()
    with writing as tx, unchecked(tx.exec_driver_sql):
        tx.execute(text(STUDIES.format(damage)), {"study": bad.id})
    assert LeaseRenewer(ledger, FolderStore(tmp_path)).reap() == 2


def test_a_path_is_derived_from_whole_numbers(tmp_path, outside):
    folder = FolderStore(tmp_path)
    kept = tmp_path / "1" / "2" / "3-1.pt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    for number in ("../../outside", str(outside), "../1", 1.5, -1, True, None):
        bad = CheckpointRecord(study_id=1, trial=number, step=1, attempt=1, digest="")
        with pytest.raises(ValueError, match="whole numbers"):
            key_of(bad)
        remove_file(folder, bad)
        remove_others(folder, identity_of(1), number, None)
        remove_all(folder, identity_of(number))
    assert kept.exists()


def test_a_symbolic_link_leads_to_no_file_outside(tmp_path, outside):
    folder = FolderStore(tmp_path / "checkpoints")
    folder.folder.mkdir()
    (folder.folder / "1").symlink_to(tmp_path)
    (tmp_path / "2").symlink_to(outside)
    (outside / "3-1.pt").write_text("not a checkpoint")
    planted = CheckpointRecord(study_id=1, trial=2, step=3, attempt=1, digest="")
    with pytest.raises(OSError, match="outside the folder"):
        folder.read(key_of(planted))
    remove_file(folder, planted)
    remove_others(folder, identity_of(1), 2, None)
    assert (outside / "3-1.pt").exists()


def test_a_symbolic_link_for_a_study_stops_no_worker(ledger, tmp_path, outside, caplog):
    study, store = submit(ledger), FolderStore(tmp_path / "checkpoints")
    store.folder.mkdir()
    (store.folder / str(study.id)).symlink_to(outside)
    (outside / "0").mkdir()
    sweep(store, ledger, study)
    assert "lies outside the folder" in caplog.text
    assert (outside / "0").exists()


def identity_of(number):
    return StudyIdentity(id=number, name="small", version=1)


def test_a_waiting_trial_that_is_unreadable_does_not_hide_the_next_one(ledger):
    study = submit(ledger, budget={"trials": 2})
    first, second = claim(ledger, study), claim(ledger, study)
    for held in (first, second):
        ledger.append(held.lease, rows(0, 4))
        ledger.release(held.lease, "interrupted", "for this test")
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(text("UPDATE tuner_trials SET attrs = '[]' WHERE number = 0"))
    assert claim(ledger, study).trial.number == 1
    assert [number for number, _ in ledger.unreadable_trials(study.id)] == [0]


def test_a_completed_trial_without_parameters_is_left_out(ledger):
    """What reads completed trials, such as a report, needs their rate and optimizer."""
    study = submit(ledger)
    ledger.finish(claim(ledger, study).lease, completed(0.5))
    assert ledger.trials(study.id) == []
    assert ledger.best(study) is None
    ((number, why),) = ledger.unreadable_trials(study.id)
    assert number == 0
    assert "it is completed and has no parameters" in why


SEARCHED = {
    "lr": {"low": 1e-3, "high": 1.0},
    "schedule": "constant",
    "optimizer": ["sgd", "adamw"],
    "batch_size": [8, 16],
    "arguments": {
        "depth": {"low": 1, "high": 3},
        "norm": [True, False],
        "width": {"values": [4, 8], "when": {"norm": True}},
    },
}
BY_EPOCHS = {"steps": None, "epochs": 2, "evaluate_every": None}


@pytest.mark.longer
@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 0), ("batch_size", "8"), ("depth", 1.5), ("depth", -1), ("norm", 1),
     ("width", 5), ("width", None), ("lr", 2.0), ("optimizer", "lion")],
)  # fmt: skip
def test_a_trial_outside_of_its_space_is_left_out_everywhere(ledger, name, value):
    study = submit(
        ledger, space=SEARCHED, training=BY_EPOCHS, search={"sampler": "tpe", "pruner": "none"}
    )
    fixed = {"lr": 0.1, "schedule": "constant", "optimizer": "sgd", "batch_size": 8, "depth": 2,
             "norm": True, "width": 4}  # fmt: skip
    wrong = {key: one for key, one in {**fixed, name: value}.items() if one is not None}
    for held, params in [(claim(ledger, study), fixed), (claim(ledger, study), wrong)]:
        ledger.draw(held.lease, params, attrs={}, study_attrs={}, asked_revision=0)
        ledger.release(held.lease, "interrupted", "for this test")
    assert [trial.number for trial in ledger.trials(study.id)] == [0]
    (found,) = ledger.unreadable_trials(study.id)
    assert found[0] == 1
    assert f"{name}: expected" in found[1]
    again, new = claim(ledger, study), claim(ledger, study)
    assert (again.trial.number, new.trial.number) == (0, 2)
    assert study.spec.space.contains(Search(study, ledger).draw(2).params)


@pytest.mark.longer
@pytest.mark.parametrize(
    "attrs",
    [{FIXED: {"depth": 9}}, {FIXED: {"other": 1}}, {FIXED: [1]}, {FIXED: {"lr": [1]}},
     {SEED: "x"}, {PARENT: 1}, {RETRIED: "../x"}, {HISTORY: 3}, {ADDED: {}}],
    ids=str,
)  # fmt: skip
def test_an_added_trial_with_other_attributes_is_left_out(ledger, attrs):
    study = submit(ledger, space=SEARCHED, training=BY_EPOCHS, search={"sampler": "random"})
    for depth in (2, 3):
        adding.enqueue(ledger, study, {"depth": depth})
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(trials).where(trials.c.number == 0).values(attrs=attrs))
    assert [number for number, _ in ledger.unreadable_trials(study.id)] == [0]
    assert adding.retry(ledger, study) == {}
    assert claim(ledger, study).trial.number == 1
    assert Search(study, ledger).draw(1).params["depth"] == 3


@pytest.mark.parametrize("rows_known", [None, 0, -1, "many"])
def test_a_budget_in_epochs_needs_the_number_of_examples(ledger, rows_known):
    study = submit(ledger, training=BY_EPOCHS)
    workload = dict(study.workload) | {"training_rows": rows_known}
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(update(studies).values(workload=workload))
    with pytest.raises(UnreadableError):
        ledger.study(study.name)


@pytest.mark.longer
def test_a_grid_larger_than_memory_is_indexed():
    """A study of 8e9 combinations draws any of them at once."""
    values = [i / 3000 for i in range(1, 2001)]
    space = line_spec(
        space={
            "lr": values,
            "schedule": "constant",
            "optimizer": {"name": "sgd", "momentum": values, "weight_decay": values},
        }
    ).space
    cells = Grid(space)
    assert cells.cells == 2000**3
    last = cells.cell(cells.cells - 1)
    assert (last["lr"], last["sgd.momentum"], last["sgd.weight_decay"]) == (values[-1],) * 3
    assert cells.index(last) == cells.cells - 1
    assert cells.untried(0, [0, 1, 5]) == 2


# --- results of retrainings

ORIGIN = {
    "params": {"lr": 0.1, "schedule": "constant", "optimizer": "sgd"},
    "study": "line", "version": 1, "trial": 0, "lr_range": [0.1, 0.1], "best": 0,
}  # fmt: skip
TRAINED = {"origin": ORIGIN, "value": 0.5, "failed": None, "retuned": None}
DECIDED = {
    "promote": True, "reason": "first", "champion": None,
    "values": {"champion": None, "challenger": 0.5},
}  # fmt: skip
LOGGED = {"run_id": "r", "version": 1}
WHOLE = {"train": TRAINED, "evaluate": DECIDED, "log": LOGGED}
DAMAGED: dict[str, dict[str, Any]] = {
    "nothing": {"result": {}},
    "no evaluation": {"result": {"train": TRAINED, "log": LOGGED}},
    "no version": {"result": WHOLE | {"log": LOGGED | {"version": None}}},
    "version a path": {"result": WHOLE | {"log": LOGGED | {"version": "../1"}}},
    "no origin": {"result": WHOLE | {"train": {"value": 0.5, "failed": None}}},
    "rate a text": {
        "result": WHOLE | {"train": TRAINED | {"origin": ORIGIN | {"params": {"lr": "low"}}}}
    },
    "values a number": {"result": WHOLE | {"evaluate": DECIDED | {"values": 0.5}}},
    "no outcome": {"result": WHOLE, "outcome": None},
    "an outcome before its end": {"result": WHOLE, "stage": "promote"},
}


@pytest.mark.parametrize("values", DAMAGED.values(), ids=DAMAGED)
def test_a_retraining_with_damaged_results_is_refused_and_hinders_no_other(ledger, values):
    whole = {
        "run_key": "1", "model": "m", "stage": "done", "outcome": "promoted", "result": WHOLE,
        "token": 1, "live": False, "expires_at": 0.0, "created_at": 1.0, "ended_at": 2.0,
    }  # fmt: skip
    with ledger.engine.execution_options(writes=True).begin() as tx:
        tx.execute(insert(retrainings).values(whole | {"study": "whole"}))
        tx.execute(insert(retrainings).values(whole | {"study": "damaged"} | values))
    store = Retrainings(ledger)
    assert [one.study for one in store.of_model("m")] == ["whole"]
    assert [study for study, _ in unreadable(ledger)] == ["damaged"]
    with pytest.raises(UnreadableError, match=r"retraining '1' of study 'damaged' cannot be read"):
        store.claim("damaged", "1", "m", "w")
    held, other = store.claim("whole", "2", "m", "w")
    assert (held.stage, other) == ("train", None)
