"""Damages of the ledger, Optuna's tables and MLflow's, what `doctor` calls them, and the cure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import (
    assert_whole,
    change,
    copy,
    left,
    prepare,
    reader,
    rows,
    train_here,
    tuner,
    write_study,
)
from sqlalchemy import create_engine, text

from tuner.ledger import CheckpointRecord, Ledger, database
from tuner.operations import doctor
from tuner.tracking.mlflow.bulk_writer import METRICS

pytestmark = pytest.mark.slow

RUN = "(SELECT run_uuid FROM tags WHERE key = 'tuner.trial' AND value = '3')"
PARENT = "(SELECT run_uuid FROM tags WHERE key = 'tuner.trial' AND value = 'study')"


@dataclass(frozen=True)
class Damage:
    """What is done behind everybody's back, what it is called, and whether it can be mended."""

    file: str
    statements: tuple[str, ...]
    kinds: tuple[str, ...]
    trial: int | None = 3
    mends: bool = True


def in_mlflow(
    *statements: str, kinds: tuple[str, ...], trial: int | None = 3, mends=True
) -> Damage:
    return Damage("mlflow.db", statements, kinds, trial, mends)


def in_tuner(*statements: str, kinds: tuple[str, ...], trial: int | None = 3, mends=True) -> Damage:
    return Damage("tuner.db", statements, kinds, trial, mends)


