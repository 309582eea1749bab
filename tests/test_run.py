"""`tuner run` from a study file to its end: the ledger, Optuna, MLflow and its output agree."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import subprocess

import optuna
import pytest
import warm
from mlflow import MlflowClient
from processes import (
    STUDY,
    assert_whole,
    environment,
    left,
    prepare,
    reader,
    rows,
    train_here,
    tuner,
    write_study,
)

from tuner.tracking.mlflow import views
from tuner.training.trainer import seed_of

pytestmark = pytest.mark.slow

KEYS = ["study", "trials", "best", "tracking_uri", "storage", "report", "seconds"]
KINDS = ["completed", "pruned", "diverged", "failed", "cancelled"]
STATES = {"completed": "COMPLETE", "pruned": "PRUNED", "diverged": "PRUNED"}
STATUSES = {"completed": "FINISHED", "pruned": "KILLED", "diverged": "KILLED"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder where a study was run from nothing at all, and what the command printed."""
    folder = write_study(tmp_path_factory.mktemp("run"))
    return folder, tuner(folder, "run", "study.toml", "--json")


@pytest.fixture(scope="module")
def runs(ran):
    """Each trial's run, read by MLflow's client from the file that a bare `mlflow ui` opens."""
    folder, _ = ran
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == 9
    return client, {run.data.tags["tuner.trial"]: run for run in found}


def test_standard_output_is_one_object(ran):
    folder, done = ran
    assert done.code == 0, done.err
    assert list(done.json) == KEYS
    assert list(done.json["trials"]) == KINDS
    assert list(done.json["best"]) == ["number", "value", "params", "run_id"]
    assert done.json["study"] == "small"
    assert done.json["tracking_uri"] == f"sqlite:///{folder}/mlflow.db"
    assert done.json["storage"] == f"sqlite:///{folder}/tuner.db"
    assert (folder / done.json["report"]).is_file()
    assert done.json["seconds"] > 0


def test_without_a_terminal_each_trial_is_a_line(ran):
    _, done = ran
    lines = [line for line in done.err.splitlines() if line.startswith("trial ")]
    numbers = [int(re.match(r"trial (\d+) of 8: lr ", line)[1]) for line in lines]
    assert sorted(numbers) == list(range(8))
    assert all(re.search(r": (completed|pruned|diverged)\. \S.*\.$", line) for line in lines), lines
    assert "\x1b" not in done.err, "no colours without a terminal"


def test_the_counts_agree_everywhere(ran, runs):
    folder, done = ran
    ledger = {trial["state"]: 0 for trial in left(folder).ledger.values()}
    for trial in left(folder).ledger.values():
        ledger[trial["state"]] += 1
    assert done.json["trials"] == dict.fromkeys(KINDS, 0) | ledger
    study = optuna.load_study(study_name="small", storage=f"sqlite:///{folder}/tuner.db")
    told = [trial.user_attrs["tuner.outcome"] for trial in study.trials]
    assert {kind: told.count(kind) for kind in ledger} == ledger
    told = [run.data.tags.get("tuner.outcome") for run in runs[1].values()]
    assert {kind: told.count(kind) for kind in ledger} == ledger


def test_the_best_trial_is_the_same_everywhere(ran, runs):
    folder, done = ran
    best = done.json["best"]
    study = optuna.load_study(study_name="small", storage=f"sqlite:///{folder}/tuner.db")
    assert study.best_trial.number == best["number"]
    assert study.best_value == best["value"]
    assert study.best_params.items() <= best["params"].items()
    run = runs[1][str(best["number"])]
    assert run.info.run_id == best["run_id"]
    assert run.data.metrics["val_loss"] == best["value"]
    parent = runs[1]["study"]
    assert parent.data.tags["tuner.best_trial"] == str(best["number"])
    assert parent.data.metrics["best_val_loss"] == best["value"]
    assert f"{best['value']:.4g}" in parent.data.tags["mlflow.note.content"]


def test_optuna_has_every_trial(ran):
    folder, _ = ran
    ledger = left(folder).ledger
    study = optuna.load_study(study_name="small", storage=f"sqlite:///{folder}/tuner.db")
    assert study.direction.name == "MINIMIZE"
    assert study.user_attrs == {"tuner.study": "small", "tuner.metric": "val_loss"}
    assert [trial.number for trial in study.trials] == list(ledger)
    for trial in study.trials:
        ours = ledger[trial.number]
        assert trial.state.name == STATES[ours["state"]]
        assert trial.params.items() <= ours["params"].items()
        assert {"lr", "schedule", "optimizer"} <= set(trial.params)
        assert trial.intermediate_values == {one.step: one.value for one in ours["reports"]}
        assert trial.user_attrs["tuner.reason"] == ours["reason"]
        assert trial.duration.total_seconds() > 0
        if ours["state"] == "pruned":
            assert trial.value == ours["value"] == list(trial.intermediate_values.values())[-1]
        if ours["state"] == "completed":
            assert trial.value == ours["value"]
            assert trial.intermediate_values, "rungs on its way"


