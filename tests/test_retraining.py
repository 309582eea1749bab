"""A champion and its challengers: once a key, promoted by one write, bad input refused first."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import mlflow.pytorch
import numpy as np
import pandas as pd
import pytest
import torch
from pipeline import Pipeline
from processes import PREFIXES, copy, prepare, train_here
from receiver import Receiver, receiving
from retrained import STUDY

from tuner.analysis import drift
from tuner.core.cron import Timetable
from tuner.core.errors import NotFoundError, UnavailableError, UsageError
from tuner.core.failpoints import PLACES, FailpointError
from tuner.ledger import Retrainings
from tuner.ledger.database import tracking_client
from tuner.operations import manage, report, timetables
from tuner.operations.predict import predict
from tuner.operations.retrain import retrain
from tuner.operations.rollback import rollback
from tuner.tracking.mlflow import check
from tuner.worker import work

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study trained, to be copied."""
    folder = prepare(tmp_path_factory.mktemp("trained") / "moving", STUDY)
    train_here(folder)
    return folder


@pytest.fixture
def pipeline(trained: Path, tmp_path: Path) -> Pipeline:
    return Pipeline(copy(trained, tmp_path))


@pytest.fixture(scope="module")
def promoted(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a first champion, to be copied; copies share the files of its model."""
    folder = copy(trained, tmp_path_factory.mktemp("promoted"))
    assert Pipeline(folder).retrain("0")["outcome"] == "promoted"
    return folder


@pytest.fixture
def successor(promoted: Path, tmp_path: Path) -> Pipeline:
    """A pipeline that has retrained "0"."""
    return Pipeline(copy(promoted, tmp_path))


# --- a champion and its successors


def test_the_champion_improves_or_stays_and_rollback_restores_it(pipeline: Pipeline) -> None:
    first = pipeline.retrain("0")
    assert first["outcome"] == "promoted"
    assert first["metrics"]["champion"] is None
    was = pipeline.predictions()
    same = pipeline.retrain("0 again")  # the same data: no better for sure
    assert (same["outcome"], same["version"], same["champion_version"]) == ("kept", 2, 1)
    assert np.array_equal(pipeline.predictions(), was)
    moved = pipeline.retrain("5")
    assert (moved["outcome"], moved["champion_version"]) == ("promoted", 3)
    assert moved["metrics"]["challenger"] < moved["metrics"]["champion"]
    assert not np.array_equal(pipeline.predictions(), was)
    back = rollback(pipeline.ledger, pipeline.places, "moving")
    assert (back.was, back.now) == (3, 1)
    assert np.array_equal(pipeline.predictions(), was)
    with pytest.raises(NotFoundError, match="first champion"):
        rollback(pipeline.ledger, pipeline.places, "moving")
    rollback(pipeline.ledger, pipeline.places, "moving", 3)
    assert pipeline.registry.champion().number == 3
    pipeline.assert_whole()


def test_a_champion_keeps_the_arguments_that_it_was_trained_with(tmp_path: Path) -> None:
    study = STUDY.replace("retrained:moving", "retrained:moving_network")
    searched = "[space]\narguments = { width = [2, 5] }\nbatch_size = [24]\n"
    study = study.replace("[space]\n", searched).replace('batch_size = "full"\n', "")
    study = study.replace("lr = [0.2, 0.3]", "lr = [0.02, 0.05]")  # on moved data, others diverge
    folder = prepare(tmp_path / "moving", study.replace("trials = 2", "trials = 4"))
    train_here(folder)
    pipeline = Pipeline(folder)
    assert pipeline.retrain("0")["outcome"] == "promoted"
    was = pipeline.predictions()
    assert pipeline.retrain("5")["outcome"] == "promoted", "the champion is rebuilt, and compared"
    assert not np.array_equal(pipeline.predictions(), was)
    pipeline.assert_whole()


def test_a_key_that_has_ended_gives_its_result_and_trains_nothing(pipeline: Pipeline) -> None:
    found = pipeline.retrain("0")
    pipeline.change("retrain.gate.metric=no_such", "retrain.gate.direction=minimize")
    assert pipeline.retrain("0") == found
    assert pipeline.trainings() == 1


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_the_model_says_where_it_comes_from_and_holds_no_code(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pipeline.retrain("0")
    champion = pipeline.registry.champion()
    assert champion.run_id == found["run_id"]
    assert champion.tags["tuner.study"] == "moving"
    assert champion.tags["tuner.trial"] in {"0", "1"}
    assert json.loads(champion.tags["tuner.params"])["lr"] in {0.2, 0.3}
    assert champion.tags["tuner.reason"] == found["reason"]
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", pipeline.places.tracking)
    mlflow.set_tracking_uri(pipeline.places.tracking)
    try:
        model = mlflow.pytorch.load_model("models:/moving@champion")
        function = mlflow.pyfunc.load_model("models:/moving@champion")
    finally:
        mlflow.set_tracking_uri(None)
    rows = np.linspace(0, 1, 14).reshape(7, 2)
    with torch.no_grad():
        theirs = model(torch.from_numpy(rows)).numpy()
    assert np.array_equal(theirs, pipeline.predictions())
    for given in (rows, pd.DataFrame(rows)):
        assert np.array_equal(function.predict(given), theirs)
    client = tracking_client(pipeline.places)
    run = client.get_run(found["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] in {"0.2", "0.3"}
    assert run.data.metrics["challenger_val_loss"] == found["metrics"]["challenger"]
    assert run.inputs.dataset_inputs[0].dataset.digest == champion.tags["tuner.data_digest"]


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_columns_are_matched_by_name_here_and_in_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = STUDY.replace("retrained:moving", "retrained:moving_table")
    folder = prepare(tmp_path / "moving", study)
    train_here(folder)
    pipeline = Pipeline(folder)
    pipeline.retrain("0")
    table = pd.DataFrame(np.linspace(0, 1, 14).reshape(7, 2), columns=["width", "height"])
    swapped = table[["height", "width"]]
    predicted = []
    for kind, one in (("csv", table), ("parquet", swapped)):
        file = tmp_path / f"rows.{kind}"
        (one.to_parquet if kind == "parquet" else one.to_csv)(file, index=False)
        found = predict(pipeline.ledger, pipeline.places, "moving", file, prefixes=PREFIXES)
        predicted.append(found.outputs)
    assert np.array_equal(*predicted)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", pipeline.places.tracking)
    mlflow.set_tracking_uri(pipeline.places.tracking)
    try:
        model = mlflow.pyfunc.load_model("models:/moving@champion")
    finally:
        mlflow.set_tracking_uri(None)
    assert model.metadata.get_input_schema().input_names() == ["width", "height"]
    for one in (table, swapped):  # through single precision, in MLflow's flavor for PyTorch
        assert np.allclose(model.predict(one), predicted[0], rtol=1e-6)

    with pytest.raises(UsageError, match="features: expected 'width' as column 1, got 'height'"):
        pipeline.retrain("5 swapped")


def test_a_version_leads_to_its_data_trial_curve_and_decision(pipeline: Pipeline) -> None:
    pipeline.change("retrain.factory=tests.retrained:by_day")
    found = pipeline.retrain("0")
    client, champion = tracking_client(pipeline.places), pipeline.registry.champion()
    assert json.loads(champion.tags["tuner.rows"]) == {"train": 24, "validation": 12}
    assert json.loads(champion.tags["tuner.batch_rows"])["day 1"] == {"train": 8, "validation": 4}
    assert champion.tags["tuner.data_source"] == "rows@7"
    assert "torch" in json.loads(champion.tags["tuner.environment"])["packages"]
    trial = client.get_run(champion.tags["tuner.trial_run_id"])
    assert trial.data.tags["tuner.trial"] == champion.tags["tuner.trial"]
    assert json.loads(trial.data.tags["tuner.model_versions"]) == ["moving/1"]
    stored = client.download_artifacts(found["run_id"], "lineage.json", str(pipeline.folder))
    files = json.loads(Path(stored).read_text())["files"]
    assert {"tests/retrained.py", "tests/__init__.py"} & files.keys()
    page = client.get_model_version("moving", "1").description
    assert page == client.get_run(found["run_id"]).data.tags["mlflow.note.content"]
    home = f"#/experiments/{trial.info.experiment_id}/runs/{trial.info.run_id}?"
    own = client.get_run(found["run_id"]).info.experiment_id
    for link in (
        home,
        f"#/experiments/{own}/runs/{found['run_id']}/artifacts/lineage.json?",
        f"#/experiments/{own}/runs/{found['run_id']}/model-metrics?",
        "#/models/moving/versions/1",
    ):
        assert f"]({link}" in page
    assert "The first champion" in page

    pipeline.retrain("5")
    back = client.get_run(trial.info.run_id).data.tags
    assert json.loads(back["tuner.model_versions"]) == ["moving/1", "moving/2"]
    note = back["mlflow.note.content"]
    for version in (1, 2):
        assert note.count(f"[version {version} of moving](#/models/moving/versions/{version})") == 1
    assert f"#/experiments/{own}/runs/{found['run_id']}?" in note
    ours = pipeline.ledger.trials(pipeline.ledger.study("moving").id)
    differences = check.mismatches(
        client, pipeline.ledger, pipeline.ledger.study("moving"), ours, without_curve=()
    )
    assert differences == [], "a repair leaves it as it is"


def test_only_a_run_of_the_trial_itself_is_linked_from(pipeline: Pipeline) -> None:
    """The ledger's row that names the run may have any content, and the run may be deleted."""
    pipeline.retrain("0")
    client = tracking_client(pipeline.places)
    run = pipeline.registry.champion().tags["tuner.trial_run_id"]
    client.set_tag(run, "tuner.study", "another's")
    assert pipeline.retrain("5")["outcome"] == "promoted"
    assert json.loads(client.get_run(run).data.tags["tuner.model_versions"]) == ["moving/1"]
    client.set_tag(run, "tuner.study", "moving")
    client.delete_run(run)
    assert pipeline.retrain("9")["outcome"] == "promoted"
    assert json.loads(client.get_run(run).data.tags["tuner.model_versions"]) == ["moving/1"]


def test_drift_is_in_the_ledger_and_on_the_parent_run(pipeline: Pipeline) -> None:
    for key in ("0", "0 again", "5"):
        pipeline.retrain(key)
    steps = drift.steps(Retrainings(pipeline.ledger).history("moving"))
    assert [one.outcome for one in steps] == ["promoted", "kept", "promoted"]
    assert [one.version for one in steps] == [1, 2, 3]
    assert {one.lr_range for one in steps} == {(0.2, 0.3)}
    client = tracking_client(pipeline.places)
    experiment = client.get_experiment_by_name("moving retrain").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`tuner.retraining` = 'parent'")
    drawn = client.get_metric_history(parent.info.run_id, "champion_val_loss")
    assert [(one.step, one.value) for one in drawn] == [
        (index, one.champion) for index, one in enumerate(steps)
    ]
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert len(children) == 3
    study = pipeline.ledger.study("moving")
    made = report.report(
        pipeline.ledger, [study], pipeline.places, to=pipeline.folder / "said", tracked=False
    )
    page = made.written.page.read_text()
    assert "<h2>Retrainings</h2>" in page
    assert all(f"<td>{one.run_key}</td><td>{one.outcome}</td>" in page for one in steps)


@pytest.mark.parametrize(
    ("sampler", "sources"), [("random", ()), ("gp", ("wide", "wide retune *"))]
)
def test_auto_retunes_where_the_refit_falls_short(
    pipeline: Pipeline, sampler: str, sources: tuple[str, ...]
) -> None:
    """A refit at the best rate of the old data, and a study around it; then the gate as ever."""
    pipeline.change(*AUTO, f"search.sampler={sampler}", "retrain.shortfall=1e9")
    assert retrained_wide(pipeline, "0")["outcome"] == "promoted"
    assert "wide retune 0" not in {one.name for one in pipeline.ledger.studies()}
    pipeline.change(*AUTO, f"search.sampler={sampler}", "retrain.shortfall=0")
    found = retrained_wide(pipeline, "5")
    assert found["outcome"] == "promoted"
    study = pipeline.ledger.study("wide retune 5")
    assert study.spec.search.learn_from == sources, "where the sampler can, it learns from before"
    trials = pipeline.ledger.trials(study.id)
    assert [one.state for one in trials] == ["completed"] * 3
    best = pipeline.ledger.best(pipeline.ledger.study("wide"))
    assert best is not None
    assert trials[0].params == best.params  # what is known comes first
    assert all(best.params["lr"] / 10 <= one.params["lr"] <= 0.5 for one in trials)
    (last,) = drift.steps(Retrainings(pipeline.ledger).history("wide"))[1:]
    low, high = last.lr_range
    assert low <= last.lr <= high <= 0.5


AUTO = (
    "study.name=wide",
    "workload.arguments={holdout=true}",
    "space.lr={low=0.01,high=0.5}",
    "search.sampler=random",
    "retrain.do=auto",
    "retrain.trials=3",
)


def retrained_wide(pipeline: Pipeline, key: str) -> dict[str, Any]:
    """Retrain the study `wide`, which is trained first if it is new."""
    ledger = pipeline.ledger
    work(
        ledger,
        pipeline.places,
        names=["wide"],
        prefixes=PREFIXES,
        stop=threading.Event(),
        until_idle=True,
    )
    return retrain(ledger, pipeline.places, "wide", key, prefixes=PREFIXES)


# --- keys


def test_an_older_key_replaces_no_newer_champion_unless_forced(pipeline: Pipeline) -> None:
    pipeline.change("retrain.factory=tests.retrained:on_a_day")
    assert pipeline.retrain("2026-03-04")["outcome"] == "promoted"
    assert pipeline.registry.champion().tags["tuner.data_time"] == "2026-03-04"
    older = pipeline.retrain("2026-03-01")
    assert (older["outcome"], older["version"], older["champion_version"]) == ("kept", 2, 1)
    assert "Recorded only: the key '2026-03-01' is older than '2026-03-04'" in older["reason"]
    assert "Better: val_loss" in older["reason"]
    forced = pipeline.retrain("2026-03-01 forced", force=True)
    assert (forced["outcome"], forced["champion_version"]) == ("promoted", 3)
    assert pipeline.retrain("2026-03-05")["outcome"] == "promoted", "a newer key needs no force"


def test_a_known_key_reports_what_has_changed_since(pipeline: Pipeline) -> None:
    found = pipeline.retrain("0")
    assert found["changed"] == []
    assert pipeline.retrain("0") == found
    pipeline.change("retrain.factory=tests.retrained:on_a_day")
    (change,) = pipeline.retrain("0")["changed"]
    assert change.startswith("the data, whose digest was ")
    pipeline.change("retrain.factory=studies.digits:mlp", "retrain.key_argument=width")
    (change,) = pipeline.retrain("0")["changed"]
    assert change.startswith("the code of studies.digits:mlp, in studies/")
    assert pipeline.trainings() == 1


def test_a_key_has_the_format_of_the_study(pipeline: Pipeline) -> None:
    pipeline.change("retrain.key_format=%Y-%m-%d", "retrain.factory=tests.retrained:on_a_day")
    with pytest.raises(UsageError, match=r"expected .retrain. key_format '%Y-%m-%d', such"):
        pipeline.retrain("4 March")
    assert pipeline.retrain("2026-03-04 again")["outcome"] == "promoted"
    at = Timetable(expression="0 6,18 * * *", zone="Asia/Tokyo")
    with pytest.raises(UsageError, match=r"names the ticks .* both"):
        timetables.add(pipeline.ledger, "moving", at)
    daily = replace(at, expression="0 6 * * *")
    added = timetables.as_json(
        pipeline.ledger, timetables.add(pipeline.ledger, "moving", daily, enabled=False)
    )
    assert added["next"][11:] == "21:00:00Z", "of the day before"
    day = date.fromisoformat(added["next"][:10])
    assert date.fromisoformat(added["next_key"]) == day + timedelta(days=1)


# --- whatever dies: see also the processes below

STAGES = [place for place in PLACES if place.startswith("retrain.")]


@pytest.mark.thorough
@pytest.mark.parametrize("place", STAGES)
def test_what_breaks_in_the_middle_is_ended_by_the_next_call(
    successor: Pipeline, arm: Callable[[str], Callable[[], list[str]]], place: str
) -> None:
    pipeline = successor
    log = arm(f"{place}=raise")
    with pytest.raises(FailpointError):
        pipeline.retrain("5")
    assert log() == [f"{place}=raise"]
    pipeline.assert_whole()
    found = pipeline.retrain("5")
    assert (found["outcome"], found["version"], found["champion_version"]) == ("promoted", 2, 2)
    assert pipeline.registry.champion().number == 2
    assert pipeline.trainings() == 2
    assert len(pipeline.registry._client.search_model_versions("name = 'moving'")) == 2
    pipeline.assert_whole()


def test_what_was_trained_before_a_crash_is_not_trained_again(
    pipeline: Pipeline, arm: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    arm("retrain.trained=raise")
    with pytest.raises(FailpointError):
        pipeline.retrain("0")
    monkeypatch.setattr(torch.optim.SGD, "step", None)  # an update would raise
    assert pipeline.retrain("0")["outcome"] == "promoted"


def test_a_rollback_is_heeded_by_the_next_retraining(successor: Pipeline) -> None:
    """Whose parameters are trained again, and whose rows are compared: the champion's."""
    pipeline = successor
    pipeline.retrain("5")
    rollback(pipeline.ledger, pipeline.places, "moving")
    found = pipeline.retrain("5 b")
    assert found["outcome"] == "promoted"
    assert pipeline.registry.champion().tags["tuner.replaces"] == "1"


def test_several_seeds_offer_the_one_in_the_middle(pipeline: Pipeline) -> None:
    pipeline.change("retrain.gate.seeds=3")
    pipeline.retrain("0")
    found = pipeline.retrain("5")
    assert "over 3 seeds" in found["reason"]
    assert found["outcome"] == "promoted"


def test_a_rollback_before_the_promotion_is_compared_with_anew(
    successor: Pipeline, arm: Callable[[str], object]
) -> None:
    pipeline = successor
    pipeline.retrain("5")
    arm("retrain.logged=raise")
    with pytest.raises(FailpointError):
        pipeline.retrain("9")
    rollback(pipeline.ledger, pipeline.places, "moving")
    found = pipeline.retrain("9")
    assert found["outcome"] == "promoted"
    assert pipeline.registry.champion().tags["tuner.replaces"] == "1"


def test_two_at_once_train_once(pipeline: Pipeline) -> None:
    """Each in a thread, with a database connection and an MLflow client of its own."""
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(pipeline.retrain, ["0", "0"]))
    assert found[0] == found[1]
    assert pipeline.trainings() == 1


def test_who_does_not_want_to_wait_is_told_who_is_at_it(pipeline: Pipeline) -> None:
    store = Retrainings(pipeline.ledger)
    store.claim("moving", "another", "moving", "elsewhere:1:2")
    with pytest.raises(UnavailableError, match="elsewhere:1:2 has the retraining 'another'"):
        pipeline.retrain("0", wait=False)
    gone = store.claim("moving", "0", "moving", "me", lambda worker: worker == "elsewhere:1:2")
    assert gone[1] is None


# --- refused before anything is trained


@pytest.mark.parametrize(
    ("overrides", "key", "said"),
    [
        ([], "wide", "does not fit the signature of 'moving', version 1: inputs: expected rows of"),
        ([], "", "run key: expected 1 to 200 printable characters"),
        ([], "x" * 201, "run key: expected 1 to 200 printable characters"),
        ([], "monday", "could not convert string to float: 'monday'"),
        (
            ["retrain.gate.metric=accuracy", "retrain.gate.direction=maximize"],
            "1",
            "expected one that tests.retrained:moving measures (val_loss, worst, absolute), got",
        ),
        (
            ["retrain.gate.metric=worst", "retrain.gate.direction=minimize"],
            "1",
            "[retrain.gate] metric: expected a mean over rows",
        ),
        (["retrain.gate.slices=['old']"], "1", "slices: expected slices of the workload (none)"),
        (
            ["retrain.gate.margins={old=0.1}"],
            "1",
            "margins: expected slices of the workload (none)",
        ),
        (
            ["retrain.data.minimum_rows=25"],
            "1",
            "[retrain.data] minimum_rows: expected at least 25",
        ),
        (
            ["retrain.gate.minimum_rows=13"],
            "1",
            "13 validation rows of tests.retrained:moving, got",
        ),
        (["retrain.do=retune"], "1", "expected a holdout of tests.retrained:moving"),
        (["retrain.factory=tests.retrained:nothing"], "1", "expected a function nothing"),
        (["retrain.key_argument=day"], "1", "got an unexpected keyword argument 'day'"),
        (["retrain.notify.apprise=['TUNER_NOTIFY_UNSET']"], "1", "neither TUNER_NOTIFY_UNSET nor"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    champion: Pipeline, overrides: list[str], key: str, said: str
) -> None:
    champion.change(*overrides)
    with pytest.raises(UsageError) as error:
        champion.retrain(key)
    assert said in str(error.value)
    assert Retrainings(champion.ledger).read("moving", key) is None
    assert champion.trainings() == 1


@pytest.fixture(scope="module")
def champion(promoted: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline with a champion, for tests that leave all as it is."""
    return Pipeline(copy(promoted, tmp_path_factory.mktemp("champion")))


def test_a_model_that_is_gone_is_refused(pipeline: Pipeline) -> None:
    pipeline.retrain("0")
    run = tracking_client(pipeline.places).get_run(pipeline.registry.champion().run_id)
    source = Path(run.info.artifact_uri.removeprefix("file://"))
    kept = source.rename(source.with_name("elsewhere"))
    with pytest.raises(NotFoundError, match="version 1 of model 'moving' cannot be read"):
        pipeline.retrain("5")
    kept.rename(source)
    tracking_client(pipeline.places).delete_registered_model("moving")
    with pytest.raises(NotFoundError, match="has no champion in the registry, though"):
        pipeline.retrain("5")
    with pytest.raises(NotFoundError, match="has no champion yet"):
        pipeline.predictions()
    assert pipeline.trainings() == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "1,2,3\n", "a.csv: row 1 (line 1): expected 2 columns, got 3"),
        ("a.csv", "x,y\n1,2\n", "a.csv: row 1 (line 1), column 1: expected a number, got 'x'"),
        ("a.csv", "0,1\n1,2\n", "a.csv: line 1: this looks like a header"),
        ("a.npy", "1,2\n", "a.npy: expected an array in a .npy file"),
        ("a.txt", "1,2\n", "a.txt: expected a name that ends in .csv, .json, .jsonl, .parquet"),
        ("gone.csv", None, "gone.csv: expected rows of numbers, got No such file"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    champion: Pipeline, tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError) as error:
        predict(champion.ledger, champion.places, "moving", tmp_path / name, prefixes=PREFIXES)
    assert said in str(error.value)


def test_a_table_of_text_is_predicted_as_arrays_are(champion: Pipeline, tmp_path: Path) -> None:
    rows = np.linspace(0, 1, 14).reshape(7, 2)
    lines = [",".join(map(repr, row)) for row in rows.tolist()]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    rows_file = tmp_path / "a.csv"
    found = predict(champion.ledger, champion.places, "moving", rows_file, prefixes=PREFIXES)
    assert np.array_equal(found.outputs, champion.predictions())


def test_a_bad_day_is_refused_or_left_out_and_named(pipeline: Pipeline) -> None:
    pipeline.change("retrain.factory=tests.retrained:by_day")
    with pytest.raises(UsageError, match="batch day 1, column 'width', rows 1, 4, 7"):
        pipeline.retrain("0 broken")
    pipeline.change("retrain.factory=tests.retrained:by_day", "retrain.data={on_bad='drop_batch'}")
    found = pipeline.retrain("0 broken")
    assert found["outcome"] == "promoted"
    assert list(found["left_out"]) == ["day 1"]
    assert "Without bad batches: day 1 (train_inputs: expected finite numbers" in found["reason"]
    rows = pipeline.folder / "rows.csv"
    rows.write_text("width,height\n0.5,0.5\n")
    predicted = predict(pipeline.ledger, pipeline.places, "moving", rows, prefixes=PREFIXES)
    assert predicted.exact, "the model is built from the same data"
    pipeline.change(
        "retrain.factory=tests.retrained:by_day",
        "retrain.data={minimum_rows=17,on_bad='drop_batch'}",
    )
    with pytest.raises(
        UsageError, match=r"at least 17 training rows .* got 16, without the bad batches day 1"
    ):
        pipeline.retrain("1 broken")


# --- how it ends


def test_a_metric_that_is_not_a_number_is_left_out_of_mlflow(pipeline: Pipeline) -> None:
    pipeline.change("retrain.factory=tests.retrained:measuring_nothing")
    found = pipeline.retrain("0")
    assert found["outcome"] == "promoted"
    pipeline.assert_whole()
    client = tracking_client(pipeline.places)
    (logged,) = client.search_logged_models(
        [client.get_run(found["run_id"]).info.experiment_id],
        filter_string=f"source_run_id = '{found['run_id']}'",
    )
    measured = {one.key for one in logged.metrics}
    assert "challenger_val_loss" in measured
    assert not any(
        "nothing" in key for key in [*measured, *client.get_run(found["run_id"]).data.metrics]
    )
    gate = ("retrain.gate.metric=nothing", "retrain.gate.direction=minimize")
    pipeline.change("retrain.factory=tests.retrained:measuring_nothing", *gate)
    found = pipeline.retrain("5")
    assert (found["outcome"], found["champion_version"]) == ("kept", 1)
    assert "nothing is not finite on every row" in found["reason"]


def test_a_study_whose_champion_is_in_use_is_deleted_by_force_and_the_model_stays(
    pipeline: Pipeline,
) -> None:
    first = pipeline.retrain("0")
    with pytest.raises(UsageError, match="made version 1 of model 'moving', the champion; without"):
        manage.delete(pipeline.ledger, pipeline.places, "moving")
    assert pipeline.retrain("0") == first
    manage.delete(pipeline.ledger, pipeline.places, "moving", force=True)
    assert pipeline.registry.champion().number == 1
    assert (
        tracking_client(pipeline.places).get_run(first["run_id"]).info.lifecycle_stage == "active"
    )
    train_here(pipeline.folder)
    found = pipeline.retrain("0")  # the name is free, and the key with it
    assert (found["outcome"], found["version"]) == ("promoted", 2)
    assert "the ledger has no digest of the weights of the champion, version 1" in found["reason"]
    pipeline.assert_whole()


def test_a_challenger_that_diverges_fails_and_the_champion_stays(successor: Pipeline) -> None:
    pipeline = successor
    found = pipeline.retrain("1e200")
    assert (found["outcome"], found["version"]) == ("failed", None)
    assert found["reason"].startswith("The challenger did not train: ")
    assert pipeline.registry.champion().number == 1
    run = tracking_client(pipeline.places).get_run(found["run_id"])
    assert run.info.status == "KILLED"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("training_minutes=1e-9", "more than [retrain.limits] training_minutes = 1e-09."),
        ("model_megabytes=1e-6", "the model has 2.4e-05 MB, more than [retrain.limits] model_me"),
        ("retune_minutes=1e-9", "completed 1 of 3 trials in [retrain.limits] retune_minutes"),
    ],
)
def test_a_limit_that_is_exceeded_fails_is_notified_and_leaves_the_champion(
    pipeline: Pipeline, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, limit: str, said: str
) -> None:
    pipeline.change(*AUTO)
    first = retrained_wide(pipeline, "0")
    for name, value in receiver.environment.items():
        monkeypatch.setenv(name, value)
    notified = "retrain.notify.webhook=TUNER_NOTIFY_WEBHOOK"
    pipeline.change(*AUTO, "retrain.shortfall=0", f"retrain.limits.{limit}", notified)
    found = retrained_wide(pipeline, "5")
    assert (found["outcome"], found["version"]) == ("failed", None)
    assert found["reason"].startswith("A limit is exceeded: ")
    assert said in found["reason"]
    assert found["champion_version"] == first["version"]
    assert receiver.messages == [found]
    pipeline.change(*AUTO, "retrain.shortfall=0")
    assert retrained_wide(pipeline, "5") == found, "the key has ended"
    assert retrained_wide(pipeline, "5 again")["outcome"] == "promoted"


def test_a_webhook_gets_what_the_command_prints(
    pipeline: Pipeline,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in receiver.environment.items():
        monkeypatch.setenv(name, value)
    pipeline.change("retrain.notify.webhook=TUNER_NOTIFY_WEBHOOK", "retrain.notify.on=['kept']")
    pipeline.retrain("0")
    assert receiver.heard == []
    found = pipeline.retrain("0 again")
    assert receiver.messages == [found]
    assert pipeline.retrain("0 again") == found
    assert len(receiver.heard) == 1  # once a key


def test_a_webhook_that_is_away_changes_nothing(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNER_NOTIFY_WEBHOOK", "http://127.0.0.1:9/nobody")
    pipeline.change("retrain.notify.webhook=TUNER_NOTIFY_WEBHOOK")
    assert pipeline.retrain("0")["outcome"] == "promoted"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made