COPY_RUN = (
    f"""
    INSERT INTO runs (run_uuid, name, user_id, status, start_time, lifecycle_stage, experiment_id)
    SELECT 'c0ffee', name, user_id, status, start_time, lifecycle_stage, experiment_id
    FROM runs WHERE run_uuid = {RUN}
    """,
    f"INSERT INTO tags SELECT key, value, 'c0ffee' FROM tags WHERE run_uuid = {RUN}",
)
DAMAGES = {
    "run deleted": in_mlflow(
        f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = {RUN}",
        kinds=("run_missing",),
    ),
    "parent deleted": in_mlflow(
        f"UPDATE runs SET lifecycle_stage = 'deleted' WHERE run_uuid = {PARENT}",
        kinds=("run_missing", "run_tags"),
        trial=None,
    ),
    "run doubled": in_mlflow(*COPY_RUN, kinds=("run_doubled",)),
    "run unknown": in_mlflow(
        *COPY_RUN,
        "UPDATE tags SET value = '77' WHERE key = 'tuner.trial' AND run_uuid = 'c0ffee'",
        kinds=("run_extra",),
        trial=77,
        mends=False,
    ),
    "point altered": in_mlflow(
        f"UPDATE metrics SET value = value + 1e-9 WHERE run_uuid = {RUN}"
        " AND key = 'train_loss' AND step = 7",
        kinds=("run_points",),
    ),
    "point lost": in_mlflow(
        f"DELETE FROM metrics WHERE run_uuid = {RUN} AND key = 'val_loss' AND step = 5",
        kinds=("run_points",),
    ),
    "param altered": in_mlflow(
        f"UPDATE params SET value = '0.5' WHERE run_uuid = {RUN} AND key = 'lr'",
        kinds=("run_params",),
    ),
    "param lost": in_mlflow(
        f"DELETE FROM params WHERE run_uuid = {RUN} AND key = 'log10_lr'", kinds=("run_params",)
    ),
    "tag altered": in_mlflow(
        f"UPDATE tags SET value = '1' WHERE run_uuid = {RUN} AND key = 'tuner.seed'",
        kinds=("run_tags",),
    ),
    "outcome altered": in_mlflow(
        f"UPDATE tags SET value = 'pruned' WHERE run_uuid = {RUN} AND key = 'tuner.outcome'",
        kinds=("run_tags",),
    ),
    "status altered": in_mlflow(
        f"UPDATE runs SET status = 'RUNNING' WHERE run_uuid = {RUN}", kinds=("run_status",)
    ),
    "dataset lost": in_mlflow(
        f"DELETE FROM inputs WHERE destination_id = {RUN}", kinds=("run_dataset",)
    ),
    "Optuna's trial deleted": in_tuner(
        "DELETE FROM trial_params WHERE trial_id = 4",
        "DELETE FROM trial_values WHERE trial_id = 4",
        "DELETE FROM trial_intermediate_values WHERE trial_id = 4",
        "DELETE FROM trial_user_attributes WHERE trial_id = 4",
        "DELETE FROM trial_system_attributes WHERE trial_id = 4",
        "DELETE FROM trials WHERE number = 3",
        kinds=("optuna_missing",),
    ),
    "Optuna's state altered": in_tuner(
        "UPDATE trials SET state = 'FAIL' WHERE number = 3", kinds=("optuna_state",)
    ),
    "Optuna's value altered": in_tuner(
        "UPDATE trial_values SET value = 7 WHERE trial_id = 4", kinds=("optuna_value",)
    ),
    "Optuna's param altered": in_tuner(
        "UPDATE trial_params SET param_value = 7 WHERE trial_id = 4 AND param_name = 'lr'",
        kinds=("optuna_params",),
    ),
    "Optuna's report altered": in_tuner(
        "UPDATE trial_intermediate_values SET intermediate_value = 7 WHERE trial_id = 4",
        kinds=("optuna_reports",),
    ),
    "a trial in Optuna that is not ours": in_tuner(
        "INSERT INTO trials (number, study_id, state) VALUES (4, 1, 'WAITING')",
        kinds=("optuna_extra",),
        trial=None,
        mends=False,
    ),
    "first chunk lost": in_tuner(
        "DELETE FROM tuner_chunks WHERE trial_id = 4 AND first_step = 0",
        kinds=("curve",),
        mends=False,
    ),
    "middle chunk lost": in_tuner(
        "DELETE FROM tuner_chunks WHERE trial_id = 4 AND first_step = 10",
        kinds=("curve",),
        mends=False,
    ),
    "budget miscounted": in_tuner(
        "UPDATE tuner_studies SET reserved = 7", kinds=("budget",), trial=None, mends=False
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = prepare(tmp_path_factory.mktemp("trained"), trials="4")
    train_here(folder)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return copy(trained, tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_and_what_is_a_projection_is_mended(damage, folder):
    before = left(folder)
    places = database.addresses({}, folder)
    engine = database.ledger_engine(places.ledger)
    for statement in damage.statements:
        changed = change(folder, statement, damage.file)
        assert changed or statement.startswith("DELETE FROM trial_"), statement
    found = doctor.examine(engine, places)
    assert {problem.kind for problem in found} == set(damage.kinds)
    assert {problem.study for problem in found} == {"small"}
    assert damage.trial in {problem.trial for problem in found}
    assert not any(problem.repaired for problem in found)
    assert all(problem.detail for problem in found)

    repaired = doctor.repair(engine, places)
    assert {problem.kind for problem in repaired} == set(damage.kinds)
    assert all(problem.repaired is damage.mends for problem in repaired)
    if not damage.mends:  # and what is not ours or not whole is not made worse
        assert doctor.examine(engine, places) == found
    else:
        assert doctor.examine(engine, places) == []
        assert left(folder) == before
    engine.dispose()


def test_the_command_says_what_it_found_and_whether_it_helped(folder):
    well = tuner(folder, "doctor", "--json")
    assert (well.code, well.json) == (0, {"ok": True, "problems": [], "notes": []})
    for damage in ("status altered", "budget miscounted"):
        for statement in DAMAGES[damage].statements:
            change(folder, statement, DAMAGES[damage].file)
    ill = tuner(folder, "doctor", "--json")
    assert ill.code == 1
    assert ill.json["ok"] is False
    assert [list(one) for one in ill.json["problems"]] == [
        ["kind", "study", "trial", "detail", "repaired"]
    ] * len(ill.json["problems"])
    assert {one["kind"] for one in ill.json["problems"]} == {"budget", "run_status"}
    half = tuner(folder, "doctor", "--repair")
    assert half.code == 1
    assert "run_status: small, trial 3: RUNNING in MLflow, completed in the ledger (repaired)" in (
        half.out
    )
    assert "budget: small: 4 trials, 7 reserved\n" in half.out
    assert "Not everything could be repaired:" in half.out
    assert "budget: The ledger's count of trials differs from its trials" in half.out
    assert "--repair" not in half.out
    assert "Traceback" not in half.err


def test_a_budget_may_be_lowered_below_what_has_been_trained(folder):
    write_study(folder, trials="2")
    assert tuner(folder, "submit", "study.toml").code == 0
    assert reader(folder).study("small").limit == 2
    assert_whole(folder)


def test_a_lease_that_expired_and_a_checkpoint_that_is_missing(folder):
    change(folder, 'UPDATE tuner_studies SET "limit" = 5')
    ledger = Ledger(reader(folder).engine, lease_seconds=-1)
    claim = ledger.claim(ledger.study("small").id, "elsewhere:1:1.00", {})
    fresh = Ledger(ledger.engine, lease_seconds=30)
    gone = CheckpointRecord(study_id=1, trial=4, step=0, attempt=1, digest="0" * 64)
    fresh.save_checkpoint(claim.lease, gone)
    change(folder, "UPDATE tuner_attempts SET expires_at = 0 WHERE live")
    places = database.addresses({}, folder)
    found = {problem.kind: problem for problem in doctor.examine(ledger.engine, places)}
    assert set(found) == {"lease", "checkpoint"}
    assert found["lease"].trial == found["checkpoint"].trial == 4
    assert "elsewhere:1:1.00" in found["lease"].detail
    repaired = {one.kind: one.repaired for one in doctor.repair(ledger.engine, places)}
    assert repaired == {"lease": True, "checkpoint": False}, "a file cannot be made again"
    assert rows(folder, "SELECT ending FROM tuner_attempts WHERE trial_id = 5") == [("stale",)]


def test_workers_with_different_versions_of_a_package(folder):
    change(folder, 'UPDATE tuner_studies SET "limit" = 6')
    ledger = Ledger(reader(folder).engine)
    study = ledger.study("small")
    for worker, version in (("a:1:1", "2.13.0"), ("b:1:1", "2.14.0")):
        ledger.claim(study.id, worker, {"packages": {"torch": version, "numpy": "2.4"}})
    found = doctor.examine(ledger.engine, database.addresses({}, folder))
    assert [(one.kind, one.trial) for one in found] == [("versions", None)]
    assert "torch: 2.13.0 in a:1:1, 2.14.0 in b:1:1" in found[0].detail


def test_what_others_log_into_the_experiment_is_left_alone(folder: Path):
    places = database.addresses({}, folder)
    client = database.tracking_client(places)
    experiment = client.get_experiment_by_name("small").experiment_id
    run = client.create_run(experiment, run_name="mine")
    client.log_metric(run.info.run_id, "val_loss", 1.0)
    assert tuner(folder, "doctor", "--repair").code == 0
    assert client.get_run(run.info.run_id).info.lifecycle_stage == "active"
    assert_whole(folder)


def indexes(url: str) -> dict[str, str]:
    """Read the indexes that can be dropped, with the statement that creates each."""
    engine = create_engine(url)
    listed = {
        "sqlite": "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL",
        "postgresql": "SELECT indexname, indexdef FROM pg_indexes WHERE NOT EXISTS "
        "(SELECT FROM pg_constraint WHERE conname = indexname) AND schemaname = current_schema()",
    }
    with engine.connect() as tx:
        found = {row[0]: row[1] for row in tx.execute(text(listed[engine.dialect.name]))}
    engine.dispose()
    return found


def execute(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as tx:
        for statement in statements:
            tx.execute(text(statement))
    engine.dispose()


@pytest.mark.thorough
def test_every_index_that_is_dropped_is_named_and_ours_are_created_again(beside):
    places = beside("dropped")
    engine = database.ledger_engine(places.ledger)
    assert doctor.examine(engine, places) == []
    before = indexes(places.ledger)
    ours = {name for name in before if "tuner_" in name}
    assert {"tuner_attempts_one_live", "tuner_timetable_runs_one_running"} <= ours
    for url in {places.ledger, places.optuna, places.tracking}:
        execute(url, *(f"DROP INDEX {name}" for name in indexes(url)))

    found = doctor.examine(engine, places)
    said = " ".join(one.detail for one in found)
    assert {one.kind for one in found} == {"schema_ledger", "schema_optuna", "schema_mlflow"}
    assert {one.study for one in found} == {None}
    assert all(f" {name} of tuner_" in said for name in ours)
    assert "the unique index tuner_attempts_one_live of tuner_attempts is missing" in said
    assert "run: CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name)" in said
    assert "run: CREATE INDEX index_metrics_run_uuid ON metrics (run_uuid)" in said

    repaired = doctor.repair(engine, places)
    assert {one.kind for one in repaired if one.repaired} == {"schema_ledger"}
    assert {one.kind for one in doctor.examine(engine, places)} == {
        "schema_optuna",
        "schema_mlflow",
    }
    assert {name: indexes(places.ledger)[name] for name in ours} == {
        name: before[name] for name in ours
    }
    for one in doctor.examine(engine, places):  # and the statements given for the others help
        url = places.optuna if one.kind == "schema_optuna" else places.tracking
        execute(url, one.detail.partition("run: ")[2])
    assert doctor.examine(engine, places) == []
    engine.dispose()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (
            ["DROP INDEX tuner_attempts_one_live",
             "CREATE INDEX tuner_attempts_one_live ON tuner_attempts (trial_id)"],
            "the unique index tuner_attempts_one_live of tuner_attempts differs",
        ),
        (
            ["DROP INDEX tuner_trials_running",
             "CREATE INDEX tuner_trials_running ON tuner_trials (study_id, number)"],
            "the index tuner_trials_running of tuner_trials differs",
        ),
    ],
)  # fmt: skip
def test_an_index_of_another_kind_is_replaced(statements, said, beside):
    places = beside("another")
    engine = database.ledger_engine(places.ledger)
    before = indexes(places.ledger)
    execute(places.ledger, *statements)
    (found,) = doctor.examine(engine, places)
    assert said in found.detail
    assert [one.repaired for one in doctor.repair(engine, places)] == [True]
    assert indexes(places.ledger) == before
    engine.dispose()


def test_rows_that_contradict_an_index_keep_it_from_being_created(folder):
    change(folder, "DROP INDEX tuner_attempts_one_live")
    columns = "trial_id, claim, worker, expires_at, first_step, environment, started_at"
    for number in (8, 9):
        change(
            folder,
            f"INSERT INTO tuner_attempts (number, live, {columns}) SELECT {number}, 1, {columns} "
            "FROM tuner_attempts WHERE trial_id = 1 LIMIT 1",
        )
    change(folder, "UPDATE tuner_attempts SET expires_at = 1e11 WHERE live")
    done = tuner(folder, "doctor", "--repair")
    assert done.code == 1
    assert "it could not be created: UNIQUE constraint failed: tuner_attempts.trial_id" in done.out


def test_a_table_or_column_that_is_missing_needs_a_backup(folder):
    checks = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'tuner_reports'"
    for (name,) in rows(folder, checks):  # which name the column
        change(folder, f"DROP TRIGGER {name}")
    change(folder, "ALTER TABLE tuner_reports DROP COLUMN reason")
    change(folder, "DROP TABLE tuner_probes")
    for arguments in (("doctor",), ("doctor", "--repair")):
        done = tuner(folder, *arguments)
        assert done.code == 1
        assert "schema_ledger: database: the column reason of tuner_reports is missing" in done.out
        assert "the table tuner_probes is missing; restore a backup" in done.out


def test_constraints_on_postgresql_are_created_again(shared, tmp_path):
    places = database.addresses({"TUNER_DATABASE_URL": shared}, tmp_path)
    engine = database.ledger_engine(places.ledger)
    execute(
        places.ledger,
        "ALTER TABLE tuner_trials DROP CONSTRAINT tuner_trials_study_id_number_key",
        "ALTER TABLE tuner_chunks DROP CONSTRAINT tuner_chunks_pkey",
    )
    execute(places.tracking, "ALTER TABLE metrics DROP CONSTRAINT metric_pk")
    found = doctor.repair(engine, places)
    assert {(one.detail.partition(";")[0], one.repaired) for one in found} == {
        ("the primary key (trial_id, first_step) of tuner_chunks is missing", True),
        ("the unique constraint (study_id, number) of tuner_trials is missing", True),
        (f"the primary key ({', '.join(METRICS.primary_key.columns.keys())}) of metrics is missing",
         False),
    }  # fmt: skip
    engine.dispose()


def test_an_experiment_that_people_rename_stays_the_studys(folder: Path):
    places = database.addresses({}, folder)
    client = database.tracking_client(places)
    ours = client.get_experiment_by_name("small").experiment_id
    before = rows(folder, "SELECT count(*) FROM runs", "mlflow.db")
    client.rename_experiment(ours, "the good one")
    client.create_experiment("small")  # somebody else's, of the name that is free now
    change(folder, "UPDATE runs SET status = 'RUNNING' WHERE name LIKE '3: %'", "mlflow.db")

    repaired = tuner(folder, "doctor", "--repair", "--json")
    assert (repaired.code, repaired.json["ok"]) == (0, True)
    told = {one["kind"]: (one["detail"], one["repaired"]) for one in repaired.json["problems"]}
    said = f"MLflow's experiment {ours} is now named 'the good one'"
    assert told.pop("experiment_renamed") == (said, False)
    assert told == {"run_status": ("RUNNING in MLflow, completed in the ledger", True)}
    shown = tuner(folder, "doctor")
    assert shown.code == 0
    assert shown.out == f"experiment_renamed: small: {said}\nEverything matches.\n"

    write_study(folder, trials="5")
    train_here(folder)  # by a recorder that finds the experiment anew
    assert rows(folder, "SELECT count(*) FROM runs", "mlflow.db") == [(before[0][0] + 1,)]
    where = rows(folder, "SELECT DISTINCT experiment_id FROM runs", "mlflow.db")
    assert where == [(int(ours),)]
    tuner(folder, "delete", "small", "--yes")
    assert client.get_experiment(ours).lifecycle_stage == "deleted"
    assert client.get_experiment_by_name("small").lifecycle_stage == "active"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_a_repair_leaves_has_advice_that_is_not_to_repair(damage):
    problems = [
        doctor.Problem(kind=kind, study="small", trial=damage.trial, detail="")
        for kind in damage.kinds
    ]
    for line, kind in zip(doctor.advice(problems), damage.kinds, strict=False):
        assert line.startswith(f"{kind}: ")
        assert len(line) > 60