def test_every_run_has_the_whole_curve_up_to_where_it_stopped(ran, runs):
    folder, _ = ran
    client, by_trial = runs
    ledger = reader(folder)
    for trial in ledger.trials(ledger.study("small").id):
        curve, run = ledger.curve(trial.id), by_trial[str(trial.number)]
        end = math.inf if trial.stopped_step is None else trial.stopped_step
        assert len(curve.times) == trial.steps
        ends = dict.fromkeys(curve.columns, end) | dict.fromkeys(curve.metrics, end + 1)
        steps = {name: range(trial.steps) for name in curve.columns}
        steps |= dict.fromkeys(curve.metrics, curve.eval_steps)
        times = dict.fromkeys(curve.columns, curve.times)
        times |= dict.fromkeys(curve.metrics, curve.eval_times)
        assert set(steps) == {"train_loss", "lr", "grad_norm", "val_loss"}
        for name, values in (*curve.columns.items(), *curve.metrics.items()):
            expected = [
                (int(step), float(value), round(at * 1000))
                for step, value, at in zip(steps[name], values, times[name], strict=True)
                if math.isfinite(value) and step < ends[name]
            ]
            history = client.get_metric_history(run.info.run_id, name)
            assert sorted((p.step, p.value, p.timestamp) for p in history) == expected
        stopped = [p.value for p in client.get_metric_history(run.info.run_id, "stopped_step")]
        assert stopped == ([] if trial.stopped_step is None else [trial.stopped_step])


def test_every_run_says_what_it_is(ran, runs):
    folder, _ = ran
    _, by_trial = runs
    ledger = reader(folder)
    study = ledger.study("small")
    parent = by_trial["study"]
    assert parent.info.status == "FINISHED"
    assert "mlflow.parentRunId" not in parent.data.tags
    for trial in ledger.trials(study.id):
        run = by_trial[str(trial.number)]
        tags = run.data.tags
        assert run.info.status == STATUSES[trial.state]
        assert run.info.run_name.startswith(f"{trial.number}: lr ")
        assert run.info.start_time == round(trial.created_at * 1000)
        assert run.info.end_time == round(trial.ended_at * 1000)
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert tags["tuner.study"] == "small"
        assert tags["tuner.outcome"] == trial.state
        assert tags["tuner.reason"] == trial.reason
        assert tags["tuner.seed"] == str(seed_of(study.spec, trial.number))
        assert tags["mlflow.source.name"] == "tests.workloads:noisy"
        assert tags["tuner.code_digest"] == study.workload["code"]
        assert tags["tuner.trainer"] == "reference"
        assert re.fullmatch(r"\d+\.\d+\.\d+\S*", tags["tuner.version.torch"])
        assert run.data.params == {key: str(value) for key, value in trial.params.items()} | {
            "log10_lr": str(math.log10(trial.params["lr"]))
        }
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("a curved line", study.workload["data"])


def test_the_runs_have_every_tag_that_the_saved_views_name(ran, runs):
    folder, _ = ran
    study = reader(folder).study("small")
    states = [views.state_of(study, view) for view in views.views(study)]
    named = {name for state in states for name in re.findall(r"tags\.`?([\w.]+)", str(state))}
    assert {"tuner.outcome", "tuner.verdict", "tuner.reason", "tuner.trial"} <= named
    for trial, run in runs[1].items():
        if trial != "study":
            assert named <= run.data.tags.keys()


def test_the_commit_is_noted(tmp_path):
    folder = prepare(tmp_path, trials="1")
    for command in (
        ["init", "-q"],
        ["add", "study.toml"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()
    assert tuner(folder, "run", "study.toml").code in {0, 3}
    tags = dict(rows(folder, "SELECT key, value FROM tags", "mlflow.db"))
    assert tags["mlflow.source.git.commit"] == commit
    assert tags["tuner.git_dirty"] == "false"


@pytest.mark.thorough
def test_a_finished_study_is_not_trained_again_and_a_larger_budget_goes_on(tmp_path):
    folder = prepare(tmp_path, trials="4")
    first = tuner(folder, "run", "study.toml", "--json")
    before = left(folder)
    again = tuner(folder, "run", "study.toml", "--json")
    assert again.code == 0
    assert not [line for line in again.err.splitlines() if line.startswith("trial")]
    assert {k: v for k, v in again.json.items() if k != "seconds"} == {
        k: v for k, v in first.json.items() if k != "seconds"
    }
    assert left(folder) == before
    more = tuner(folder, "run", "study.toml", "--json", "--set", "budget.trials=6")
    assert more.code == 0, more.err
    assert sum(more.json["trials"].values()) == 6
    assert {n: t for n, t in left(folder).ledger.items() if n < 4} == before.ledger
    assert_whole(folder)
    refused = tuner(folder, "run", "study.toml", "--set", "training.steps=7")
    assert refused.code == 2
    assert "[training] steps" in refused.err
    assert "only its budget may change" in refused.err
    assert "Traceback" not in refused.err


def test_when_all_diverge_the_exit_code_says_so(tmp_path):
    study = STUDY.replace("high = 10.0", "high = 1e8").replace("low = 1e-3", "low = 1e6")
    folder = prepare(tmp_path, study.replace("tests.workloads:noisy", "tests.workloads:line"))
    done = tuner(folder, "run", "study.toml", "--json", "--set", "space.optimizer='sgd'")
    assert done.code == 3, done.err
    assert done.json["best"] is None
    shown = tuner(folder, "status", "small")
    assert shown.code == 0
    assert "8 diverged" in shown.out
    assert "No trial has completed." in shown.out
    assert_whole(folder)


def test_a_loss_that_raises_fails_its_trial_with_what_it_said(tmp_path):
    study = STUDY.replace(
        "\nsteps = 40", "\nthreads = 1  # nothing is measured before the trials\nsteps = 40"
    )
    folder = prepare(tmp_path, study, trials="2", factory='"tests.workloads:raising"')
    done = tuner(folder, "run", "study.toml")
    assert done.code == 3
    said = "The training code raised RuntimeError: the data server said [bold]no[/bold] "
    assert re.search(
        rf"trial 1 of 2: .*: failed\. {re.escape(said)}\(workloads\.py:\d+\)", done.out
    )
    found = left(folder)
    assert {trial["state"] for trial in found.ledger.values()} == {"failed"}
    assert {trial["steps"] for trial in found.ledger.values()} == {3}, "what was measured is kept"
    assert {trial[0] for trial in found.optuna.values()} == {"FAIL"}
    assert_whole(folder)


def test_a_grid_ends_when_it_is_done(tmp_path):
    study = (
        STUDY.replace('schedule = ["constant", "cosine"]', 'schedule = "constant"')
        .replace('optimizer = [{ name = "sgd", momentum = 0.9 }, "adamw"]', 'optimizer = "sgd"')
        .replace("lr = { low = 1e-3, high = 10.0 }", "lr = [0.01, 0.1, 0.02]")
        .replace('{ name = "tpe", startup_trials = 3, start = "random" }', '"grid"')
    )
    folder = prepare(tmp_path, study)
    done = tuner(folder, "run", "study.toml", "--json")
    assert done.code == 0, done.err
    assert sum(done.json["trials"].values()) == 3
    rates = [trial["params"]["lr"] for trial in left(folder).ledger.values()]
    assert rates == [0.01, 0.1, 0.02], "in the order of the study file"
    assert json.loads(tuner(folder, "status", "small", "--json").out)["state"] == "ended"


def test_in_a_terminal_a_live_table_shows(tmp_path):
    folder = prepare(tmp_path, STUDY, trials="4")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [warm.python(), "-m", "tuner", "run", "study.toml"],
        cwd=folder,
        env=environment(folder, {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "30"}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            read = os.read(ours, 4096)
        except OSError:  # Linux says so when the last process has closed the terminal
            break
        if not read:
            break
        shown += read
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert "\x1b[?25l" in text, "the cursor is hidden while the table is live"
    assert "\x1b[?25h" in text, "and comes back"
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "trials ended" in plain
    assert re.search(r"Best: val_loss .* in trial \d", plain)
    assert "Traceback" not in plain
    assert not re.search(r"^trial 0 of 4:", plain, re.MULTILINE), "no plain lines beside it"


def test_two_studies_share_a_folder(tmp_path):
    folder = prepare(tmp_path, trials="2")
    train_here(folder)
    write_study(folder, trials="2", name='"other"')
    train_here(folder)
    assert_whole(folder, name="small")
    assert_whole(folder, name="other")
    assert left(folder, "small").ledger == left(folder, "other").ledger, "the same seed and spec"
